"""The agent's loop: look at GPUs, holders and policies, decide, write what differs, tell.

Whatever does not answer leaves limits as they are: the agent goes on with what it last knew, says so once, and never
ends for it. It writes nothing until it has heard of both holders and policies.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from windlass_operator import errors
from windlass_operator.power.apply import Limiter
from windlass_operator.power.devices import DeviceError, Devices, Gpu
from windlass_operator.power.energy import EnergyBook
from windlass_operator.power.holding import ClaimedDevice, PodDevices, holders_by_gpu
from windlass_operator.power.ledger import Ledger, LedgerError
from windlass_operator.power.limits import MILLI, GpuPlan, Holder, follows_load, plan_gpu
from windlass_operator.power.load import LoadLevel, step_level
from windlass_operator.power.pods import ReplicaPod
from windlass_operator.power.telemetry import GpuReport, Telemetry

log = logging.getLogger(__name__)
T = TypeVar("T")

DRIVER: Final = "driver"
KUBELET: Final = "kubelet"
API: Final = "api"
STATE: Final = "state"


class Holding(Protocol):
    """Who holds devices: the kubelet."""

    async def held(self) -> tuple[PodDevices, ...]:
        """Return the pods that hold devices. Raises RetryLater."""
        ...


class Directory(Protocol):
    """What pods mean: the API server."""

    async def replicas(self) -> dict[str, ReplicaPod]:
        """Return the replicas of this node by `namespace/name`. Raises RetryLater or ClusterUnavailable."""
        ...

    async def claimed_devices(self) -> dict[ClaimedDevice, str]:
        """Return the UUIDs of devices that drivers publish. Raises RetryLater or ClusterUnavailable."""
        ...


class Tokens(Protocol):
    """What replicas made."""

    async def read(self, replicas: dict[str, ReplicaPod]) -> dict[str, float]:
        """Return the tokens of each replica that answers. Raises nothing."""
        ...


@dataclass
class View:
    """What was last heard; None: nothing yet."""

    held: tuple[PodDevices, ...] | None = None
    replicas: dict[str, ReplicaPod] | None = None
    claimed: dict[ClaimedDevice, str] = field(default_factory=dict)


@dataclass
class PowerAgent:
    """One node's agent. `cycle` is one look; whoever calls it decides when."""

    devices: Devices
    kubelet: Holding
    directory: Directory
    tokens: Tokens
    telemetry: Telemetry
    book: EnergyBook
    clock: Callable[[], float]
    open_ledger: Callable[[], Ledger] | None
    """None: a dry run, which writes nothing."""
    view: View = field(default_factory=View)
    cycles: int = 0
    """Looks that came to their end."""
    _limiter: Limiter | None = None
    _levels: dict[str, LoadLevel] = field(default_factory=dict)
    _problems: dict[str, str] = field(default_factory=dict)
    _said: dict[str, str] = field(default_factory=dict)

    async def start(self) -> None:
        """Undo what an earlier run could not, because it was killed."""
        limiter = await self._open_limiter()
        if limiter is not None and limiter.ledger.changed:
            log.info("An earlier run did not end in order; restoring. gpus=%s", ", ".join(limiter.ledger.changed))
            await self.restore()

    async def cycle(self) -> None:
        """Look once, and act. Raises nothing that the world can cause."""
        gpus = await self._observe_gpus()
        if gpus is not None:
            await self._observe_pods()
            await self._carry_out(gpus)
        self.cycles += 1

    async def restore(self) -> tuple[DeviceError, ...]:
        """Make every GPU what it was before our first change; return what could not be."""
        limiter = await self._open_limiter()
        if limiter is None:
            return ()
        try:
            failures = await asyncio.to_thread(limiter.restore_all)
        except LedgerError as exc:
            self._note(STATE, str(exc))
            return ()
        for failure in failures:
            log.error("A GPU keeps our limits. problem=%s", failure)
        return tuple(failures)

    async def _observe_gpus(self) -> tuple[Gpu, ...] | None:
        try:
            gpus = await asyncio.to_thread(self.devices.observe)
        except DeviceError as exc:
            self._note(DRIVER, str(exc))
            self.telemetry.set_gpus(())
            return None
        self._note(DRIVER, "")
        return gpus

    async def _observe_pods(self) -> None:
        held = await self._ask(KUBELET, self.kubelet.held())
        if held is not None:
            self.view.held = held
        replicas = await self._ask(API, self.directory.replicas())
        if replicas is not None:
            self.view.replicas = replicas
        if replicas is not None and any(pod.claimed for pod in self.view.held or ()):
            claimed = await self._ask(API, self.directory.claimed_devices())
            if claimed is not None:
                self.view.claimed = claimed

    async def _carry_out(self, gpus: tuple[Gpu, ...]) -> None:
        held, replicas = self.view.held, self.view.replicas
        if held is None or replicas is None:
            self.telemetry.set_gpus(tuple(GpuReport(gpu, GpuPlan(gpu.uuid), "found") for gpu in gpus))
            return
        limiter = await self._open_limiter()
        holding = holders_by_gpu(gpus, held, self.view.claimed)
        reports = [await self._handle(gpu, holding.get(gpu.uuid, ()), replicas, limiter) for gpu in gpus]
        self.telemetry.set_gpus(tuple(reports))
        self._levels = {gpu.uuid: self._levels[gpu.uuid] for gpu in gpus if gpu.uuid in self._levels}
        energy = {gpu.uuid: gpu.energy_mj / MILLI for gpu in gpus if gpu.energy_mj is not None}
        services = {pod: replica.service for pod, replica in replicas.items()}
        self.book.observe(self.clock(), energy, holding, services, await self.tokens.read(replicas))
        self.telemetry.set_accounts(self.book.accounts)

    async def _handle(
        self, gpu: Gpu, pods: tuple[PodDevices, ...], replicas: dict[str, ReplicaPod], limiter: Limiter | None
    ) -> GpuReport:
        """Decide for one GPU, and write."""
        names = [f"{pod.namespace}/{pod.name}" for pod in pods]
        holders = [replicas[name].holder if name in replicas else Holder(name) for name in names]
        found_mw = limiter.ledger.found(gpu.uuid).power_mw if limiter is not None else None
        level = self._follow(gpu, holders)
        plan = plan_gpu(gpu, gpu.power_limit_mw if found_mw is None else found_mw, holders, level.profile)
        self._say(plan)
        if self.open_ledger is None:
            return GpuReport(gpu, plan, "dry_run" if plan.managed else "found")
        if limiter is None:
            return GpuReport(gpu, plan, "failed" if plan.managed else "found")
        return GpuReport(gpu, plan, await self._write(limiter, gpu, plan))

    async def _write(self, limiter: Limiter, gpu: Gpu, plan: GpuPlan) -> str:
        try:
            await asyncio.to_thread(limiter.apply, gpu, plan.target)
        except DeviceError as exc:
            self._note(gpu.uuid, str(exc))
            return "failed"
        except LedgerError as exc:
            self._note(STATE, str(exc))
            return "failed"
        self._note(gpu.uuid, "")
        return "managed" if plan.managed else "found"

    def _follow(self, gpu: Gpu, holders: list[Holder]) -> LoadLevel:
        power = follows_load(holders)
        if power is None or power.follow_load is None:
            self._levels.pop(gpu.uuid, None)
            return LoadLevel()
        before = self._levels.get(gpu.uuid, LoadLevel())
        level = step_level(before, gpu.use_percent, power.follow_load, self.clock())
        self._levels[gpu.uuid] = level
        return level

    async def _open_limiter(self) -> Limiter | None:
        """Return the writer; None in a dry run, and while the ledger cannot be kept."""
        if self._limiter is None and self.open_ledger is not None:
            try:
                ledger = await asyncio.to_thread(self.open_ledger)
                await asyncio.to_thread(ledger.check)
            except LedgerError as exc:
                self._note(STATE, str(exc))
                return None
            self._note(STATE, "")
            self._limiter = Limiter(self.devices, ledger, self.telemetry.count_write)
        return self._limiter

    async def _ask(self, source: str, answer: Awaitable[T]) -> T | None:
        try:
            value = await answer
        except (errors.RetryLater, errors.ClusterUnavailable) as exc:
            self._note(source, str(exc))
            return None
        self._note(source, "")
        return value

    def _note(self, what: str, problem: str) -> None:
        """Say a problem once, and once that it is over."""
        if what in (DRIVER, KUBELET, API, STATE):
            self.telemetry.set_source(what, not problem)
        before = self._problems.get(what, "")
        if problem and problem != before:
            log.error("Limits stay as they are. what=%s problem=%s", what, problem)
        elif before and not problem:
            log.info("Works again. what=%s", what)
        self._problems[what] = problem

    def _say(self, plan: GpuPlan) -> None:
        """Log a plan when it changes."""
        words = f"power_mw={plan.target.power_mw} clock_mhz={plan.target.clock_mhz} reason={plan.reason}"
        if self._said.get(plan.uuid) != words:
            mode = "would be " if self.open_ledger is None else ""
            log.info("GPU %splanned. gpu=%s %s", mode, plan.uuid, words)
            self._said[plan.uuid] = words
