"""Suggestions help, are the smallest that do, and name nobody else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.builders import (
    build_gpu_class,
    build_node,
    build_service,
    build_snapshot,
    build_tenant,
    build_workload,
    service_key,
)
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.oracle import applied
from windlass_operator.domain.plan import ServicePlan, plan_service
from windlass_operator.domain.snapshot import Key, Snapshot, Workload
from windlass_operator.domain.status import judge_workload
from windlass_operator.domain.suggestion import Remedy, Suggestion

SETTINGS = FleetSettings()
H200, A100 = build_gpu_class("h200"), build_gpu_class("a100", capability="7.5")
NODES = [build_node(devices=8), build_node("n2", gpu="a100", devices=8)]
LATE = "2026-02-01T00:00:00Z"


def cohort_tenant(name: str, space: str, nominal: int, **limits: int):
    return build_tenant(
        name, [space], cohort="research", quota={"gpus": [{"name": "h200", "nominal": nominal, **limits}]}
    )


def plan(snapshot: Snapshot, name: str = "new") -> ServicePlan:
    return plan_service(snapshot.services[Key("InferenceService", "team-a", name)], snapshot, SETTINGS)


def by_remedy(planned: ServicePlan) -> dict[Remedy, Suggestion]:
    return {suggestion.remedy: suggestion for suggestion in planned.suggestions}


def world_with(
    new: dict[str, Any], *others: Any, old: int = 3, tenant: Any = None, workloads: dict[str, Workload] | None = None
) -> Snapshot:
    """A newcomer of these fields beside `old` running replicas."""
    fields = {"classes": ["h200"], **new}
    return build_snapshot(
        build_service("new", created=LATE, **fields),
        build_service("old", classes=["h200"], replicas=old),
        H200,
        A100,
        tenant or build_tenant(gpus={"h200": 4, "a100": 2}),
        *others,
        nodes=NODES,
        workloads={"team-a/old": build_workload(old, gpu_class="h200"), **(workloads or {})},
    )


CASES = [
    pytest.param(world_with({"replicas": 2}), Remedy.LIST_CLASS, "add a100 to spec.accelerator.classes", id="class"),
    pytest.param(
        world_with({"replicas": 2}),
        Remedy.LOWER_REPLICAS,
        "lower spec.replicas to 1",
        id="own replicas",
    ),
    pytest.param(
        world_with({"scaling": {"minReplicas": 3, "maxReplicas": 4}, "rollout": {"minAvailable": 2}}),
        Remedy.LOWER_REPLICAS,
        "lower spec.scaling.minReplicas to 1 and spec.rollout.minAvailable to 1",
        id="an autoscaler's minimum, with the floor",
    ),
    pytest.param(
        world_with({"replicas": 2}),
        Remedy.LOWER_NEIGHBOUR,
        "lower spec.replicas of team-a/old from 3 to 2",
        id="a neighbour's replicas",
    ),
    pytest.param(
        world_with({"replicas": 2}),
        Remedy.RAISE_NOMINAL,
        "raise nominal of h200 in Tenant acme from 4 to 5",
        id="the quota",
    ),
    pytest.param(
        world_with({"replicas": 2}, tenant=build_tenant(gpus={"a100": 2}), old=0),
        Remedy.RAISE_NOMINAL,
        "add h200 with nominal 2 to spec.quota.gpus of Tenant acme",
        id="a class that the quota does not list",
    ),
    pytest.param(
        world_with(
            {"replicas": 4},
            cohort_tenant("lender", "team-b", 4),
            tenant=cohort_tenant("acme", "team-a", 4, borrowingLimit=1),
        ),
        Remedy.RAISE_BORROWING_LIMIT,
        "raise borrowingLimit of h200 in Tenant acme from 1 to 3",
        id="the borrowing limit",
    ),
    pytest.param(
        world_with({"classes": ["a100"], "precision": {"preset": "BF16"}}),
        Remedy.CHANGE_PRECISION,
        "set spec.precision.preset to Auto",
        id="a precision that the class does not compute",
    ),
]


@pytest.mark.parametrize(("world", "remedy", "order"), CASES)
def test_applying_a_suggestion_admits_the_service(world: Snapshot, remedy: Remedy, order: str) -> None:
    before = plan(world)
    suggestion = by_remedy(before)[remedy]
    assert suggestion.change is not None

    after = plan(applied(suggestion.change, world))

    assert before.refusal is not None
    assert suggestion.order == order
    assert after.refusal is None or after.refusal.passing


def test_every_kind_of_change_to_our_objects_is_tried_above() -> None:
    tried = {case.values[1] for case in CASES}

    assert tried == set(Remedy) - {Remedy.FREE_DEVICES}


def test_the_smallest_change_comes_first_and_is_the_next_step() -> None:
    planned = plan(world_with({"replicas": 2}))

    assert [suggestion.devices for suggestion in planned.suggestions] == [0, 1, 1, 1]
    assert planned.refusal is not None
    assert planned.refusal.next_step == (
        "Add a100 to spec.accelerator.classes, "
        "or ask the platform team to raise nominal of h200 in Tenant acme from 4 to 5"
    )


def test_a_service_that_nothing_of_ours_can_help_keeps_its_general_next_step() -> None:
    planned = plan(world_with({"classes": ["gone"]}))

    assert planned.refusal is not None
    assert planned.refusal.reason == "UnknownGPUClass"
    assert Remedy.LIST_CLASS in by_remedy(planned)
    tier = plan(world_with({"tier": "Realtime"}))
    assert (tier.refusal and tier.refusal.reason, tier.suggestions) == ("TierNotAllowed", ())


def test_devices_that_pods_wait_for_are_asked_for_by_their_nodes() -> None:
    waiting = build_workload(
        2,
        gpu_class="h200",
        wanted=3,
        replicas=3,
        updated=3,
        unplaced=1,
        pending_reason="1 Insufficient nvidia.com/gpu.",
    )
    service = build_service("new", classes=["h200"], replicas=3)
    world = build_snapshot(service, H200, nodes=NODES, workloads={"team-a/new": waiting})

    planned = plan(world)

    assert by_remedy(planned)[Remedy.FREE_DEVICES].order == "free 1 x h200 on nodes with nvidia.com/gpu.product=h200"
    assert by_remedy(planned)[Remedy.LOWER_REPLICAS].order == "lower spec.replicas to 2"
    message = judge_workload(planned, waiting).message
    assert message.endswith(
        "1 Insufficient nvidia.com/gpu. Lower spec.replicas to 2, or ask the platform team to free 1 x h200 on nodes "
        "with nvidia.com/gpu.product=h200"
    )


@pytest.mark.parametrize(
    ("held", "order"),
    [
        pytest.param(
            (("node-1", 3), ("node-2", 2)),
            "free 2 x h200 (2 on node-2): each replica needs 4 on one node",
            id="the total is free, but no node has enough",
        ),
        pytest.param(
            (("node-1", 1), ("node-2", 4)),
            "free 1 x h200 (1 on node-1): each replica needs 4 on one node",
            id="where the fewest are missing",
        ),
    ],
)
def test_a_replica_of_several_devices_asks_for_them_on_one_node(held, order: str) -> None:
    waiting = build_workload(
        0, gpu_class="h200", wanted=1, replicas=1, unplaced=1, pending_reason="Insufficient nvidia.com/gpu."
    )
    waiting = replace(waiting, devices=4, devices_per_pod=4)
    others = build_workload(5, gpu_class="h200", devices_by_node=held, devices=sum(count for _, count in held))
    nodes = [build_node("node-1", devices=4), build_node("node-2", devices=4)]
    large, small = build_service("large", accelerator={"classes": ["h200"], "count": 4}), build_service("small")
    world = build_snapshot(large, small, H200, nodes=nodes, workloads={"team-a/large": waiting, "team-a/small": others})

    planned = plan_service(large, world, FleetSettings())

    assert by_remedy(planned)[Remedy.FREE_DEVICES].order == order


def test_pods_that_wait_for_something_else_are_told_nothing_about_devices() -> None:
    waiting = build_workload(0, gpu_class="h200", wanted=1, replicas=1, unplaced=1, pending_reason="untolerated taint")
    world = build_snapshot(build_service("new", classes=["h200"]), H200, nodes=NODES, workloads={"team-a/new": waiting})

    assert plan(world).suggestions == ()


def test_suggestions_never_name_another_tenant() -> None:
    secret = build_service("theirs", "team-b", classes=["h200"], replicas=4)
    world = world_with(
        {"replicas": 4},
        secret,
        cohort_tenant("orchid", "team-b", 4),
        tenant=cohort_tenant("acme", "team-a", 4),
        workloads={"team-b/theirs": build_workload(4, gpu_class="h200")},
    )

    planned = plan(world)

    assert planned.suggestions
    told = f"{planned.refusal} {planned.suggestions} {planned.quota}"
    assert "orchid" not in told
    assert "team-b" not in told


@st.composite
def fleets(draw: st.DrawFn) -> Snapshot:
    """A tenant of a cohort with a newcomer and some that run, and another tenant."""
    services: list[InferenceService] = []
    workloads = {}
    for number in range(draw(st.integers(0, 4))):
        space, replicas = draw(st.sampled_from(["team-a", "team-b"])), draw(st.integers(1, 3))
        floor = draw(st.integers(0, replicas))
        tier = draw(st.sampled_from(["Standard", "Batch"]))
        rollout = {"minAvailable": floor}
        services.append(
            build_service(f"s{number}", space, classes=["h200"], replicas=replicas, tier=tier, rollout=rollout)
        )
        if draw(st.booleans()):
            workloads[f"{space}/s{number}"] = build_workload(draw(st.integers(1, replicas)), gpu_class="h200")
    services.append(build_service("new", classes=["h200"], replicas=draw(st.integers(1, 5)), created=LATE))
    limits = draw(st.sampled_from([{}, {"borrowingLimit": 0}, {"borrowingLimit": 2}, {"lendingLimit": 0}]))
    return build_snapshot(
        *services,
        H200,
        A100,
        cohort_tenant("acme", "team-a", draw(st.integers(0, 4)), **limits)
        if draw(st.integers(0, 3))
        else build_tenant(gpus={"h200": draw(st.integers(0, 4)), "a100": draw(st.integers(0, 3))}),
        cohort_tenant("orchid", "team-b", draw(st.integers(0, 4))),
        nodes=NODES,
        workloads=workloads,
    )


@settings(deadline=None, max_examples=60)
@given(fleets())
def test_every_suggestion_admits_and_none_of_its_kind_is_smaller(world: Snapshot) -> None:
    planned = plan(world)

    for suggestion in planned.suggestions:
        assert suggestion.change is not None
        after = plan(applied(suggestion.change, world))
        assert after.refusal is None or after.refusal.passing
    raised = by_remedy(planned).get(Remedy.RAISE_NOMINAL)
    if raised is not None and raised.devices > 1:
        tenant = world.tenants["acme"]
        (gpu,) = [item for item in tenant.spec.quota.gpus if item.name == "h200"] or [None]
        nominal = (gpu.nominal if gpu else 0) + raised.devices - 1
        less = {**(gpu.model_dump(by_alias=True, exclude_none=True) if gpu else {"name": "h200"}), "nominal": nominal}
        others = [item.model_dump(by_alias=True) for item in tenant.spec.quota.gpus if item.name != "h200"]
        change = replace(raised.change, patch={"spec": {"quota": {"gpus": [*others, less]}}})
        refused = plan(applied(change, world)).refusal
        assert refused is not None
        assert not refused.passing


@settings(deadline=None, max_examples=60)
@given(fleets())
def test_a_refused_service_of_a_tenant_is_always_told_what_would_help(world: Snapshot) -> None:
    """Raising the quota always helps, unless pods in its way are going anyway."""
    planned = plan(world)

    if planned.refusal is not None and planned.refusal.reason == "QuotaExceeded":
        assert Remedy.RAISE_NOMINAL in by_remedy(planned)
        assert planned.refusal.next_step[:1].isupper()
    assert service_key(world.services[planned.key]) == planned.key
