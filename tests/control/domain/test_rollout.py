"""Replacing pods: a rollout keeps the promise of minAvailable and never waits for a GPU that its own old pods hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.builders import build_workload
from windlass_operator.domain.rollout import explain_disruptions, plan_rollout, rollout_room


@pytest.mark.parametrize(
    ("replicas", "min_available", "room", "expected"),
    [
        pytest.param(3, 1, 2, (1, 0, False), id="a free device: the new pod starts first"),
        pytest.param(3, 1, 0, (0, 1, False), id="full: one out, one in"),
        pytest.param(3, 2, 0, (0, 1, False), id="full, and one pod more than promised"),
        pytest.param(3, 3, 0, (1, 0, True), id="full, and every pod promised: new pods queue, old ones serve"),
        pytest.param(1, 1, 0, (1, 0, True), id="a single promised replica on a full fleet waits"),
        pytest.param(1, 0, 0, (0, 1, False), id="a single replica without a promise makes way"),
        pytest.param(1, 1, 1, (1, 0, False), id="a single replica with a free device"),
        pytest.param(2, 1, None, (0, 1, False), id="unknown nodes: what can never deadlock"),
        pytest.param(1, 1, None, (1, 0, False), id="unknown nodes: the promise comes first"),
        pytest.param(0, 1, 0, (1, 0, False), id="nothing runs"),
    ],
)
def test_a_gpu_rollout_follows_room_and_promise(replicas, min_available, room, expected):
    plan = plan_rollout(replicas, min_available, room, on_gpu=True)

    assert (plan.max_surge, plan.max_unavailable, plan.blocked) == expected


def test_a_cpu_rollout_always_starts_the_new_pod_first():
    plan = plan_rollout(3, 1, 0, on_gpu=False)

    assert (plan.max_surge, plan.max_unavailable) == (1, 0)


@given(st.integers(0, 50), st.integers(0, 60), st.none() | st.integers(0, 9), st.booleans())
def test_a_rollout_can_always_move_and_never_breaks_the_promise(replicas, min_available, room, on_gpu):
    plan = plan_rollout(replicas, min_available, room, on_gpu=on_gpu)

    assert plan.max_surge + plan.max_unavailable >= 1
    assert replicas - plan.max_unavailable >= min(min_available, replicas)
    assert plan.blocked == (on_gpu and room == 0 and 0 < replicas <= min_available)


def test_a_blocked_rollout_names_the_ways_out():
    reason = plan_rollout(2, 2, 0, on_gpu=True).reason

    assert "free a device" in reason
    assert "spec.rollout.minAvailable" in reason


@pytest.mark.parametrize(
    ("free", "spare", "workload", "expected"),
    [
        pytest.param(3, None, build_workload(2), 3, id="devices are free"),
        pytest.param(3, 0, build_workload(2), 0, id="free devices beyond the quota are no room"),
        pytest.param(
            0, 0, build_workload(2, replicas=3), 1, id="a surge pod that exists is room, so the plan does not flip"
        ),
        pytest.param(-1, None, build_workload(2, replicas=3), 0, id="a surge pod without a device is not"),
        pytest.param(
            3,
            3,
            build_workload(2, pending_reason="0/4 nodes are available: Insufficient nvidia.com/gpu"),
            0,
            id="pods that cannot start prove our count wrong",
        ),
        pytest.param(None, 3, build_workload(2), None, id="unknown nodes"),
    ],
)
def test_room_is_what_devices_quota_and_scheduler_agree_on(free, spare, workload, expected):
    assert rollout_room(free, spare, 1, workload) == expected


def simulate_rollout(replicas: int, min_available: int, devices: int) -> list[int]:
    """Roll a Deployment on a fleet of `devices`, planning anew at every step; return ready pods over time."""
    old, new_ready, new_pending, history = replicas, 0, 0, []
    for _ in range(20 * replicas + 20):
        held = old + new_ready
        started = min(new_pending, devices - held)
        new_ready, new_pending = new_ready + started, new_pending - started
        history.append(old + new_ready)
        if new_ready == replicas and old == 0:
            return history
        workload = build_workload(
            replicas,
            replicas=old + new_ready + new_pending,
            pending_reason="Insufficient nvidia.com/gpu" if new_pending else "",
        )
        room = rollout_room(devices - old - new_ready - new_pending, None, 1, workload)
        plan = plan_rollout(replicas, min_available, room, on_gpu=True)
        old -= min(old, max(0, old + new_ready - (replicas - plan.max_unavailable)))
        total = old + new_ready + new_pending
        new_pending += max(0, min(replicas - new_ready - new_pending, replicas + plan.max_surge - total))
    return history


@given(st.integers(1, 8), st.integers(0, 8), st.integers(0, 4))
def test_a_rollout_finishes_unless_it_is_declared_blocked_and_keeps_its_promise_on_the_way(
    replicas, min_available, spare
):
    history = simulate_rollout(replicas, min_available, replicas + spare)

    assert min(history) >= min(min_available, replicas)
    finished = len(history) < 20 * replicas + 20
    assert finished == (spare > 0 or min_available < replicas)


def test_a_budget_that_blocks_node_drains_says_so():
    blocking = explain_disruptions(1, plan_rollout(1, 1, 1, on_gpu=True))
    roomy = explain_disruptions(3, plan_rollout(3, 1, 1, on_gpu=True))

    assert "a node drain waits" in blocking.reason
    assert "may stop 2 of 3" in roomy.reason
