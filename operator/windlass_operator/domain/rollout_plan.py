"""Decide how the pods of one service are replaced, with the fleet in view: devices, quota, and whose turn it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.domain.admission import Admission, key_of
from windlass_operator.domain.fleet_view import FleetView
from windlass_operator.domain.rollout import (
    SETTLE_S,
    RolloutPlan,
    RolloutWay,
    observe_replacement,
    plan_rollout,
    rollout_room,
)
from windlass_operator.domain.rollout_turns import Share, Turns, is_surging, observe_turns
from windlass_operator.domain.scaling import ScalingPlan
from windlass_operator.domain.snapshot import Workload


@dataclass(frozen=True, slots=True)
class RolloutClues:
    """What a plan cannot see in a snapshot."""

    template: str = ""
    """Fingerprint of the pod template that the very plan renders to; empty stands for the live one."""
    refused_s: float = math.inf
    """How long pods have found no place, in seconds."""


def plan_replacement(
    service: InferenceService, verdict: Admission, replicas: int, view: FleetView, clues: RolloutClues
) -> RolloutPlan:
    """Choose how the next pod is replaced."""
    workload, template = view.workload_of(key_of(service)), clues.template
    if clues.refused_s < SETTLE_S:
        workload = replace(workload, unplaced=0)
    candidate = verdict.candidate
    replacement = observe_replacement(workload, template, candidate.name if candidate else "")
    if replacement is not None and replacement.moving:
        workload = replace(workload, leaving=0)  # what leaves frees devices of the earlier class
    accelerator = service.spec.accelerator
    if replacement is not None and replacement.rolling and candidate is not None and accelerator is not None:
        turns = observe_turns(key_of(service), candidate.name, accelerator.count, view)
    else:
        turns = Turns()
    room = _room(service, verdict, view, workload, turns.claimed, Share())
    plan = plan_rollout(
        replicas,
        service.spec.rollout.min_available,
        room,
        on_gpu=candidate is not None,
        replacement=replacement,
        ahead=room == 0 and _room(service, verdict, view, workload, Share(), turns.lent) != 0,
    )
    if replacement is None or not replacement.rolling:
        return replace(plan, target=template or workload.template)
    return replace(
        plan,
        target=template or workload.template,
        rolling=True,
        floor=max(replicas - replacement.short(replicas), min(replicas, plan.min_available + plan.max_unavailable)),
        takes_device=candidate is not None and plan.way is RolloutWay.SURGE and not is_surging(workload),
    )


def hold_floor(scaling: ScalingPlan | None, rollout: RolloutPlan) -> ScalingPlan | None:
    """Keep an autoscaler from shrinking a service while its pods are replaced.

    It would take serving pods for what the rollout has out already, and the two would add up to less than the promise.
    """
    if scaling is None:
        return None
    return replace(scaling, min_replicas=max(scaling.min_replicas, min(rollout.floor, scaling.max_replicas)))


def _room(
    service: InferenceService, verdict: Admission, view: FleetView, workload: Workload, claimed: Share, lent: Share
) -> int | None:
    accelerator = service.spec.accelerator
    if verdict.candidate is None or accelerator is None:
        return None
    supply, count, candidate = view.supply, accelerator.count, verdict.candidate
    claimed_classes = [one.name for one in candidate.claimed]
    slots = supply.claim_slots(claimed_classes, count) if claimed_classes else supply.slots(candidate.name, count)
    spare = _spare(verdict, workload)
    return rollout_room(
        None if slots is None else _without(slots, claimed.slots) + lent.slots,
        None if spare is None else _without(spare, claimed.quota) + lent.quota,
        count,
        workload,
    )


def _spare(verdict: Admission, workload: Workload) -> int | None:
    """Devices that the quota still gives; while the service moves, what it keeps for pods left behind is its own."""
    if verdict.grant is None:
        return None
    kept = workload.devices_to_come - workload.devices if workload.gpu_class == verdict.grant.gpu_class else 0
    return verdict.grant.spare_devices + kept


def _without(free: int, claimed: int) -> int:
    """Claims take what is free, and nothing that the service's own pods hold already."""
    return free - min(claimed, max(0, free))
