"""What is decided for a batch: how many workers, on whose devices, and what happens when others need them."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Any

import pytest

from support.builders import (
    build_batch,
    build_gpu_class,
    build_node,
    build_service,
    build_snapshot,
    build_tenant,
    build_workload,
)
from windlass_operator.domain.batch_plan import BatchPlan, plan_batch, plan_batches, removal_due_at
from windlass_operator.domain.batch_workers import batch_key, derive_workers
from windlass_operator.domain.capabilities import Capabilities
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.fleet_plan import plan_tenant
from windlass_operator.domain.fleet_view import FleetView
from windlass_operator.domain.oracle import applied
from windlass_operator.domain.plan import Action, plan_service
from windlass_operator.domain.snapshot import BatchRun, Taking, TakingCause
from windlass_operator.domain.suggestion import Remedy

SETTINGS = FleetSettings()


def plan_one(batch: Any, *world: Any, run: BatchRun | None = None, **runs: Any) -> BatchPlan:
    """The plan of a batch in a world with one H200 node of eight devices."""
    snapshot = build_snapshot(
        batch,
        build_gpu_class(),
        *world,
        nodes=[build_node(devices=8)],
        runs={} if run is None else {f"{batch.metadata.namespace}/{batch.metadata.name}": run},
        **runs,
    )
    return next(plan for plan in plan_batches(snapshot, SETTINGS) if plan.key == batch_key(batch))


@pytest.mark.parametrize(
    ("spec", "run", "expected"),
    [
        pytest.param({}, None, 2, id="as many as asked for"),
        pytest.param({"suspend": True}, None, 0, id="none while suspended"),
        pytest.param({}, BatchRun("j", succeeded=3), 1, id="no more than shards left"),
        pytest.param({}, BatchRun("j", succeeded=2, failed=2), 0, id="none once all have ended"),
        pytest.param({}, BatchRun("j", succeeded=3, outcome="Failed"), 0, id="none once the job is over"),
    ],
)
def test_as_many_workers_run_as_have_shards(spec: dict[str, Any], run: BatchRun | None, expected: int) -> None:
    assert plan_one(build_batch(**spec), run=run).parallelism == expected


def test_workers_hold_the_tenants_quota_as_replicas_do() -> None:
    batch = build_batch(classes=["h200"], parallelism=3)
    tenant = build_tenant(gpus={"h200": 4})
    runs = {"team-a/nightly": build_workload(3, gpu_class="h200")}
    snapshot = build_snapshot(
        batch, tenant, build_gpu_class(), build_service(classes=["h200"], replicas=2),
        nodes=[build_node(devices=8)], batch_workloads=runs,
    )  # fmt: skip

    (use,) = plan_tenant(tenant, snapshot, SETTINGS).gpus

    assert (use.used, use.nominal) == (3, 4)


def test_a_batch_without_room_in_the_quota_waits_and_is_told_what_would_help() -> None:
    running = {"team-a/chat": build_workload(3, gpu_class="h200")}
    service = build_service(classes=["h200"], replicas=3)
    batch = build_batch(classes=["h200"], shards=4, parallelism=2)

    plan = plan_one(batch, service, build_tenant(gpus={"h200": 4}), workloads=running)

    assert (plan.action, plan.parallelism) == (Action.REMOVE, 0)
    assert plan.workers.refusal is not None
    assert plan.workers.refusal.reason == "QuotaExceeded"
    assert "lower spec.parallelism to 1" in plan.workers.refusal.next_step.lower()


def test_the_change_that_is_suggested_for_a_batch_admits_it() -> None:
    service = build_service(classes=["h200"], replicas=3)
    batch = build_batch(classes=["h200"], shards=4, parallelism=2)
    world = [service, build_tenant(gpus={"h200": 4})]
    running = {"team-a/chat": build_workload(3, gpu_class="h200")}
    plan = plan_one(batch, *world, workloads=running)
    found = {one.remedy: one.change for one in plan.workers.suggestions}

    lowered = build_batch(classes=["h200"], shards=4, **found[Remedy.LOWER_REPLICAS].patch["spec"])  # type: ignore[union-attr]
    raised = applied(found[Remedy.RAISE_NOMINAL], build_snapshot(*world)).tenants["acme"]  # type: ignore[arg-type]

    assert plan_one(lowered, *world, workloads=running).parallelism == 1
    assert plan_one(batch, service, raised, workloads=running).parallelism == 2


def test_a_service_of_a_higher_tier_takes_devices_from_a_batch() -> None:
    batch, tenant = build_batch(classes=["h200"], shards=4, parallelism=4), build_tenant(gpus={"h200": 4})
    newcomer = build_service("urgent", classes=["h200"], replicas=4, created="2026-02-01T00:00:00Z")
    runs = {"team-a/nightly": build_workload(4, gpu_class="h200")}

    plan = plan_one(batch, newcomer, tenant, run=BatchRun("j"), batch_workloads=runs)

    assert (plan.action, plan.parallelism) == (Action.APPLY, 0)
    assert plan.workers.refusal is not None
    assert plan.workers.refusal.reason == "QuotaPreempted"
    assert [taking.cause for taking in plan.workers.takings] == [TakingCause.TIER]


def test_a_batch_that_lost_its_devices_stays_as_a_suspended_job_until_they_come_back() -> None:
    batch, tenant = build_batch(classes=["h200"], shards=4, parallelism=4), build_tenant(gpus={"h200": 4})
    service = build_service("urgent", classes=["h200"], replicas=4)
    left = build_workload(0, gpu_class="h200", takings=(Taking(0, 4, 0, TakingCause.TIER),))
    full = {"team-a/urgent": build_workload(4, gpu_class="h200")}

    waiting = plan_one(batch, service, tenant, batch_workloads={"team-a/nightly": left}, workloads=full)
    going_on = plan_one(batch, tenant, batch_workloads={"team-a/nightly": left})

    assert (waiting.action, waiting.parallelism) == (Action.APPLY, 0)
    assert (going_on.action, going_on.parallelism) == (Action.APPLY, 4)


def test_a_batch_never_displaces_a_service() -> None:
    service = build_service(classes=["h200"], replicas=4)
    snapshot = build_snapshot(
        service, build_batch(classes=["h200"], created="2025-01-01T00:00:00Z"), build_tenant(gpus={"h200": 4}),
        build_gpu_class(), nodes=[build_node(devices=8)],
        workloads={"team-a/chat": build_workload(4, gpu_class="h200")},
    )  # fmt: skip

    assert plan_service(service, snapshot, SETTINGS).replicas == 4


def test_batches_and_services_of_one_name_are_two() -> None:
    plan = plan_one(build_batch("chat"), build_service("chat"))

    assert plan.workers.selector == {
        "app.kubernetes.io/instance": "batch.chat",
        "app.kubernetes.io/component": "batch",
    }


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_batch_that_is_over_is_left_alone_even_when_its_job_is_gone(phase: str) -> None:
    plan = plan_one(build_batch(status={"phase": phase}))

    assert (plan.over, plan.action, plan.parallelism) == (True, Action.HOLD, 0)


@pytest.mark.parametrize(
    ("minutes", "action"),
    [
        pytest.param(9, Action.HOLD, id="its objects stay for a while"),
        pytest.param(10, Action.REMOVE, id="and then go"),
    ],
)
def test_objects_of_a_batch_that_is_over_stay_as_long_as_it_says(minutes: int, action: Action) -> None:
    finished = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    status = {"phase": "Succeeded", "finished": "2026-01-01T00:00:00Z"}
    batch = build_batch(status=status, ttlSecondsAfterFinished=600)
    view = FleetView(build_snapshot(batch), SETTINGS, finished + datetime.timedelta(minutes=minutes))

    assert plan_batch(batch, view).action is action
    assert removal_due_at(batch.status, batch.spec) == finished + datetime.timedelta(minutes=10)


def test_objects_stay_until_the_status_has_told_the_end() -> None:
    """However short their time is: who came later could not tell a finished batch from one that never ran."""
    batch = build_batch(ttlSecondsAfterFinished=0)
    run = BatchRun("j", succeeded=4, outcome="Complete", finished="2026-01-01T00:00:00Z")
    later = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)

    plan = plan_batch(batch, FleetView(build_snapshot(batch, runs={"team-a/nightly": run}), SETTINGS, later))

    assert plan.action is Action.HOLD


def test_a_batch_that_is_over_asks_for_no_devices() -> None:
    tenant = build_tenant(gpus={"h200": 2})
    done = build_batch("done", classes=["h200"], status={"phase": "Succeeded"})

    assert plan_one(build_batch(classes=["h200"]), done, tenant).parallelism == 2


def test_a_tier_that_the_tenant_does_not_allow_is_refused() -> None:
    plan = plan_one(build_batch(), build_tenant(allowedTiers=["Standard"]))

    assert plan.workers.refusal is not None
    assert plan.workers.refusal.reason == "TierNotAllowed"


def test_decisions_speak_of_workers_and_of_nothing_that_only_services_have() -> None:
    topics = [one.topic for one in plan_one(build_batch(classes=["h200"]), build_tenant(gpus={"h200": 4})).decisions]

    assert topics == ["tenant", "accelerator", "quota", "model", "precision", "priority", "workers"]


def test_an_edit_that_a_plan_tries_counts_in_the_place_of_the_batch() -> None:
    batch = build_batch(classes=["h200"])
    snapshot = build_snapshot(batch, build_tenant(gpus={"h200": 4}), build_gpu_class())
    tried = derive_workers(build_batch(classes=["h200"], shards=9, parallelism=9), None)
    view = FleetView(replace(snapshot, services={batch_key(batch): tried}), SETTINGS)

    assert view.services_of(snapshot.tenants["acme"])[batch_key(batch)] is tried


def test_batches_are_not_queued_and_their_decisions_say_so() -> None:
    tenant = build_tenant(gpus={"h200": 4}, localQueue="shared")
    snapshot = build_snapshot(build_batch(classes=["h200"]), tenant, build_gpu_class(), nodes=[build_node()])
    (plan,) = plan_batches(replace(snapshot, capabilities=Capabilities(known=True, kueue=True)), SETTINGS)

    (queue,) = [one for one in plan.decisions if one.topic == "queue"]
    assert (plan.workers.queue, queue.choice) == ("", "none")
    assert "would both suspend the Job" in queue.reason
