"""Tell a rollout as steps: what was done, what is being done, and what is left, in `status.rollout`.

Steps that replace pods in the same way are told as one, so that a thousand replicas are as short as two. What was done
is remembered in the status itself; nothing is decided by it but the place among waiting rollouts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from windlass_operator.api.v1alpha1.inference_service import (
    RolloutState,
    RolloutStatus,
    RolloutStep,
    StepAction,
    StepState,
)
from windlass_operator.domain.rollout import Replacement, RolloutPlan, RolloutWay

_MOST_STEPS: Final = 8
_KEPT: Final = "these pods run this revision already"
_STATES: Final = {
    RolloutWay.SURGE: (RolloutState.IN_PROGRESS, StepState.RUNNING),
    RolloutWay.EXCHANGE: (RolloutState.IN_PROGRESS, StepState.RUNNING),
    RolloutWay.WAIT: (RolloutState.WAITING, StepState.WAITING),
    RolloutWay.BLOCKED: (RolloutState.BLOCKED, StepState.BLOCKED),
}


def plan_rollout_status(
    plan: RolloutPlan,
    replacement: Replacement | None,
    replicas: int,
    devices_per_replica: int,
    previous: RolloutStatus | None,
    now: str,
) -> RolloutStatus | None:
    """Tell how far the rollout is; the last one stays until the next begins.

    `replacement` is what runs after the apply. The first pods of a service replace none, so they are no rollout.
    """
    if replicas == 0:
        return previous if previous is None or previous.state is RolloutState.COMPLETE else None
    if replacement is None or not replacement.rolling:
        return _conclude(plan, replicas, previous, now)
    under_way = previous if previous is not None and previous.state is not RolloutState.COMPLETE else None
    same = under_way is not None and under_way.revision == plan.target
    replaced = max(0, min(replicas - replacement.old, replacement.new_ready))
    state, step_state = _STATES[plan.way]
    running = _step(plan, step_state, 1, devices_per_replica)
    done = _done_steps(under_way.steps if under_way is not None and same else None, replaced, running)
    left = replicas - replaced - 1
    pending = [_step(plan, StepState.PENDING, left, devices_per_replica)] if left > 0 else []
    return RolloutStatus(
        revision=plan.target,
        state=state,
        started=under_way.started if under_way is not None else now,
        progress=f"{replaced}/{replicas}",
        steps=_bound([*done, running, *pending]),
    )


def _step(plan: RolloutPlan, state: StepState, replicas: int, devices: int) -> RolloutStep:
    surges = plan.max_surge > 0
    return RolloutStep(
        action=StepAction.SURGE if surges else StepAction.ONE_OUT_ONE_IN,
        replicas=replicas,
        state=state,
        free_devices=devices if surges else 0,
        reason="" if state is StepState.PENDING else plan.reason[:1024],
    )


def _done_steps(before: Iterable[RolloutStep] | None, replaced: int, running: RolloutStep) -> list[RolloutStep]:
    """What was done by now. Pods replaced since the last look were replaced in the way that was running then.

    `before` is None for a plan that begins: pods that it need not replace have the template already, as after an edit
    that is taken back.
    """
    if before is None:
        kept = {"state": StepState.DONE, "replicas": replaced, "free_devices": 0, "reason": _KEPT}
        return [running.model_copy(update=kept)] if replaced else []
    done: list[RolloutStep] = []
    way = running
    for step in before:
        if step.state is StepState.DONE:
            done.append(step)
        elif step.state is StepState.RUNNING:
            way = step
    missing = replaced - sum(step.replicas for step in done)
    if missing > 0:
        done = _extend(done, way.model_copy(update={"state": StepState.DONE, "replicas": missing}))
    while done and missing < 0:  # new pods that failed again, or a smaller service
        last = done.pop()
        if last.replicas + missing > 0:
            done.append(last.model_copy(update={"replicas": last.replicas + missing}))
        missing += last.replicas
    return done


def _extend(done: list[RolloutStep], step: RolloutStep) -> list[RolloutStep]:
    if done and done[-1].action is step.action:
        last = done[-1]
        return [*done[:-1], last.model_copy(update={"replicas": last.replicas + step.replicas})]
    return [*done, step]


def _bound(steps: list[RolloutStep]) -> list[RolloutStep]:
    """Merge the oldest steps where there are too many: how they were done matters least."""
    while len(steps) > _MOST_STEPS:
        first, second, *rest = steps
        steps = [second.model_copy(update={"replicas": first.replicas + second.replicas}), *rest]
    return steps


def _conclude(plan: RolloutPlan, replicas: int, previous: RolloutStatus | None, now: str) -> RolloutStatus | None:
    if previous is None or previous.state is RolloutState.COMPLETE:
        return previous
    steps: list[RolloutStep] = []
    if previous.revision == plan.target:
        steps = [step for step in previous.steps if step.state is StepState.DONE]
        for step in previous.steps:
            if step.state is not StepState.DONE:
                steps = _extend(steps, step.model_copy(update={"state": StepState.DONE}))
    return RolloutStatus(
        revision=plan.target,
        state=RolloutState.COMPLETE,
        started=previous.started,
        finished=now,
        progress=f"{replicas}/{replicas}",
        steps=_bound(steps),
    )
