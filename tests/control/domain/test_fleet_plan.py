"""What tenants and GPU classes amount to."""

from __future__ import annotations

from support.builders import (
    build_gpu_class,
    build_node,
    build_service,
    build_snapshot,
    build_tenant,
    build_workload,
)
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_gpu_class, plan_tenant
from windlass_operator.domain.status import plan_gpu_class_status

SETTINGS = FleetSettings()


def test_a_tenant_gets_hard_bounds_per_namespace_and_zero_of_what_is_not_listed():
    tenant = build_tenant(gpus={"h200": 4, "slice": 6}, quota={"cpu": "64", "memory": "512Gi", "services": 10})
    classes = [
        build_gpu_class("h200"),
        build_gpu_class("slice", resourceName="nvidia.com/mig-1g.18gb"),
        build_gpu_class("amd", resourceName="amd.com/gpu"),
    ]

    plan = plan_tenant(tenant, build_snapshot(tenant, *classes), SETTINGS)

    assert plan.hard == {
        "count/inferenceservices.windlass.dev": "10",
        "limits.memory": "512Gi",
        "requests.amd.com/gpu": "0",
        "requests.cpu": "64",
        "requests.memory": "512Gi",
        "requests.nvidia.com/gpu": "4",
        "requests.nvidia.com/mig-1g.18gb": "6",
    }
    assert plan.denied_priority_classes == ("windlass-realtime",)
    assert plan.problems == ()


def test_classes_of_one_resource_add_up():
    tenant = build_tenant(gpus={"h200": 4, "a100": 2})

    plan = plan_tenant(tenant, build_snapshot(tenant, build_gpu_class("h200"), build_gpu_class("a100")), SETTINGS)

    assert plan.hard["requests.nvidia.com/gpu"] == "6"


def test_use_counts_what_pods_hold_in_the_tenants_own_namespaces():
    tenant = build_tenant(gpus={"h200": 4})
    snapshot = build_snapshot(
        tenant,
        build_gpu_class("h200"),
        build_gpu_class("a100"),
        build_service(),
        build_service("b", "elsewhere"),
        workloads={
            "team-a/chat": build_workload(2, gpu_class="h200"),
            "team-a/left": build_workload(1, gpu_class="a100"),
            "elsewhere/b": build_workload(3, gpu_class="h200"),
        },
    )

    plan = plan_tenant(tenant, snapshot, SETTINGS)

    assert [(use.name, use.nominal, use.used) for use in plan.gpus] == [("a100", 0, 1), ("h200", 4, 2)]
    assert plan.services == 1


def test_what_cannot_be_granted_is_told_and_the_rest_is_carried_out():
    older = build_tenant("older", ["shared"], created="2025-01-01T00:00:00Z")
    tenant = build_tenant(namespaces=["shared", "kube-system", "team-a"], gpus={"typo": 1})

    plan = plan_tenant(tenant, build_snapshot(tenant, older), SETTINGS)

    assert plan.namespaces == ("team-a",)
    assert [problem.reason for problem in plan.problems] == [
        "NamespaceConflict",
        "NamespaceReserved",
        "UnknownGPUClass",
    ]


def test_a_class_is_counted_by_usable_nodes_and_held_devices():
    h200 = build_gpu_class()
    snapshot = build_snapshot(
        h200,
        nodes=[build_node(), build_node("n2", ready=False)],
        workloads={"t/a": build_workload(3, gpu_class="h200")},
    )

    plan = plan_gpu_class(h200, snapshot)

    assert (plan.nodes, plan.gpus, plan.allocated) == (1, 8, 3)


def test_a_class_offline_has_unknown_nodes():
    assert plan_gpu_class(build_gpu_class(), build_snapshot(nodes=None)).nodes is None


def test_claimed_devices_are_bounded_too_where_a_class_names_a_device_class():
    claimable = [build_gpu_class(name, deviceClassName="gpu.nvidia.com") for name in ("h200", "a100", "unlisted")]
    tenant = build_tenant(gpus={"h200": 4, "a100": 2})

    hard = plan_tenant(tenant, build_snapshot(tenant, *claimable), FleetSettings()).hard

    assert hard["gpu.nvidia.com.deviceclass.resource.k8s.io/devices"] == "6"
    assert hard["requests.nvidia.com/gpu"] == "6"


def test_a_class_whose_devices_can_only_be_claimed_has_the_nodes_of_its_labels():
    claimable, other = build_gpu_class("h200", deviceClassName="gpu.nvidia.com"), build_gpu_class("a100")
    snapshot = build_snapshot(claimable, other, nodes=[build_node(devices=0), build_node("n2", gpu="a100", devices=0)])
    plans = [plan_gpu_class(item, snapshot) for item in (claimable, other)]

    assert [(plan.nodes, plan.gpus) for plan in plans] == [(1, 0), (0, 0)]
    status = plan_gpu_class_status(plans[0], claimable.status, "2026-01-01T00:00:00Z")
    assert status.conditions[0].message == "1 ready node; devices there can be claimed, and are not counted"


def test_nodes_stay_unknown_for_a_class_that_can_be_claimed():
    claimable = build_gpu_class("h200", deviceClassName="gpu.nvidia.com")

    assert plan_gpu_class(claimable, build_snapshot(claimable, nodes=None)).nodes is None
