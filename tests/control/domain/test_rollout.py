"""Replacing pods: a rollout keeps the promise of minAvailable and never waits for a GPU that its own old pods hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.builders import build_gpu_class, build_node, build_service, build_snapshot, build_tenant, build_workload
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_service
from windlass_operator.domain.rollout import (
    Replacement,
    RolloutWay,
    explain_disruptions,
    observe_replacement,
    plan_rollout,
    rollout_room,
)
from windlass_operator.domain.snapshot import Revision


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
        pytest.param(-1, None, build_workload(2, replicas=3, leaving=1), 1, id="a leaving pod makes room"),
        pytest.param(0, None, build_workload(1, wanted=2, leaving=1), 0, id="but first for the pod that is missing"),
        pytest.param(
            3,
            3,
            build_workload(2, unplaced=1),
            0,
            id="pods that cannot start prove our count wrong",
        ),
        pytest.param(None, 3, build_workload(2), None, id="unknown nodes"),
    ],
)
def test_room_is_what_devices_quota_and_scheduler_agree_on(free, spare, workload, expected):
    assert rollout_room(free, spare, 1, workload) == expected


def build_rolling(**fields) -> Replacement:
    """Half-way: one pod of two is new, and everything serves."""
    return Replacement(**{"new": 1, "new_ready": 1, "old": 1, "old_ready": 1, **fields})


@pytest.mark.parametrize(
    ("replacement", "min_available", "room", "expected"),
    [
        pytest.param(build_rolling(), 1, 0, (0, 1, RolloutWay.EXCHANGE), id="full: one out, one in"),
        pytest.param(build_rolling(), 2, 0, (1, 0, RolloutWay.BLOCKED), id="full, every pod promised"),
        pytest.param(build_rolling(old_ready=0), 2, 0, (0, 1, RolloutWay.EXCHANGE), id="a broken pod makes way"),
        pytest.param(
            build_rolling(old=2, new=0, new_ready=0, old_ready=0), 2, 1, (1, 0, RolloutWay.SURGE), id="a free device"
        ),
        pytest.param(
            build_rolling(old=2, old_ready=1, new_ready=1),
            2,
            0,
            (1, 0, RolloutWay.SURGE),
            id="a broken pod beyond the wanted number goes by itself",
        ),
        pytest.param(
            build_rolling(new_ready=0, old=2, old_ready=2, refused=1),
            1,
            0,
            (0, 1, RolloutWay.EXCHANGE),
            id="a new pod finds no place: an old one makes it",
        ),
        pytest.param(
            build_rolling(new_ready=0, refused=1),
            1,
            0,
            (0, 1, RolloutWay.BLOCKED),
            id="the service is short of a device, and the rest is promised",
        ),
        pytest.param(
            build_rolling(new_ready=0, refused=1),
            0,
            0,
            (0, 2, RolloutWay.EXCHANGE),
            id="short of a device, and the rest may stop",
        ),
        pytest.param(build_rolling(moving=True), 1, 0, (1, 0, RolloutWay.BLOCKED), id="a move frees nothing of use"),
        pytest.param(build_rolling(moving=True), 1, 1, (1, 0, RolloutWay.SURGE), id="a move with a free device"),
        pytest.param(
            build_rolling(old=0, old_ready=0, new=2, new_ready=2), 1, 0, (1, 0, RolloutWay.SURGE), id="all replaced"
        ),
    ],
)
def test_the_next_step_follows_from_how_far_the_rollout_is(replacement, min_available, room, expected):
    plan = plan_rollout(2, min_available, room, on_gpu=True, replacement=replacement)

    assert (plan.max_surge, plan.max_unavailable, plan.way) == expected


def test_a_rollout_behind_another_touches_nothing_until_its_turn():
    plan = plan_rollout(1, 1, 0, on_gpu=True, replacement=build_rolling(new=0, new_ready=0), ahead=True)

    assert plan.way is RolloutWay.WAIT
    assert "until it is this one's turn" in plan.reason


@pytest.mark.parametrize(
    ("min_available", "expected"),
    [pytest.param(1, (0, 1), id="an old one makes way"), pytest.param(2, (1, 0), id="it waits, and says so")],
)
def test_a_cpu_rollout_whose_new_pod_finds_no_place_goes_on_as_on_gpus(min_available, expected):
    stuck = build_rolling(new_ready=0, old=2, old_ready=2, refused=1)

    plan = plan_rollout(2, min_available, None, on_gpu=False, replacement=stuck)

    assert (plan.max_surge, plan.max_unavailable) == expected
    assert plan.blocked == (min_available == 2)


def test_a_steady_service_says_the_same_whatever_is_free():
    done = build_rolling(new=2, new_ready=2, old=0, old_ready=0)

    assert plan_rollout(2, 1, 5, on_gpu=True, replacement=done) == plan_rollout(2, 1, 0, on_gpu=True, replacement=done)


def revision(template: str, pods: int, ready: int = 0, gpu_class: str = "h200", *, newest: bool = False) -> Revision:
    return Revision(template, pods, ready, gpu_class, newest)


@pytest.mark.parametrize(
    ("workload", "target", "expected"),
    [
        pytest.param(
            build_workload(2, template="a", revisions=(revision("a", 2, 2, newest=True),)),
            "b",
            Replacement(old=2, old_ready=2),
            id="before anything is written",
        ),
        pytest.param(
            build_workload(2, template="b", observed=False, revisions=(revision("a", 2, 2, newest=True),)),
            "b",
            Replacement(old=2, old_ready=2),
            id="written, and not seen by the controller",
        ),
        pytest.param(
            build_workload(
                2, replicas=3, template="b", revisions=(revision("a", 2, 2), revision("b", 1, 0, newest=True))
            ),
            "b",
            Replacement(new=1, old=2, old_ready=2),
            id="the first new pod",
        ),
        pytest.param(
            build_workload(
                2, replicas=3, template="b", revisions=(revision("a", 2, 2), revision("b", 1, 0, newest=True))
            ),
            "a",
            Replacement(new=2, new_ready=2, old=1),
            id="about to be taken back",
        ),
        pytest.param(
            build_workload(2, template="a", revisions=(revision("a", 1, 1), revision("a", 1, 1, newest=True))),
            "a",
            Replacement(new=1, new_ready=1, old=1, old_ready=1),
            id="restarted by kubectl, which our fingerprint does not see",
        ),
        pytest.param(build_workload(2), "b", None, id="nothing tells what runs"),
        pytest.param(build_workload(0), "b", Replacement(), id="nothing runs"),
    ],
)
def test_pods_are_sorted_by_the_template_that_is_wanted(workload, target, expected):
    assert observe_replacement(workload, target) == expected


def test_a_service_moves_while_old_pods_hold_devices_of_another_class():
    workload = build_workload(
        2, template="b", revisions=(revision("a", 1, 1, "a100"), revision("b", 1, 1, newest=True)), gpu_class="h200"
    )

    assert observe_replacement(workload, "b", "h200").moving
    assert not observe_replacement(workload, "b", "").moving


def test_a_budget_that_blocks_node_drains_says_so():
    blocking = explain_disruptions(1, plan_rollout(1, 1, 1, on_gpu=True))
    roomy = explain_disruptions(3, plan_rollout(3, 1, 1, on_gpu=True))

    assert "a node drain waits" in blocking.reason
    assert "may stop 2 of 3" in roomy.reason


def test_a_service_that_moves_within_its_quota_is_not_blocked_by_the_pods_it_leaves_behind():
    """Half-way: one pod on the new class, one on the old; the quota of the new class has room for exactly two."""
    service = build_service(classes=["h200"], replicas=2, rollout={"minAvailable": 2})
    pods = (revision("a", 1, 1, "a100"), revision("b", 1, 1, newest=True))
    workload = build_workload(
        2, gpu_class="h200", devices=1, devices_left_behind=(("a100", 1),), template="b", revisions=pods, max_surge=1
    )
    world = build_snapshot(
        service,
        build_gpu_class("h200"),
        build_gpu_class("a100"),
        build_tenant(gpus={"h200": 2, "a100": 2}),
        nodes=[build_node("n1", gpu="h200", devices=2), build_node("n2", gpu="a100", devices=1)],
        workloads={"team-a/chat": workload},
    )

    plan = plan_service(service, world, FleetSettings())

    assert plan.refusal is None
    assert plan.rollout.way is RolloutWay.SURGE
