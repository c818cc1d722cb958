"""Decide how pods are replaced: without dropping below the promise, and without waiting for a GPU that never comes."""

from __future__ import annotations

from dataclasses import dataclass

from windlass_operator.domain.decision import Decision, decide
from windlass_operator.domain.snapshot import Workload


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """Never both zero; never below `min_available`."""

    max_surge: int
    max_unavailable: int
    min_available: int
    """Replicas that stay ready, as the disruption budget demands too; 0 means no budget."""
    blocked: bool = False
    """True: a rollout now waits for a device, because stopping a replica first would break `min_available`."""
    reason: str = ""


def plan_rollout(replicas: int, min_available: int, room: int | None, *, on_gpu: bool) -> RolloutPlan:
    """Choose between one more and one fewer pod.

    `room`: further replicas that devices and quota allow right now; None while that is unknown. Ignored without GPU.
    """
    promise = min(min_available, replicas)
    if not on_gpu:
        return RolloutPlan(1, 0, promise, reason="a new pod needs no GPU, so it starts before an old one stops")
    if room is not None and room > 0:
        return RolloutPlan(1, 0, promise, reason="a device is free, so a new pod starts before an old one stops")
    shortage = "nodes are unknown here, so no free device is assumed" if room is None else "no device is free"
    if replicas > promise:
        return RolloutPlan(
            0,
            1,
            promise,
            reason=f"{shortage}, so one pod stops, then its successor takes the device; "
            f"{replicas - 1} of {replicas} stay up, minAvailable is {promise}",
        )
    if replicas == 0:
        return RolloutPlan(1, 0, 0, reason="nothing runs")
    return RolloutPlan(
        1,
        0,
        promise,
        blocked=room is not None,
        reason=f"{shortage}, and minAvailable {promise} of {replicas} forbids stopping one first: without a device "
        "a rollout waits and the old pods keep serving; free a device, raise the quota, or lower "
        "spec.rollout.minAvailable",
    )


def rollout_room(
    free_devices: int | None, quota_spare: int | None, devices_per_replica: int, workload: Workload
) -> int | None:
    """Further replicas that devices and quota allow, as a rollout sees it.

    A surge pod that exists already counts as room, else the plan would flip in the middle of a rollout. While scheduler
    or quota hold pods back, somebody outside our books has the devices: then there is no room, whatever we count.
    """
    if workload.pending_reason:
        return 0
    if free_devices is None:
        return None
    spare = free_devices if quota_spare is None else min(free_devices, quota_spare)
    surging = max(0, workload.replicas - workload.wanted)
    return max(0, spare // devices_per_replica + surging)


def explain_rollout(plan: RolloutPlan) -> Decision:
    """Say how pods are replaced."""
    words = f"surge {plan.max_surge}, unavailable {plan.max_unavailable}"
    return decide("rollout", f"{words} (blocked)" if plan.blocked else words, plan.reason)


def explain_disruptions(replicas: int, plan: RolloutPlan) -> Decision:
    """Say what a node drain may do."""
    if plan.min_available == 0:
        return decide(
            "disruption budget", "none", "spec.rollout.minAvailable is 0, so node drains may stop every replica"
        )
    choice = f"at least {plan.min_available} ready"
    if replicas <= plan.min_available:
        return decide(
            "disruption budget",
            choice,
            f"with {replicas} of {replicas} replicas promised, a node drain waits until "
            "somebody moves them; add a replica or lower spec.rollout.minAvailable",
        )
    return decide(
        "disruption budget", choice, f"node drains may stop {replicas - plan.min_available} of {replicas} at once"
    )
