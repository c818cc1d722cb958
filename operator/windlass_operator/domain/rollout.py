"""Decide how pods are replaced: without dropping below the promise, and without waiting for a GPU that never comes.

One pod at a time, and each time anew: start the successor first where a device is free for it (surge), else stop one
pod whose successor takes its device (one out, one in). The cluster's own workload controller carries each step out; we
choose between its two ways, or tell it to wait.

  no GPU                                          surge
  a device is free, and no rollout is ahead       surge
  a replica more than promised has a device       one out, one in
  a pod to replace does not serve                 one out, one in: stopping it costs nothing
  a device is free, another rollout is ahead      wait for the turn: nothing is touched
  none of these                                   blocked: the new pod queues for a device, the old ones serve
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from windlass_operator.domain.decision import Decision, decide
from windlass_operator.domain.snapshot import Revision, Workload

SETTLE_S: Final = 20.0
"""How long pods must find no place before that is believed: the scheduler looks again seconds after a pod has left."""


HOPELESS_RESTARTS: Final = 5
"""Restarts after which a replica is given up: about five minutes, as the kubelet doubles its pauses from 10 s."""


class RolloutWay(enum.StrEnum):
    """How the next pod is replaced."""

    SURGE = "Surge"
    """The new pod starts, then an old one stops."""
    EXCHANGE = "OneOutOneIn"
    """An old pod stops, then the new one starts in its place."""
    WAIT = "Wait"
    """Another rollout uses the free device first."""
    BLOCKED = "Blocked"
    """No device is free, and the promise forbids stopping a pod first."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """How far the pods of one service are on the way to a pod template."""

    new: int = 0
    new_ready: int = 0
    old: int = 0
    """Pods of any other template."""
    old_ready: int = 0
    refused: int = 0
    """Pods that find no place, and no leaving pod will make one for them."""
    moving: bool = False
    """Whether the new pods need devices of another class than old ones hold."""

    @property
    def rolling(self) -> bool:
        """Whether pods are left to replace."""
        return self.old > 0

    @property
    def old_broken(self) -> int:
        """Pods to replace that do not serve."""
        return self.old - self.old_ready

    @property
    def ready(self) -> int:
        """Pods that serve."""
        return self.new_ready + self.old_ready

    def surplus(self, replicas: int) -> int:
        """Pods beyond the wanted number."""
        return max(0, self.new + self.old - replicas)

    def short(self, replicas: int) -> int:
        """Wanted pods that have no place, whatever is replaced."""
        return max(0, self.refused - self.surplus(replicas))


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """Never both numbers zero; stopping a pod never breaks `min_available`, except where a broken pod makes way."""

    max_surge: int
    max_unavailable: int
    min_available: int
    """Replicas that stay ready, as the disruption budget demands too; 0 means no budget."""
    blocked: bool = False
    """True: a rollout now waits for a device, because stopping a replica first would break `min_available`."""
    reason: str = ""
    paused: bool = False
    """True: the pods stay as they are until it is this rollout's turn."""
    target: str = ""
    """Fingerprint of the pod template that is rolled out; empty when nothing tells."""
    rolling: bool = False
    """Whether pods are left to replace."""

    floor: int = 0
    """Replicas that an autoscaler leaves alone meanwhile; 0 while nothing is replaced."""
    takes_device: bool = False
    """Whether the next pod starts in a free device, which other rollouts may count too."""

    @property
    def way(self) -> RolloutWay:
        """What is done next."""
        if self.paused:
            return RolloutWay.WAIT
        if self.blocked:
            return RolloutWay.BLOCKED
        return RolloutWay.SURGE if self.max_surge else RolloutWay.EXCHANGE


def observe_replacement(workload: Workload, target: str, gpu_class: str = "") -> Replacement | None:
    """Sort the pods by whether they are of the target; None while nothing tells whether the live template is another.

    An empty target stands for the template as it is. `gpu_class` is the class that the target asks for.
    """
    if not workload.template:
        if target and not workload.replicas:
            return Replacement()
        found = _sort_by_age(workload, gpu_class)
        return found if found.rolling else None
    if workload.observed and target in ("", workload.template):
        return _sort_by_age(workload, gpu_class)
    target = target or workload.template
    return _sort(workload, [one for one in workload.revisions if one.template == target], gpu_class)


def is_rolling(workload: Workload) -> bool:
    """Whether pods are left to replace, as the workload stands."""
    replacement = observe_replacement(workload, "")
    return replacement is not None and replacement.rolling


def _sort_by_age(workload: Workload, gpu_class: str) -> Replacement:
    newest = [one for one in workload.revisions if one.newest]
    if workload.revisions:
        return _sort(workload, newest, gpu_class)
    # Only counts are known, as on one machine.
    old = max(0, workload.replicas - workload.updated)
    moving = bool(old) and gpu_class not in ("", workload.gpu_class)
    old_ready = min(old, max(0, workload.ready - workload.updated_ready))
    return Replacement(workload.updated, workload.updated_ready, old, old_ready, refused_of(workload), moving)


def _sort(workload: Workload, matching: list[Revision], gpu_class: str) -> Replacement:
    others = [one for one in workload.revisions if one not in matching]
    return Replacement(
        new=sum(one.pods for one in matching),
        new_ready=sum(one.ready for one in matching),
        old=sum(one.pods for one in others),
        old_ready=sum(one.ready for one in others),
        refused=refused_of(workload),
        moving=bool(gpu_class) and any(one.gpu_class != gpu_class for one in others),
    )


def plan_rollout(
    replicas: int,
    min_available: int,
    room: int | None,
    *,
    on_gpu: bool,
    replacement: Replacement | None = None,
    ahead: bool = False,
) -> RolloutPlan:
    """Choose how the next pod is replaced.

    `room`: further replicas that devices and quota allow right now, after what rollouts ahead of this one will take;
    None while that is unknown. Ignored without GPU.
    `replacement`: None while it is unknown whether pods are left to replace.
    `ahead`: devices are free, and rollouts ahead of this one will take them.
    """
    promise = min(min_available, replicas)
    state = replacement or Replacement()
    if replacement is not None and not state.rolling:
        return _plan_steady(replicas, promise, on_gpu)
    if not on_gpu and not state.refused:
        return RolloutPlan(1, 0, promise, reason="a new pod needs no GPU, so it starts before an old one stops")
    if on_gpu and room is not None and room > 0:
        return RolloutPlan(1, 0, promise, reason="a device is free, so a new pod starts before an old one stops")
    if replicas == 0:
        return RolloutPlan(1, 0, 0, reason="nothing runs")
    shortage = _describe_shortage(room, bool(state.refused), ahead)
    seat = "device" if on_gpu else "place on a node"
    if not state.moving:
        plan = _plan_exchange(replicas, promise, state, shortage, seat)
        if plan is not None:
            return plan
    if ahead and not state.refused:
        reason = f"{shortage}; the old pods keep serving until it is this one's turn"
        return RolloutPlan(1, 0, promise, paused=True, reason=reason)
    return _plan_blocked(replicas, promise, room, shortage, state, seat)


def _plan_exchange(replicas: int, promise: int, state: Replacement, shortage: str, seat: str) -> RolloutPlan | None:
    """Stop a pod before its successor starts; None where that would break the promise.

    The controller keeps `replicas - max_unavailable` ready, and pods without a place are unavailable already.
    """
    short = state.short(replicas)
    placed = replicas - short
    if placed > promise:
        reason = (
            f"{shortage}, so one pod stops, then its successor takes the {seat}; {placed - 1} of {replicas} stay up, "
            f"minAvailable is {promise}"
        )
        return RolloutPlan(0, 1 + short, promise, reason=reason)
    if not state.old_broken:
        return None
    reason = f"{shortage}, and an old pod does not serve, so it makes way first, which costs nothing"
    if state.surplus(replicas) > state.new - state.new_ready:
        # There is a pod more than wanted, so the controller drops a broken one by itself.
        return RolloutPlan(1, 0, promise, reason=reason)
    if state.ready < placed:
        return RolloutPlan(0, 1 + short, promise, reason=reason)
    return None


def _describe_shortage(room: int | None, refused: bool, ahead: bool) -> str:
    if refused:
        return "a new pod finds no place"
    if room is None:
        return "free devices are unknown here, so none is assumed"
    return "another rollout uses the free device first" if ahead else "no device is free"


def _plan_steady(replicas: int, promise: int, on_gpu: bool) -> RolloutPlan:
    """Nothing is left to replace. The same words whatever is free, so that neighbours do not rewrite the status."""
    if not on_gpu:
        reason = "a new pod needs no GPU, so it starts before an old one stops"
    elif replicas > promise:
        reason = "where a device is free then, a new pod starts before an old one stops, else one stops first"
    else:
        reason = (
            f"a new pod starts before an old one stops; minAvailable {promise} of {replicas} forbids stopping one "
            "first, so without a free device a rollout waits"
        )
    return RolloutPlan(1, 0, promise, reason=reason)


def _plan_blocked(
    replicas: int, promise: int, room: int | None, shortage: str, state: Replacement, seat: str
) -> RolloutPlan:
    why = (
        "a stopped pod would free a device of the class that the service leaves"
        if state.moving
        else f"minAvailable {promise} of {replicas} forbids stopping one first"
    )
    lower = "" if state.moving else ", lower spec.rollout.minAvailable"
    ways_out = f"free a {seat}{lower}, or raise the quota"
    short = state.short(replicas)
    return RolloutPlan(
        # A pod that waits for a device is there already where the service is short of one; a second is of no use.
        0 if short else 1,
        short,
        promise,
        blocked=room is not None or state.refused > 0,
        reason=f"{shortage}, and {why}: without a {seat} a rollout waits and the old pods keep serving; {ways_out}",
    )


def refused_of(workload: Workload) -> int:
    """Pods that find no place, and no leaving pod will make one for them."""
    return max(0, workload.unplaced - workload.leaving)


def rollout_room(
    free_slots: int | None, quota_spare: int | None, devices_per_replica: int, workload: Workload
) -> int | None:
    """Further replicas that devices and quota allow, as a rollout sees it.

    free_slots   places for a replica on nodes with enough free devices each; None while unknown
    quota_spare  devices that the quota still gives; None without one

    A surge pod that exists already counts as room, and so does the place of a pod that leaves, unless its successor is
    not there yet; else the plan would flip in the middle of a rollout. While scheduler or quota hold pods back,
    somebody outside our books has the devices: then there is no room, whatever we count.
    """
    if refused_of(workload):
        return 0
    if free_slots is None:
        return None
    spare = free_slots if quota_spare is None else min(free_slots, quota_spare // devices_per_replica)
    surging = max(0, workload.replicas - workload.wanted)
    missing = max(0, workload.wanted - workload.replicas)
    return max(0, spare + max(0, workload.leaving - missing) + surging)


def explain_rollout(plan: RolloutPlan) -> Decision:
    """Say how pods are replaced."""
    words = "waits for its turn" if plan.paused else f"surge {plan.max_surge}, unavailable {plan.max_unavailable}"
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
