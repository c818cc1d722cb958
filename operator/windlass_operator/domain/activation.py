"""Decide when a service falls asleep and wakes, and which of its pods should go first. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from windlass_operator.domain.scaling import ScalingPlan, Sleep


@dataclass(frozen=True, slots=True)
class Activation:
    """What to do with the number of replicas now."""

    replicas: int | None = None
    """None: leave it."""
    idle_since_s: float | None = None
    """To be remembered until the next look; None while somebody asks, or nobody knows."""
    reason: str = ""


def plan_activation(
    scaling: ScalingPlan,
    wanted: int,
    demand: float | None,
    idle_since_s: float | None,
    now_s: float,
) -> Activation:
    """Wake a service that is asked for; put one to sleep that nobody asked for long enough.

    `demand`: requests at gateways and replicas; None while some of them are not heard, which keeps it awake.
    Falling asleep is the operator's business only where no autoscaler can.
    """
    if wanted == 0:
        if not demand:
            return Activation()
        replicas = replicas_for(scaling, demand)
        return Activation(
            replicas, reason=f"{demand:g} requests wait, {scaling.requests_per_replica} start one replica"
        )
    if scaling.sleep is not Sleep.OPERATOR or demand is None or demand > 0:
        return Activation()
    since = now_s if idle_since_s is None else idle_since_s
    if now_s - since < scaling.scale_down_delay_s or wanted > 1:
        return Activation(idle_since_s=since)
    return Activation(0, reason=f"nobody has asked for {now_s - since:.0f} s")


def replicas_for(scaling: ScalingPlan, demand: float) -> int:
    """How many replicas so many waiting requests start: at once, not one after the other."""
    return min(scaling.max_replicas, max(1, math.ceil(demand / scaling.requests_per_replica)))


@dataclass(frozen=True, slots=True)
class PodLoad:
    """How much would be lost with a pod."""

    running: float = 0.0
    """Requests it computes."""
    cache_use: float = 0.0
    """Share of its key/value pages in use: what other requests could reuse."""


def plan_deletion_costs(loads: Mapping[str, PodLoad], costs: Mapping[str, int]) -> dict[str, int]:
    """Return the deletion costs to write, by pod: empty while the costs at hand give the same order.

    The coldest pod has the lowest cost and goes first: fewest requests, then the least that a cache would have to be
    filled with again. Costs are ranks, so that a busier minute of all of them writes nothing.
    """
    order = sorted(loads, key=lambda pod: (loads[pod].running, loads[pod].cache_use, pod))
    if _is_ascending([costs.get(pod) for pod in order]):
        return {}
    return {pod: rank for rank, pod in enumerate(order) if costs.get(pod) != rank}


def _is_ascending(costs: list[int | None]) -> bool:
    known = [cost for cost in costs if cost is not None]
    return len(known) == len(costs) and all(one < other for one, other in itertools.pairwise(known))
