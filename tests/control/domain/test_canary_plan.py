"""Canaries through the planner: what they take over, what they cost, and who pays."""

from __future__ import annotations

from typing import Any

import pytest

from support.builders import (
    build_canary,
    build_gpu_class,
    build_node,
    build_service,
    build_snapshot,
    build_tenant,
    build_workload,
    service_key,
)
from windlass_operator.api.v1alpha1.canary import CanaryPhase, CanaryStatus
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.domain.canary import spec_hash
from windlass_operator.domain.canary_plan import advance_canaries, canary_key, canary_of, derive_canaries
from windlass_operator.domain.canary_plan import service_key as owner_of
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import Action, ServicePlan, plan_service
from windlass_operator.domain.snapshot import Key, Snapshot, Workload
from windlass_operator.domain.status import plan_service_status

NOW = "2026-01-01T00:00:00Z"
SETTINGS = FleetSettings()


def with_states(service: InferenceService, *states: CanaryStatus) -> InferenceService:
    return service.model_copy(update={"status": service.status.model_copy(update={"canaries": list(states)})})


def aborted(service: InferenceService, position: int = 0) -> CanaryStatus:
    canary = service.spec.canaries[position]
    return CanaryStatus(
        name=canary.name, phase=CanaryPhase.ABORTED, reason="AnalysisFailed", message="bad", spec_hash=spec_hash(canary)
    )


def plan(service: InferenceService, snapshot: Snapshot | None = None) -> ServicePlan:
    snapshot = snapshot or build_snapshot(service)
    return plan_service(advance_canaries(service, snapshot.workloads, {}, NOW), snapshot, SETTINGS)


def gpu_world(*services: InferenceService, quota: int = 4, workloads: dict[str, Workload] | None = None) -> Snapshot:
    return build_snapshot(
        *services,
        build_tenant(gpus={"h200": quota, "l4": 1}),
        build_gpu_class(),
        build_gpu_class("l4", memory="24Gi", capability="8.9"),
        nodes=[build_node(), build_node("node-2", gpu="l4")],
        workloads=workloads,
    )


def test_a_canary_key_cannot_be_a_service_and_leads_back_to_its_own() -> None:
    chat = Key("InferenceService", "team-a", "chat")

    key = canary_key(chat, "next")

    assert (owner_of(key), canary_of(key)) == (chat, "next")
    assert (owner_of(chat), canary_of(chat)) == (chat, "")
    assert "/" in key.name


def test_a_canary_replaces_what_it_names_and_keeps_the_rest() -> None:
    service = build_service(
        replicas=3,
        tier="Batch",
        precision={"preset": "FP32"},
        limits={"maxRunningRequests": 8},
        canaries=[build_canary(model={"uri": "file:///models/next"}, precision={"preset": "FP16"}, replicas=2)],
    )

    (derived,) = derive_canaries(service)

    assert derived.spec.model.uri == "file:///models/next"
    assert derived.spec.model.served_name == "chat", "clients go on naming the service"
    assert derived.spec.precision.preset == "FP16"
    assert (derived.spec.replicas, derived.spec.limits.max_running_requests, derived.spec.tier) == (2, 8, "Batch")


def test_an_autoscaler_of_the_service_does_not_scale_its_canary() -> None:
    (derived,) = derive_canaries(build_service(scaling={"maxReplicas": 9}, canaries=[build_canary()]))

    assert (derived.spec.scaling, derived.spec.replicas) == (None, 1)


def test_the_plan_of_a_service_holds_those_of_its_canaries() -> None:
    found = plan(build_service(canaries=[build_canary("a"), build_canary("b", 20)]))

    assert [(item.key.name, item.canary, item.service, item.replicas) for item in found.canaries] == [
        ("chat-a", "a", "chat", 1),
        ("chat-b", "b", "chat", 1),
    ]
    assert [item.address for item in found.canaries] == [
        "http://chat-a.team-a.svc.cluster.local:8000/v1",
        "http://chat-b.team-a.svc.cluster.local:8000/v1",
    ]


def test_a_plan_without_canaries_is_what_it_was() -> None:
    found = plan(build_service())

    assert (found.canaries, found.canary_states) == ((), ())
    assert found.selector == {"app.kubernetes.io/instance": "chat", "app.kubernetes.io/component": "runtime"}


def test_no_selector_of_one_revision_catches_another() -> None:
    found = plan(build_service(canaries=[build_canary("a"), build_canary("b")]))
    revisions = [found, *found.canaries]

    for one in revisions:
        for other in revisions:
            assert (one.selector.items() <= other.selector.items()) == (one is other)


def test_a_canary_counts_against_the_quota() -> None:
    service = build_service(classes=["h200"], replicas=2, canaries=[build_canary(replicas=3)])

    found = plan(service, gpu_world(service, quota=4))

    (canary,) = found.canaries
    assert found.action is Action.APPLY
    assert canary.action is Action.REMOVE
    assert canary.refusal is not None
    assert canary.refusal.reason == "QuotaExceeded"
    assert found.canary_states[0].reason == "QuotaExceeded"
    assert found.canary_states[0].traffic_percent == 0


def test_a_canary_that_fits_gets_its_devices_and_others_see_them() -> None:
    service = build_service(classes=["h200"], replicas=2, canaries=[build_canary(replicas=2)])
    newcomer = build_service("new", classes=["h200"], replicas=1, created="2026-02-01T00:00:00Z")
    running = {
        "team-a/chat": build_workload(2, gpu_class="h200"),
        "team-a/chat/next": build_workload(2, gpu_class="h200"),
    }
    snapshot = gpu_world(service, newcomer, workloads={})
    snapshot = Snapshot(
        snapshot.services,
        snapshot.tenants,
        snapshot.gpu_classes,
        snapshot.nodes,
        {Key("InferenceService", *name.split("/", 1)): workload for name, workload in running.items()},
    )

    found, refused = plan(service, snapshot), plan(newcomer, snapshot)

    assert [item.action for item in found.canaries] == [Action.APPLY]
    assert refused.refusal is not None
    assert refused.refusal.reason == "QuotaExceeded"


def test_a_canary_may_run_on_another_class() -> None:
    service = build_service(classes=["h200"], canaries=[build_canary(accelerator={"classes": ["l4"]})])

    found = plan(service, gpu_world(service))

    assert found.gpu_class is not None
    assert found.gpu_class.name == "h200"
    assert [item.gpu_class.name for item in found.canaries if item.gpu_class] == ["l4"]


def test_an_aborted_canary_wants_no_replicas_and_frees_its_share_of_the_quota() -> None:
    service = build_service(classes=["h200"], replicas=3, canaries=[build_canary()])
    failed = with_states(service, aborted(service))
    newcomer = build_service("new", classes=["h200"], created="2026-02-01T00:00:00Z")
    snapshot = gpu_world(failed, newcomer, quota=4)

    found = plan(failed, snapshot)

    assert [item.replicas for item in found.canaries] == [0]
    assert found.canary_states[0].phase is CanaryPhase.ABORTED
    assert plan(newcomer, snapshot).action is Action.APPLY


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        pytest.param({"suspend": True}, [0], id="suspended"),
        pytest.param({}, [1], id="running"),
    ],
)
def test_a_suspended_service_runs_no_canaries(spec: dict[str, Any], names: list[int]) -> None:
    found = plan(build_service(canaries=[build_canary()], **spec))

    assert [item.replicas for item in found.canaries] == names


def status_of(service: InferenceService, snapshot: Snapshot) -> Any:
    advanced = advance_canaries(service, snapshot.workloads, {}, NOW)
    found = plan_service(advanced, snapshot, SETTINGS)
    return plan_service_status(found, snapshot.workloads.get(service_key(service)), advanced.status, NOW)


def test_the_status_tells_of_each_canary() -> None:
    service = build_service(canaries=[build_canary(), build_canary("dark", 0)])
    snapshot = build_snapshot(service, workloads={"team-a/chat": build_workload(1)})
    running = {**snapshot.workloads, canary_key(service_key(service), "dark"): build_workload(1)}

    status = status_of(service, Snapshot(snapshot.services, workloads=running))

    assert [(item.name, item.phase, item.traffic_percent, item.ready_replicas) for item in status.canaries] == [
        ("next", CanaryPhase.PENDING, 0, 0),
        ("dark", CanaryPhase.RUNNING, 0, 1),
    ]
    assert [item.choice for item in status.decisions if item.topic.startswith("canary")] == [
        "Pending, 0 % of the traffic",
        "Running, 0 % of the traffic",
    ]


def test_a_canary_is_no_condition_until_one_fails() -> None:
    service = build_service(canaries=[build_canary()])
    snapshot = build_snapshot(service, workloads={"team-a/chat": build_workload(1)})

    usual = status_of(service, snapshot)
    failed = status_of(with_states(service, aborted(service)), snapshot)

    assert not [item for item in usual.conditions if item.type == "CanaryAborted"]
    (condition,) = (item for item in failed.conditions if item.type == "CanaryAborted")
    assert (condition.status, condition.reason, condition.message) == ("True", "AnalysisFailed", "next: bad")
    assert failed.conditions[0].status == "True", "the stable revision is ready"


def test_a_canary_that_left_the_spec_leaves_the_status() -> None:
    service = with_states(build_service(), CanaryStatus(name="gone"))

    assert status_of(service, build_snapshot(service)).canaries == []


def test_a_canary_on_full_gpus_is_replaced_by_stopping_it_first() -> None:
    service = build_service(classes=["l4"], replicas=0, rollout={"minAvailable": 0}, canaries=[build_canary()])
    snapshot = gpu_world(service)
    running = {canary_key(service_key(service), "next"): build_workload(1, gpu_class="l4")}
    full = Snapshot(
        snapshot.services,
        snapshot.tenants,
        snapshot.gpu_classes,
        {"node-2": build_node("node-2", gpu="l4", devices=1)},
        running,
    )

    (canary,) = plan(service, full).canaries

    assert (canary.rollout.max_surge, canary.rollout.max_unavailable) == (0, 1)
