"""Batches through the reconcile loop on the in-memory cluster."""

from __future__ import annotations

import datetime
import itertools

from support.builders import build_batch, build_gpu_class, build_node, build_service, build_tenant, build_workload
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.snapshot import BatchRun, Key, Snapshot
from windlass_operator.reconcile.reconciler import Reconciler, Result
from windlass_operator.reconcile.wake import keys_to_wake
from windlass_operator.testing import InMemoryCluster

NIGHTLY = Key("BatchInference", "team-a", "nightly")
CHAT = Key("InferenceService", "team-a", "chat")
TENANT, H200 = Key("Tenant", "", "acme"), Key("GPUClass", "", "h200")


def build_cluster(*objects: object) -> InMemoryCluster:
    cluster = InMemoryCluster()
    cluster.put(build_gpu_class(), build_node(), *objects)  # type: ignore[arg-type]
    return cluster


def build_reconciler(cluster: InMemoryCluster) -> Reconciler:
    ticks = itertools.count()
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return Reconciler(cluster, FleetSettings(), lambda: start + datetime.timedelta(seconds=next(ticks)))


async def test_a_batch_gets_its_job_and_a_status_and_then_nothing_is_written() -> None:
    cluster = build_cluster(build_tenant(gpus={"h200": 4}), build_batch(classes=["h200"]))
    reconciler = build_reconciler(cluster)

    done = await reconciler.reconcile(NIGHTLY)
    again = await reconciler.reconcile(NIGHTLY)

    assert sorted(name.partition("/")[0] for name in done.applied.written) == [
        "ConfigMap", "Job", "NetworkPolicy", "ServiceAccount",
    ]  # fmt: skip
    assert cluster.statuses[NIGHTLY]["conditions"][0]["reason"] == "BatchStarting"
    assert again.result is Result.UNCHANGED


async def test_another_spec_is_another_job() -> None:
    cluster = build_cluster(build_batch())
    reconciler = build_reconciler(cluster)
    await reconciler.reconcile(NIGHTLY)

    cluster.put(build_batch(shards=8))
    done = await reconciler.reconcile(NIGHTLY)

    assert [name.partition("/")[0] for name in done.applied.written] == ["Job"]
    assert [name.partition("/")[0] for name in done.applied.pruned] == ["Job"]


async def test_a_finished_batch_is_remembered_when_its_job_is_gone_and_made_no_more() -> None:
    cluster = build_cluster(build_batch())
    reconciler = build_reconciler(cluster)
    await reconciler.reconcile(NIGHTLY)
    cluster.runs[NIGHTLY] = BatchRun("nightly-a", succeeded=4, outcome="Complete")
    await reconciler.reconcile(NIGHTLY)

    del cluster.runs[NIGHTLY]
    cluster.children.clear()
    done = await reconciler.reconcile(NIGHTLY)

    assert done.result is Result.UNCHANGED
    assert cluster.statuses[NIGHTLY]["phase"] == "Succeeded"
    assert cluster.children == {}


async def test_a_batch_that_has_just_ended_comes_back_when_the_time_of_its_objects_is_up() -> None:
    cluster = build_cluster(build_batch(ttlSecondsAfterFinished=600))
    reconciler = build_reconciler(cluster)
    await reconciler.reconcile(NIGHTLY)
    cluster.runs[NIGHTLY] = BatchRun("nightly-a", succeeded=4, outcome="Complete", finished="2026-01-01T00:00:00Z")

    ended = await reconciler.reconcile(NIGHTLY)
    assert ended.again_in_s is not None
    later = Reconciler(cluster, FleetSettings(), lambda: datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC))
    removed = await later.reconcile(NIGHTLY)

    assert 590 < ended.again_in_s <= 600
    assert "Job" in [name.partition("/")[0] for name in removed.applied.pruned]
    assert (removed.again_in_s, cluster.children) == (None, {})


async def test_a_batch_that_is_gone_is_no_fault() -> None:
    assert (await build_reconciler(build_cluster()).reconcile(NIGHTLY)).result is Result.GONE


def snapshot(**changes: object) -> Snapshot:
    world = {
        "services": {CHAT: build_service(classes=["h200"])},
        "tenants": {"acme": build_tenant(gpus={"h200": 4})},
        "gpu_classes": {"h200": build_gpu_class()},
        "batches": {NIGHTLY: build_batch(classes=["h200"])},
    }
    return Snapshot(**{**world, **changes})  # type: ignore[arg-type]


def test_a_batch_that_takes_or_frees_devices_wakes_all_who_share_them() -> None:
    running = snapshot(workloads={NIGHTLY: build_workload(2, gpu_class="h200")})
    over = snapshot(runs={NIGHTLY: BatchRun("j", outcome="Complete")})

    assert keys_to_wake(NIGHTLY, snapshot(), running) == {NIGHTLY, CHAT, TENANT, H200}
    assert keys_to_wake(NIGHTLY, snapshot(), over) == {NIGHTLY, CHAT, TENANT, H200}


def test_a_batch_whose_shards_end_one_by_one_wakes_nobody_else() -> None:
    held = {NIGHTLY: build_workload(2, gpu_class="h200")}
    before = snapshot(workloads=held, runs={NIGHTLY: BatchRun("j", succeeded=1)})
    after = snapshot(workloads=held, runs={NIGHTLY: BatchRun("j", succeeded=2)})

    assert keys_to_wake(NIGHTLY, before, after) == {NIGHTLY}


def test_a_service_that_takes_devices_wakes_batches_that_share_them() -> None:
    after = snapshot(workloads={CHAT: build_workload(2, gpu_class="h200")})

    assert NIGHTLY in keys_to_wake(CHAT, snapshot(), after)


def test_a_changed_class_or_tenant_wakes_the_batches_that_use_it() -> None:
    other_class = snapshot(gpu_classes={})
    other_tenant = snapshot(tenants={})

    assert NIGHTLY in keys_to_wake(H200, snapshot(), other_class)
    assert NIGHTLY in keys_to_wake(TENANT, snapshot(), other_tenant)
