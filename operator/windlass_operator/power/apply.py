"""Carry a plan out on one GPU, and take everything back. Blocks; the agent calls it in a thread.

Order matters: what a GPU was like is on disk before it changes, and leaves the disk after it is as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from windlass_operator.power.devices import Cause, DeviceError, Devices, Gpu
from windlass_operator.power.ledger import Ledger, with_clock, with_power
from windlass_operator.power.limits import UNTOUCHED, Target

log = logging.getLogger(__name__)

POWER: Final = "power_limit"
CLOCK: Final = "clock"
CLOCK_SLACK_MHZ: Final = 30
"""Clocks move in steps of 15 MHz; beyond two of them, somebody else has taken our cap away."""
_REFUSED: Final = frozenset({Cause.NO_PERMISSION, Cause.NOT_SUPPORTED})
"""After these the GPU is certainly as it was. After others nobody knows, so the ledger keeps what it noted."""

Observe = Callable[[str, str], None]
"""Called with what was written and the result: `ok` or a Cause."""


@dataclass
class Limiter:
    """Writes limits, and only those that differ from what is in force."""

    devices: Devices
    ledger: Ledger
    observe: Observe = lambda *_: None
    _caps: dict[str, int] = field(default_factory=dict)
    """Clock caps that this process set: NVML cannot read them back."""

    def apply(self, gpu: Gpu, target: Target) -> None:
        """Bring one GPU to the target. Raises DeviceError after trying both limits, LedgerError before any change."""
        failures = [failure for step in (self._apply_power, self._apply_clock) if (failure := step(gpu, target))]
        if failures:
            raise failures[0]

    def restore(self, uuid: str) -> None:
        """Make one GPU what it was before our first change. Raises DeviceError, and keeps the entry then."""
        self.apply(Gpu(uuid, -1), UNTOUCHED)

    def restore_all(self) -> list[DeviceError]:
        """Restore every GPU; return what could not be restored."""
        failures = []
        for uuid in self.ledger.changed:
            try:
                self.restore(uuid)
            except DeviceError as exc:
                failures.append(exc)
        return failures

    def _apply_power(self, gpu: Gpu, target: Target) -> DeviceError | None:
        found = self.ledger.found(gpu.uuid)
        if target.power_mw is None:
            if found.power_mw is None:
                return None
            before = found.power_mw
            failure = self._write(POWER, gpu.uuid, lambda: self.devices.set_power_limit(gpu.uuid, before))
            if failure is None:
                self.ledger.note(gpu.uuid, with_power(self.ledger.found(gpu.uuid), None))
            return failure
        if gpu.power_limit_mw == target.power_mw:
            return None
        if found.power_mw is None:
            self.ledger.note(gpu.uuid, with_power(found, gpu.power_limit_mw))
        wanted = target.power_mw
        failure = self._write(POWER, gpu.uuid, lambda: self.devices.set_power_limit(gpu.uuid, wanted))
        if failure is not None and failure.cause in _REFUSED:
            self.ledger.note(gpu.uuid, found)
        return failure

    def _apply_clock(self, gpu: Gpu, target: Target) -> DeviceError | None:
        found = self.ledger.found(gpu.uuid)
        if target.clock_mhz is None:
            if not found.clock_capped:
                return None
            failure = self._write(CLOCK, gpu.uuid, lambda: self.devices.free_clock(gpu.uuid))
            if failure is None:
                self._caps.pop(gpu.uuid, None)
                self.ledger.note(gpu.uuid, with_clock(self.ledger.found(gpu.uuid), False))
            return failure
        if self._caps.get(gpu.uuid) == target.clock_mhz and not _escaped(gpu, target.clock_mhz):
            return None
        if not found.clock_capped:
            self.ledger.note(gpu.uuid, with_clock(found, True))
        wanted = target.clock_mhz
        failure = self._write(CLOCK, gpu.uuid, lambda: self.devices.cap_clock(gpu.uuid, wanted))
        if failure is None:
            self._caps[gpu.uuid] = wanted
        elif failure.cause in _REFUSED:
            self.ledger.note(gpu.uuid, found)
        return failure

    def _write(self, what: str, uuid: str, act: Callable[[], None]) -> DeviceError | None:
        try:
            act()
        except DeviceError as exc:
            self.observe(what, exc.cause)
            if exc.cause is Cause.LOST:
                self._caps.pop(uuid, None)  # what comes back is a chip without our cap
            return exc
        self.observe(what, "ok")
        log.info("Limit written. gpu=%s what=%s", uuid, what)
        return None


def _escaped(gpu: Gpu, cap_mhz: int) -> bool:
    return gpu.clock_mhz is not None and gpu.clock_mhz > cap_mhz + CLOCK_SLACK_MHZ
