"""Shipped fakes of what the agent looks at, for unit tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from windlass_operator.power.devices import Cause, DeviceError, Gpu
from windlass_operator.power.holding import ClaimedDevice, PodDevices
from windlass_operator.power.pods import ReplicaPod


@dataclass
class FakeDevices:
    """GPUs in memory. `failures` maps `(operation, uuid)` to why it fails; `gone` GPUs are not listed."""

    gpus: dict[str, Gpu]
    caps: dict[str, int] = field(default_factory=dict)
    """Clock caps in force."""
    failures: dict[tuple[str, str], Cause] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    driver: bool = True
    writes: list[tuple[str, str, int]] = field(default_factory=list)
    """Operation, GPU and value of each write that worked, oldest first."""

    def observe(self) -> tuple[Gpu, ...]:
        if not self.driver:
            raise DeviceError("open the library: not found", Cause.NO_DRIVER)
        return tuple(gpu for uuid, gpu in sorted(self.gpus.items()) if uuid not in self.gone)

    def set_power_limit(self, uuid: str, milliwatts: int) -> None:
        self._fail("set_power_limit", uuid)
        gpu = self.gpus[uuid]
        if not (gpu.min_power_mw or 0) <= milliwatts <= (gpu.max_power_mw or 0):
            raise DeviceError(f"{uuid}: invalid argument", Cause.OTHER)
        self.gpus[uuid] = dataclasses.replace(gpu, power_limit_mw=milliwatts)
        self.writes.append(("set_power_limit", uuid, milliwatts))

    def cap_clock(self, uuid: str, mhz: int) -> None:
        self._fail("cap_clock", uuid)
        self.caps[uuid] = mhz
        self.writes.append(("cap_clock", uuid, mhz))

    def free_clock(self, uuid: str) -> None:
        self._fail("free_clock", uuid)
        self.caps.pop(uuid, None)
        self.writes.append(("free_clock", uuid, 0))

    def close(self) -> None:
        """Nothing to give back."""

    def _fail(self, operation: str, uuid: str) -> None:
        cause = Cause.LOST if uuid in self.gone else self.failures.get((operation, uuid))
        if cause is not None:
            raise DeviceError(f"{uuid}: {operation}: {cause}", cause)


@dataclass
class FakeNode:
    """Kubelet, API server and replicas of one node. An exception in `kubelet_problem` or `api_problem` is raised."""

    pods: tuple[PodDevices, ...] = ()
    known: dict[str, ReplicaPod] = field(default_factory=dict)
    claimed: dict[ClaimedDevice, str] = field(default_factory=dict)
    generated: dict[str, float] = field(default_factory=dict)
    kubelet_problem: Exception | None = None
    api_problem: Exception | None = None

    async def held(self) -> tuple[PodDevices, ...]:
        if self.kubelet_problem is not None:
            raise self.kubelet_problem
        return self.pods

    async def replicas(self) -> dict[str, ReplicaPod]:
        if self.api_problem is not None:
            raise self.api_problem
        return self.known

    async def claimed_devices(self) -> dict[ClaimedDevice, str]:
        return self.claimed

    async def read(self, replicas: Mapping[str, ReplicaPod]) -> dict[str, float]:
        return {pod: tokens for pod, tokens in self.generated.items() if pod in replicas}
