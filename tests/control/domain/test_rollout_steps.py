"""The plan as users read it: bounded, true to what happened, and still once nothing moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_operator.api.v1alpha1.inference_service import RolloutState, RolloutStatus, StepAction, StepState
from windlass_operator.domain.rollout import Replacement, RolloutPlan
from windlass_operator.domain.rollout_steps import plan_rollout_status

NOW, LATER = "2026-03-01T10:00:00Z", "2026-03-01T11:00:00Z"
SURGE = RolloutPlan(1, 0, 1, reason="a device is free", target="b", rolling=True)
EXCHANGE = RolloutPlan(0, 1, 1, reason="no device is free", target="b", rolling=True)
WAIT = RolloutPlan(1, 0, 1, reason="another is ahead", target="b", rolling=True, paused=True)
BLOCKED = RolloutPlan(1, 0, 3, reason="free a device", target="b", rolling=True, blocked=True)


def report(plan: RolloutPlan, done: int, previous=None, *, now: str = NOW, replicas: int = 3) -> RolloutStatus | None:
    """`done` pods of three are replaced, and everything serves."""
    state = Replacement(new=done, new_ready=done, old=replicas - done, old_ready=replicas - done)
    return plan_rollout_status(plan, state, replicas, 1, previous, now)


def steps(status: RolloutStatus) -> list[tuple[str, int, str]]:
    return [(step.action.value, step.replicas, step.state.value) for step in status.steps]


@pytest.mark.parametrize(
    ("plan", "expected", "state"),
    [
        pytest.param(SURGE, [("Surge", 1, "Running"), ("Surge", 2, "Pending")], "InProgress", id="surge"),
        pytest.param(
            EXCHANGE, [("OneOutOneIn", 1, "Running"), ("OneOutOneIn", 2, "Pending")], "InProgress", id="one out, one in"
        ),
        pytest.param(WAIT, [("Surge", 1, "Waiting"), ("Surge", 2, "Pending")], "Waiting", id="behind another"),
        pytest.param(BLOCKED, [("Surge", 1, "Blocked"), ("Surge", 2, "Pending")], "Blocked", id="blocked"),
    ],
)
def test_the_plan_is_told_before_the_first_pod_is_touched(plan, expected, state):
    status = report(plan, 0)

    assert steps(status) == expected
    assert (status.state.value, status.started, status.progress) == (state, NOW, "0/3")
    assert status.steps[0].reason == plan.reason


def test_a_surge_uses_a_free_device_and_an_exchange_none():
    assert [report(plan, 0).steps[0].free_devices for plan in (SURGE, EXCHANGE)] == [1, 0]


def test_what_was_done_keeps_the_way_in_which_it_was_done():
    first = report(SURGE, 0)
    second = report(EXCHANGE, 1, first)
    third = report(EXCHANGE, 2, second)

    done = report(EXCHANGE, 3, third, now=LATER)

    assert steps(third) == [("Surge", 1, "Done"), ("OneOutOneIn", 1, "Done"), ("OneOutOneIn", 1, "Running")]
    assert steps(done) == [("Surge", 1, "Done"), ("OneOutOneIn", 2, "Done")]
    assert (done.state, done.started, done.finished, done.progress) == (RolloutState.COMPLETE, NOW, LATER, "3/3")


def test_another_edit_replaces_the_rest_of_the_plan_and_keeps_the_place():
    midway = report(SURGE, 1, report(SURGE, 0))
    other = RolloutPlan(1, 0, 1, reason="a device is free", target="c", rolling=True)

    status = report(other, 0, midway, now=LATER)

    assert (status.revision, status.started) == ("c", NOW)
    assert steps(status) == [("Surge", 1, "Running"), ("Surge", 2, "Pending")]


def test_taking_an_edit_back_counts_the_pods_that_were_never_touched():
    midway = report(SURGE, 1, report(SURGE, 0))
    back = RolloutPlan(1, 0, 1, reason="a device is free", target="a", rolling=True)

    status = report(back, 2, midway)

    assert steps(status) == [("Surge", 2, "Done"), ("Surge", 1, "Running")]
    assert "already" in status.steps[0].reason


def test_a_plan_that_was_taken_back_before_it_began_ends_without_steps():
    waiting = report(WAIT, 0)

    status = report(RolloutPlan(1, 0, 1, target="a"), 3, waiting, now=LATER)

    assert (status.revision, status.state, status.steps) == ("a", RolloutState.COMPLETE, [])


def test_the_first_pods_of_a_service_are_no_rollout():
    assert plan_rollout_status(SURGE, Replacement(new=1), 3, 1, None, NOW) is None


def test_a_service_that_is_stopped_midway_tells_of_no_rollout():
    assert report(SURGE, 0, report(SURGE, 0), replicas=0) is None


@given(
    st.lists(st.tuples(st.sampled_from([SURGE, EXCHANGE, WAIT, BLOCKED]), st.integers(0, 3)), max_size=30),
    st.integers(1, 50),
)
def test_a_rollout_of_any_history_is_short_and_adds_up(history, replicas):
    status, done = None, 0
    for plan, more in history:
        done = max(0, min(replicas - 1, done + more - 1))
        status = report(plan, done, status, replicas=replicas)
        assert status is not None
        assert len(status.steps) <= 8
        assert sum(step.replicas for step in status.steps) == replicas
        assert sum(step.replicas for step in status.steps if step.state is StepState.DONE) == done
        assert report(plan, done, status, now=LATER, replicas=replicas) == status
        assert {step.action for step in status.steps} <= set(StepAction)
