"""What a service claims: the user's order, whatever the world looks like, and only classes that can be claimed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.builders import build_gpu_class, build_node, build_service, build_snapshot, build_workload
from windlass_operator.domain.class_words import refuse_ranking
from windlass_operator.domain.device_claim import MOST_ALTERNATIVES
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.gpu_class import rank_classes
from windlass_operator.domain.plan import Action, plan_service
from windlass_operator.domain.snapshot import Workload
from windlass_operator.domain.supply import Supply

H200 = build_gpu_class("h200", deviceClassName="gpu.nvidia.com", deviceSelectors=["device.a"], pricePerHour="4")
A100 = build_gpu_class("a100", memory="80Gi", capability="8.0", deviceClassName="gpu.nvidia.com", pricePerHour="2")
PLAIN = build_gpu_class("plain")
SHARED = build_gpu_class("shared", deviceClassName="gpu.nvidia.com", sharing={"timeSlicedReplicas": 2})
CLAIMS = {"allocation": "ResourceClaim"}


def plan(*objects, nodes=(), workloads=None, **accelerator):
    service = build_service(accelerator={**CLAIMS, **accelerator})
    snapshot = build_snapshot(service, *objects, nodes=nodes, workloads=workloads)
    return plan_service(service, snapshot, FleetSettings())


def claimed(planned) -> list[str]:
    return [alternative.gpu_class for alternative in planned.gpu_class.alternatives]


def test_the_classes_become_alternatives_in_the_users_order():
    planned = plan(H200, A100, classes=["h200", "a100"])

    assert claimed(planned) == ["h200", "a100"]
    assert planned.gpu_class.alternatives[0].selectors == ("device.a",)
    (decision,) = (item for item in planned.decisions if item.topic == "device claim")
    assert decision.choice == "h200 or a100"


def test_needs_become_alternatives_from_cheap_to_dear():
    assert claimed(plan(H200, A100, PLAIN, requirements={"memory": "70Gi"})) == ["a100", "h200"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("plain", "names no deviceClassName", id="no DeviceClass"),
        pytest.param("shared", "shared in time slices", id="time slices"),
    ],
)
def test_a_class_that_cannot_be_claimed_is_skipped_with_the_reason(name, words):
    service = build_service(accelerator={**CLAIMS, "classes": [name], "sharing": "TimeSliced"})
    snapshot = build_snapshot(PLAIN, SHARED)
    refusal = refuse_ranking(rank_classes(service.spec, snapshot.gpu_classes, Supply(snapshot), Workload()))

    assert refusal.reason == "NotClaimable"
    assert words in refusal.message
    assert "deviceClassName" in refusal.next_step


def test_no_more_alternatives_are_listed_than_the_api_server_takes():
    many = [build_gpu_class(f"c{index}", deviceClassName="gpu.nvidia.com") for index in range(12)]

    assert len(claimed(plan(*many, requirements={}))) == MOST_ALTERNATIVES


worlds = st.tuples(
    st.lists(st.tuples(st.sampled_from(["h200", "a100"]), st.booleans()), max_size=4),
    st.sampled_from(["", "h200", "a100"]),
    st.integers(0, 3),
)


@settings(deadline=None)
@given(worlds)
def test_nothing_in_the_world_changes_a_claim_for_that_would_restart_replicas(world):
    machines, running, ready = world
    nodes = [build_node(f"n{index}", gpu=gpu, ready=up) for index, (gpu, up) in enumerate(machines)]
    workload = build_workload(ready, gpu_class=running)

    planned = plan(H200, A100, nodes=nodes, workloads={"team-a/chat": workload}, classes=["h200", "a100"])

    assert planned.action is Action.APPLY
    assert planned.gpu_class == plan(H200, A100, classes=["h200", "a100"]).gpu_class


def test_a_rollout_of_claims_does_not_wait_for_devices_that_nobody_counts():
    """A class that only a driver of claims offers reports no devices; a rollout there must still begin."""
    planned = plan(
        H200,
        nodes=[build_node(devices=0)],
        workloads={"team-a/chat": build_workload(1, gpu_class="h200")},
        classes=["h200"],
    )

    assert planned.rollout.blocked is False
    assert (planned.rollout.max_surge, planned.rollout.max_unavailable) == (1, 0)
