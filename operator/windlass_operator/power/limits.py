"""Decide the limits of one GPU from who holds it. Pure; knows no driver and no Kubernetes.

A GPU is touched only when every pod that holds a part of it runs with a power policy. Among those that share one, the
most performant limit wins, and the bounds of all of them hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from windlass_operator.api.v1alpha1.power import Power, PowerLimits, PowerProfile
from windlass_operator.domain.power import limits_of
from windlass_operator.power.devices import Gpu

MILLI: Final = 1000


@dataclass(frozen=True, slots=True)
class Holder:
    """A pod that holds a GPU or a part of one."""

    pod: str
    """`namespace/name`."""
    power: Power | None = None
    """Policy of its GPUClass; None: the class has none, or the pod is no replica of ours."""
    profile: PowerProfile = PowerProfile.BALANCED


@dataclass(frozen=True, slots=True)
class Target:
    """Limits to put in force. None: as found."""

    power_mw: int | None = None
    clock_mhz: int | None = None


UNTOUCHED: Final = Target()


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """What is to become of one GPU, and why."""

    uuid: str
    target: Target = UNTOUCHED
    reason: str = "holders and policies are not known yet"

    @property
    def managed(self) -> bool:
        """Whether any limit of ours is wanted."""
        return self.target != UNTOUCHED


def plan_gpu(gpu: Gpu, found_mw: int | None, holders: Sequence[Holder], level: PowerProfile) -> GpuPlan:
    """Decide for one GPU.

    found_mw  the power limit before we changed it, in milliwatts
    level     where the load puts holders under Balanced of a class with `followLoad`
    """
    if not holders:
        return GpuPlan(gpu.uuid, reason="nobody holds it")
    strangers = [holder.pod for holder in holders if holder.power is None]
    if strangers:
        return GpuPlan(gpu.uuid, reason=f"{strangers[0]} runs without a power policy")
    policies = [(holder.power, _effective(holder, level)) for holder in holders if holder.power is not None]
    wanted = [limits_of(power, profile) for power, profile in policies]
    powers = [power for power, _ in policies]
    power_mw, power_words = _choose_power(gpu, found_mw, wanted, powers)
    clock_mhz, clock_words = _choose_clock(gpu, wanted, powers)
    profiles = ", ".join(sorted({profile.value for _, profile in policies}))
    words = [f"held by {', '.join(holder.pod for holder in holders)} with {profiles}", power_words, clock_words]
    return GpuPlan(gpu.uuid, Target(power_mw, clock_mhz), "; ".join(word for word in words if word))


def follows_load(holders: Iterable[Holder]) -> Power | None:
    """Return the first policy by which the load moves this GPU; None where it does not."""
    for holder in holders:
        if holder.power is not None and holder.power.follow_load and holder.profile is PowerProfile.BALANCED:
            return holder.power
    return None


def _effective(holder: Holder, level: PowerProfile) -> PowerProfile:
    return level if follows_load((holder,)) is not None else holder.profile


def _choose_power(
    gpu: Gpu, found_mw: int | None, wanted: Sequence[PowerLimits], powers: Sequence[Power]
) -> tuple[int | None, str]:
    named = [item.power_limit_watts * MILLI for item in wanted if item.power_limit_watts is not None]
    if not named:
        return None, ""
    if found_mw is None or gpu.min_power_mw is None or gpu.max_power_mw is None:
        return None, "its power limit cannot be set"
    highest = max(named)
    if len(named) < len(wanted) and found_mw >= highest:
        return None, "a profile that leaves its power limit as found asks for most"
    low = max(gpu.min_power_mw, *(power.bounds.min_watts * MILLI for power in powers))
    high = min(gpu.max_power_mw, *(power.bounds.max_watts * MILLI for power in powers))
    return _clamp(highest, low, high, "power limit", "mW")


def _choose_clock(gpu: Gpu, wanted: Sequence[PowerLimits], powers: Sequence[Power]) -> tuple[int | None, str]:
    named = [item.max_graphics_clock_mhz for item in wanted if item.max_graphics_clock_mhz is not None]
    if len(named) < len(wanted):
        return None, ""  # one of the sharers wants it free
    if gpu.max_clock_mhz is None:
        return None, "its clock cannot be capped"
    low = max((power.bounds.min_graphics_clock_mhz or 0 for power in powers), default=0)
    high = min(gpu.max_clock_mhz, *(power.bounds.max_graphics_clock_mhz or gpu.max_clock_mhz for power in powers))
    return _clamp(max(named), low, high, "graphics clock", "MHz")


def _clamp(value: int, low: int, high: int, what: str, unit: str) -> tuple[int | None, str]:
    if low > high:
        return None, f"{what} stays as found: bounds from {low} {unit} and bounds to {high} {unit} leave no room"
    return min(max(value, low), high), ""
