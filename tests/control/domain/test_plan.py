"""A whole plan: what a service gets in a given world, and what it is told when it gets less."""

from __future__ import annotations

import random

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
from windlass_contract.launch_spec import Device, LaunchSpec, Precision, SparseActivation
from windlass_operator.domain.fleet import FleetSettings, Platform
from windlass_operator.domain.plan import Action, ServicePlan, plan_service, plan_services
from windlass_operator.domain.snapshot import Revision, Snapshot
from windlass_operator.render.pod import render_pod_template
from windlass_operator.render.workload import render_service

SETTINGS = FleetSettings()
LOCAL = FleetSettings(platform=Platform.LOCAL)
H200 = build_gpu_class("h200")
NODE = build_node()


def plan(service, *world, platform: FleetSettings = SETTINGS, **more) -> ServicePlan:
    return plan_service(service, build_snapshot(service, *world, **more), platform)


def told(plan: ServicePlan, topic: str) -> str:
    (decision,) = [decision for decision in plan.decisions if decision.topic == topic]
    return f"{decision.choice}: {decision.reason}"


def test_a_service_on_a_gpu_gets_class_quota_launch_and_priority():
    service = build_service(
        classes=["h200"],
        replicas=2,
        uri="hf://org/chat@v1",
        cache={"memory": "8Gi"},
        tier="Batch",
        limits={"maxSequenceTokens": 4096, "maxRunningRequests": 32},
        drain={"timeoutSeconds": 90},
    )

    planned = plan(service, build_tenant(gpus={"h200": 4}), H200, nodes=[NODE])

    assert planned.action is Action.APPLY
    assert planned.refusal is None
    assert (planned.tenant, planned.replicas, planned.priority_class) == ("acme", 2, "windlass-batch")
    assert planned.gpu_class is not None
    assert (planned.gpu_class.name, planned.gpu_class.resource_name, planned.gpu_class.count) == (
        "h200",
        "nvidia.com/gpu",
        1,
    )
    assert planned.launch == LaunchSpec(
        model_uri="hf://org/chat@v1",
        served_name="chat",
        namespace="team-a",
        service="chat",
        tenant="acme",
        device=Device.CUDA,
        precision=Precision.BF16,
        cache_bytes=8 * 2**30,
        max_sequence_tokens=4096,
        max_running_requests=32,
        max_queued_requests=256,
        drain_timeout_s=90.0,
    )
    assert planned.address == "http://chat.team-a.svc.cluster.local:8000/v1"


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        pytest.param([], SparseActivation.MAX, id="on a cpu"),
        pytest.param(["h200"], SparseActivation.OFF, id="a canary that tries a gpu stays dense"),
    ],
)
def test_replicas_on_cpus_are_told_how_sparse_to_be(classes, expected):
    service = build_service(classes=classes, sparsity={"mode": "Max"})

    planned = plan(service, build_tenant(gpus={"h200": 4}), H200, nodes=[NODE])

    assert planned.launch.sparse_activation is expected


def test_every_choice_of_a_plan_comes_with_a_reason():
    planned = plan(build_service(classes=["h200"]), build_tenant(gpus={"h200": 4}), H200, nodes=[NODE])

    assert [decision.topic for decision in planned.decisions] == [
        "tenant",
        "accelerator",
        "quota",
        "model",
        "precision",
        "replicas",
        "priority",
        "rollout",
        "disruption budget",
    ]
    assert all(decision.choice and decision.reason for decision in planned.decisions)


@pytest.mark.parametrize(
    ("service", "world", "reason"),
    [
        pytest.param(build_service("9lives"), [], "InvalidName", id="a name no Service can have"),
        pytest.param(build_service("a" * 64), [], "InvalidName", id="a name too long for a label"),
        pytest.param(build_service(), [build_tenant(namespaces=["team-b"])], "NoTenant", id="nobody's namespace"),
        pytest.param(
            build_service(namespace="monitoring"),
            [build_tenant(namespaces=["monitoring"])],
            "NamespaceReserved",
            id="the platform's namespace",
        ),
        pytest.param(build_service(tier="Realtime"), [build_tenant()], "TierNotAllowed", id="a tier not granted"),
        pytest.param(
            build_service(replicas=1, scaling={"maxReplicas": 2}),
            [],
            "ConflictingReplicas",
            id="two owners of the replicas",
        ),
        pytest.param(build_service(uri="file://./chat"), [], "ModelSourceUnusable", id="a relative path in a pod"),
        pytest.param(build_service(classes=["b200"]), [H200], "UnknownGPUClass", id="no such class"),
        pytest.param(
            build_service(classes=["h200"], cache={"memory": "200Gi"}),
            [H200],
            "CacheTooLarge",
            id="a cache larger than the GPU",
        ),
        pytest.param(
            build_service(cache={"memory": "8Gi"}, podTemplate={"resources": {"memory": "8Gi"}}),
            [],
            "CacheTooLarge",
            id="a cache as large as the pod",
        ),
        pytest.param(
            build_service(classes=["h200"]),
            [H200, build_tenant()],
            "QuotaExceeded",
            id="a class the quota does not list",
        ),
        pytest.param(
            build_service(classes=["h200"], replicas=3),
            [H200, build_tenant(gpus={"h200": 2})],
            "QuotaExceeded",
            id="more than the quota",
        ),
    ],
)
def test_a_service_that_must_not_run_is_refused_and_nothing_is_created(service, world, reason):
    planned = plan(service, *world)

    assert planned.refusal is not None
    assert (planned.refusal.reason, planned.action, planned.runnable) == (reason, Action.REMOVE, False)
    assert planned.refusal.next_step
    assert render_service(planned, SETTINGS) == ()


def test_a_quota_refusal_states_the_numbers():
    running = build_service("old", classes=["h200"], replicas=3)
    newcomer = build_service("new", classes=["h200"], replicas=2, created="2026-02-01T00:00:00Z")

    planned = plan(
        newcomer,
        running,
        H200,
        build_tenant(gpus={"h200": 4}),
        nodes=[NODE],
        workloads={"team-a/old": build_workload(3, gpu_class="h200")},
    )

    assert planned.refusal is not None
    assert planned.refusal.message == "needs 2 x h200, acme uses 3 of 4"


def test_quota_counts_every_namespace_of_the_tenant_and_no_other():
    tenant = build_tenant(namespaces=["team-a", "team-b"], gpus={"h200": 2})
    elsewhere = build_tenant("other", ["team-c"], gpus={"h200": 2})
    mine = build_service("mine", "team-b", classes=["h200"], replicas=2, created="2025-01-01T00:00:00Z")
    theirs = build_service("theirs", "team-c", classes=["h200"], replicas=2, created="2025-01-01T00:00:00Z")
    service = build_service(classes=["h200"])

    assert plan(service, theirs, tenant, elsewhere, H200).refusal is None
    refusal = plan(service, mine, theirs, tenant, elsewhere, H200).refusal
    assert refusal is not None
    assert refusal.message == "needs 1 x h200, acme uses 2 of 2"


def test_devices_of_a_deleted_service_stay_taken_until_its_pods_are_gone():
    tenant, leaving = build_tenant(gpus={"h200": 2}), build_workload(0, gpu_class="h200", devices=1)
    service = build_service(classes=["h200"], replicas=2)

    waiting = plan(service, tenant, H200, workloads={"team-a/gone": leaving})
    later = plan(service, tenant, H200)

    assert waiting.refusal is not None
    assert (waiting.refusal.reason, waiting.action) == ("QuotaReturning", Action.REMOVE)
    assert later.refusal is None


def test_a_running_service_that_cannot_be_read_keeps_its_devices():
    tenant, unreadable = build_tenant(gpus={"h200": 2}), build_workload(1, gpu_class="h200")

    refusal = plan(
        build_service(classes=["h200"], replicas=2), tenant, H200, workloads={"team-a/other": unreadable}
    ).refusal

    assert refusal is not None
    assert refusal.message == "needs 2 x h200, acme uses 1 of 2"


def test_a_device_that_a_rollout_may_start_a_pod_in_is_not_given_to_a_newcomer():
    """Both would start at once, and the tenant would hold more than its quota until the rollout is over."""
    old = Revision("old", 1, 1, "h200")
    rolling = build_workload(1, gpu_class="h200", updated=0, template="new", revisions=(old,), max_surge=1)
    begun = build_workload(1, gpu_class="h200", replicas=2, devices=2, template="new", revisions=(old,), max_surge=1)
    runs, newcomer = build_service("runs", classes=["h200"]), build_service("newcomer", classes=["h200"])

    def refusal_beside(workload, gpus):
        tenant = build_tenant(gpus={"h200": gpus})
        return plan(newcomer, runs, tenant, H200, workloads={"team-a/runs": workload}).refusal

    assert refusal_beside(rolling, 2) is not None
    assert refusal_beside(rolling, 3) is None
    assert refusal_beside(begun, 2) is not None
    assert refusal_beside(build_workload(1, gpu_class="h200", max_surge=1), 2) is None


def test_refused_services_reserve_nothing():
    refused = build_service("a", classes=["h200"], tier="Realtime", created="2025-01-01T00:00:00Z")

    assert plan(build_service(classes=["h200"]), refused, H200, build_tenant(gpus={"h200": 1})).refusal is None


def test_a_typo_in_a_running_service_holds_it_as_it_is():
    edited = build_service(classes=["h2000"])

    planned = plan(edited, H200, workloads={"team-a/chat": build_workload(2, gpu_class="h200")})

    assert (planned.action, planned.refusal and planned.refusal.reason) == (Action.HOLD, "UnknownGPUClass")
    with pytest.raises(ValueError, match="on hold"):
        render_service(planned, SETTINGS)


def test_suspending_stops_a_service_even_when_it_would_be_refused():
    planned = plan(
        build_service(classes=["gone"], suspend=True), workloads={"team-a/chat": build_workload(2, gpu_class="gone")}
    )

    assert planned.action is Action.REMOVE


def test_a_running_service_that_outgrows_its_quota_runs_what_it_may_and_says_so():
    service = build_service(classes=["h200"], replicas=4)

    planned = plan(
        service,
        H200,
        build_tenant(gpus={"h200": 3}),
        nodes=[NODE],
        workloads={"team-a/chat": build_workload(2, gpu_class="h200")},
    )

    assert (planned.action, planned.replicas) == (Action.APPLY, 3)
    assert planned.refusal is not None
    assert planned.refusal.message == "runs 3 of 4 replicas on h200, acme uses 0 of 3 besides"


def test_an_autoscaler_may_grow_to_the_quota_and_owns_the_number():
    service = build_service(classes=["h200"], scaling={"minReplicas": 1, "maxReplicas": 9})

    planned = plan(service, H200, build_tenant(gpus={"h200": 4}), nodes=[NODE])

    assert planned.replicas is None
    assert planned.scaling is not None
    assert (planned.scaling.min_replicas, planned.scaling.max_replicas) == (1, 4)


@pytest.mark.parametrize(
    ("workload", "replicas"),
    [
        pytest.param(None, None, id="nothing runs yet: the server's default, then the autoscaler"),
        pytest.param(build_workload(5), None, id="the autoscaler's choice stands"),
        pytest.param(build_workload(0), 2, id="resumed from suspension: autoscalers sleep at zero"),
    ],
)
def test_an_autoscaler_is_woken_from_zero_and_otherwise_left_alone(workload, replicas):
    service = build_service(scaling={"minReplicas": 2, "maxReplicas": 9})

    planned = plan(service, workloads={} if workload is None else {"team-a/chat": workload})

    assert planned.replicas == replicas
    assert planned.scaling is not None


def test_a_class_without_quota_is_passed_over_with_the_reason():
    tenant = build_tenant(gpus={"h200": 0, "a100": 2})
    a100 = build_gpu_class("a100", capability="8.0")

    planned = plan(
        build_service(classes=["h200", "a100"]), tenant, H200, a100, nodes=[NODE, build_node("n2", gpu="a100")]
    )

    assert planned.gpu_class is not None
    assert planned.gpu_class.name == "a100"
    assert "not h200: the tenant's quota has no room" in told(planned, "accelerator")


@pytest.mark.parametrize(
    ("devices", "ready", "expected"),
    [
        pytest.param(4, 2, (1, 0), id="free devices: surge"),
        pytest.param(2, 2, (0, 1), id="a full fleet: one out, one in"),
    ],
)
def test_the_rollout_follows_the_free_devices(devices, ready, expected):
    service = build_service(classes=["h200"], replicas=ready)

    planned = plan(
        service,
        H200,
        nodes=[build_node(devices=devices)],
        workloads={"team-a/chat": build_workload(ready, gpu_class="h200")},
    )

    assert (planned.rollout.max_surge, planned.rollout.max_unavailable) == expected


def test_a_full_quota_leaves_no_room_to_surge_though_devices_are_free():
    planned = plan(
        build_service(classes=["h200"], replicas=2),
        H200,
        build_tenant(gpus={"h200": 2}),
        nodes=[NODE],
        workloads={"team-a/chat": build_workload(2, gpu_class="h200")},
    )

    assert (planned.rollout.max_surge, planned.rollout.max_unavailable) == (0, 1)


def test_room_an_autoscaler_has_reserved_but_does_not_use_may_be_borrowed_for_a_rollout():
    planned = plan(
        build_service(classes=["h200"], scaling={"maxReplicas": 4}),
        H200,
        build_tenant(gpus={"h200": 4}),
        nodes=[NODE],
        workloads={"team-a/chat": build_workload(1, gpu_class="h200")},
    )

    assert (planned.rollout.max_surge, planned.rollout.blocked) == (1, False)


def test_the_world_may_change_without_touching_the_pod_template():
    """Free devices, quota, neighbours and strategy move all day; none of that may restart a model."""
    service = build_service(classes=["h200"], replicas=2)
    calm = plan(
        service,
        H200,
        build_tenant(gpus={"h200": 8}),
        nodes=[NODE, build_node("n2")],
        workloads={"team-a/chat": build_workload(2, gpu_class="h200")},
    )
    busy = plan(
        service,
        H200,
        build_gpu_class("b200"),
        build_tenant(gpus={"h200": 2}),
        build_service("other", classes=["h200"]),
        nodes=[build_node(devices=2)],
        workloads={"team-a/chat": build_workload(2, gpu_class="h200", pending_reason="full")},
    )

    assert calm.rollout != busy.rollout
    assert render_pod_template(calm, SETTINGS) == render_pod_template(busy, SETTINGS)


def test_one_machine_without_gpus_runs_a_gpu_service_on_its_cpu():
    planned = plan(
        build_service(classes=["h200"], scaling={"minReplicas": 2, "maxReplicas": 9}, uri="file://./chat"),
        H200,
        platform=LOCAL,
    )

    assert (planned.launch.device, planned.launch.precision, planned.gpu_class) == (Device.CPU, Precision.AUTO, None)
    assert (planned.replicas, planned.scaling, planned.address) == (2, None, "")
    assert "CPU: this machine carries no GPU of the listed classes" in told(planned, "accelerator")


def test_one_machine_with_the_gpu_uses_it():
    planned = plan(build_service(classes=["h200"]), H200, nodes=[build_node(devices=1)], platform=LOCAL)

    assert planned.launch.device is Device.CUDA


def test_a_service_from_a_file_without_namespace_lives_in_default():
    planned = plan(build_service(namespace=""))

    assert (planned.key.namespace, planned.launch.namespace, planned.neighbours) == ("default", "default", ("default",))


def test_neighbours_are_the_tenants_own_namespaces():
    older = build_tenant("older", ["shared"], created="2025-01-01T00:00:00Z")

    planned = plan(build_service(), older, build_tenant(namespaces=["team-a", "team-b", "shared"]))

    assert planned.neighbours == ("team-a", "team-b")


@st.composite
def fleets(draw: st.DrawFn) -> Snapshot:
    """A tenant with some quota and services of every age, some running, some refused."""
    services, workloads = [], {}
    for number in range(draw(st.integers(0, 6))):
        least = draw(st.integers(0, 3))
        scaled = draw(st.booleans()) and least > 0
        count = {"scaling": {"minReplicas": least, "maxReplicas": least + 2}} if scaled else {"replicas": least}
        services.append(
            build_service(
                f"s{number}",
                draw(st.sampled_from(["team-a", "team-b"])),
                created=f"2026-01-0{draw(st.integers(1, 4))}T00:00:00Z",
                classes=draw(st.sampled_from([["h200"], ["h200", "a100"], ["a100", "h200"], ["gone"]])),
                tier=draw(st.sampled_from(["Standard", "Realtime"])),
                **count,
            )
        )
        if draw(st.booleans()):
            running = build_workload(draw(st.integers(0, 3)), gpu_class=draw(st.sampled_from(["h200", "a100"])))
            workloads[f"{services[-1].metadata.namespace}/s{number}"] = running
    return build_snapshot(
        *services,
        H200,
        build_gpu_class("a100", capability="8.0"),
        build_tenant(
            namespaces=["team-a", "team-b"], gpus={"h200": draw(st.integers(0, 6)), "a100": draw(st.integers(0, 6))}
        ),
        nodes=[NODE, build_node("n2", gpu="a100")],
        workloads=workloads,
    )


@settings(deadline=None)
@given(fleets(), st.integers())
def test_plans_of_one_snapshot_never_promise_more_than_the_quota_whatever_order_they_are_made_in(snapshot, seed):
    order = random.Random(seed).sample(sorted(snapshot.services), len(snapshot.services))
    plans = {key: plan_service(snapshot.services[key], snapshot, SETTINGS) for key in order}

    assert tuple(plans[key] for key in sorted(plans)) == plan_services(snapshot, SETTINGS)
    quota = {gpu.name: gpu.nominal for gpu in snapshot.tenants["acme"].spec.quota.gpus}
    for gpu_class, nominal in quota.items():
        held = sum(runs.devices for runs in snapshot.workloads.values() if runs.gpu_class == gpu_class)
        promised = sum(
            planned.scaling.max_replicas if planned.scaling else planned.replicas or 0
            for planned in plans.values()
            if planned.action is Action.APPLY and planned.gpu_class and planned.gpu_class.name == gpu_class
        )
        assert promised <= max(nominal, held)


@settings(deadline=None)
@given(fleets())
def test_a_newcomer_changes_nothing_for_those_who_run(snapshot):
    newcomer = build_service("newcomer", classes=["h200"], replicas=2, created="2025-01-01T00:00:00Z")
    with_it = Snapshot(
        {**snapshot.services, service_key(newcomer): newcomer},
        snapshot.tenants,
        snapshot.gpu_classes,
        snapshot.nodes,
        snapshot.workloads,
    )

    for key, runs in snapshot.workloads.items():
        before, after = (plan_service(snapshot.services[key], world, SETTINGS) for world in (snapshot, with_it))
        if (
            runs.devices
            and before.action is Action.APPLY
            and before.gpu_class
            and before.gpu_class.name == runs.gpu_class
        ):
            assert after.action is Action.APPLY
            assert after.gpu_class == before.gpu_class
            may_run = after.scaling.max_replicas if after.scaling else after.replicas or 0
            wanted = before.scaling.max_replicas if before.scaling else before.replicas or 0
            assert may_run >= min(runs.devices, wanted)
