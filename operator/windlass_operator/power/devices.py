"""GPUs as the agent meets them: what each reports, what may be written, and how that can fail.

`Devices` has two implementations: `nvml.NvmlDevices`, and `testing.FakeDevices` for unit tests.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from windlass_operator.errors import WindlassError


class Cause(enum.StrEnum):
    """Why a GPU cannot be read or written; a label of the metrics."""

    NO_DRIVER = "no_driver"
    NO_PERMISSION = "no_permission"
    NOT_SUPPORTED = "not_supported"
    LOST = "lost"
    OTHER = "other"


class DeviceError(WindlassError):
    """The driver refused; nothing was changed. Trying again later can succeed."""

    def __init__(self, message: str, cause: Cause) -> None:
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical GPU. None marks what it does not report."""

    uuid: str
    index: int
    power_limit_mw: int | None = None
    """Limit in force, in milliwatts."""
    min_power_mw: int | None = None
    max_power_mw: int | None = None
    """Between which the driver accepts limits."""
    max_clock_mhz: int | None = None
    """Highest graphics clock of the chip."""
    clock_mhz: int | None = None
    """Graphics clock right now."""
    draw_mw: int | None = None
    energy_mj: int | None = None
    """Since the driver was loaded, in millijoules."""
    use_percent: int | None = None
    """Share of the last sample period in which a kernel ran."""
    slices: tuple[str, ...] = ()
    """UUIDs of its MIG devices."""


class Devices(Protocol):
    """The GPUs of this node. Every method blocks, so the agent calls it in a thread."""

    def observe(self) -> tuple[Gpu, ...]:
        """Read every GPU that answers. Raises DeviceError when there is no driver."""
        ...

    def set_power_limit(self, uuid: str, milliwatts: int) -> None:
        """Set the power limit. Raises DeviceError."""
        ...

    def cap_clock(self, uuid: str, mhz: int) -> None:
        """Keep the graphics clock at or below `mhz`. Raises DeviceError."""
        ...

    def free_clock(self, uuid: str) -> None:
        """Take every lock off the graphics clock. Raises DeviceError."""
        ...

    def close(self) -> None:
        """Give the driver back."""
        ...
