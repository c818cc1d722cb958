"""The reconcile loop on the in-memory cluster: real plans, real objects, no Kubernetes."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import itertools
from unittest.mock import AsyncMock

import pytest

from support.builders import build_workload
from windlass_operator import errors
from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain import admission
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.revision import fingerprint
from windlass_operator.domain.rollout import SETTLE_S
from windlass_operator.domain.sharing import share_cohort
from windlass_operator.domain.snapshot import Key, Node, Revision, Workload
from windlass_operator.reconcile.keyed_queue import AsyncKeyedQueue, Backoff, KeyedQueue, Rate
from windlass_operator.reconcile.reconciler import Reconciler, Result, Workers
from windlass_operator.testing import InMemoryCluster

CHAT = Key("InferenceService", "team-a", "chat")
TEAM = Key("Tenant", "", "team-a")
H200 = Key("GPUClass", "", "h200")


def build_service(name="chat", namespace="team-a", generation=1, deleted=False, **spec):
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "generation": generation}
    if deleted:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return InferenceService.model_validate(
        {"metadata": metadata, "spec": {"model": {"uri": "file:///models/m"}, **spec}}
    )


def build_tenant(name="team-a", namespaces=("team-a",), **spec):
    return Tenant.model_validate(
        {"metadata": {"name": name, "generation": 1}, "spec": {"namespaces": list(namespaces), **spec}}
    )


def build_gpu_class(name="h200"):
    spec = {"nodeSelector": {"gpu": name}, "memory": "141Gi", "computeCapability": "9.0"}
    return GPUClass.model_validate({"metadata": {"name": name, "generation": 1}, "spec": spec})


def build_cluster(*objects) -> InMemoryCluster:
    cluster = InMemoryCluster()
    cluster.put(*objects)
    return cluster


def build_reconciler(cluster) -> Reconciler:
    ticks = itertools.count()
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    # Every look at the clock is another second: an unneeded time stamp in a status would show as a write.
    return Reconciler(cluster, FleetSettings(), lambda: start + datetime.timedelta(seconds=next(ticks)))


async def test_a_service_gets_its_children_and_a_status():
    cluster = build_cluster(build_tenant(), build_service())

    done = await build_reconciler(cluster).reconcile(CHAT)

    assert done.result is Result.CHANGED
    assert {"Deployment/chat", "Service/chat"} <= set(done.applied.written)
    assert cluster.statuses[CHAT]["observedGeneration"] == 1
    assert cluster.statuses[CHAT]["tenant"] == "team-a"


@pytest.mark.parametrize("key", [CHAT, TEAM, H200], ids=str)
async def test_a_second_reconcile_writes_nothing(key):
    cluster = build_cluster(build_tenant(), build_service(), build_gpu_class())
    reconciler = build_reconciler(cluster)
    await reconciler.reconcile(key)
    cluster.writes.clear()

    done = await reconciler.reconcile(key)

    assert (done.result, cluster.writes) == (Result.UNCHANGED, [])


async def settle(objects, order, rounds=4):
    cluster = build_cluster(*objects)
    reconciler = build_reconciler(cluster)
    for _ in range(rounds):
        for key in order:
            await reconciler.reconcile(key)
    conditions = {
        key: [(one["type"], one["status"], one["reason"], one["message"]) for one in status["conditions"]]
        for key, status in cluster.statuses.items()
    }
    return {object_id: manifest for object_id, (_, manifest) in cluster.children.items()}, conditions


async def test_the_order_of_reconciles_does_not_change_the_outcome():
    nodes = [Node("n1", {"gpu": "h200"}, {"nvidia.com/gpu": 8})]
    services = [build_service(name, accelerator={"classes": ["h200"]}) for name in ("chat", "search", "code")]
    quota = {"gpus": [{"name": "h200", "nominal": 2}]}
    objects = [build_tenant(quota=quota), build_gpu_class(), *nodes, *services]
    keys = [TEAM, H200, *(Key("InferenceService", "team-a", name) for name in ("chat", "search", "code"))]

    outcomes = [await settle(objects, order) for order in itertools.permutations(keys)]

    assert all(outcome == outcomes[0] for outcome in outcomes)
    admitted = [{kind: status for kind, status, *_ in outcomes[0][1][key]}["Admitted"] for key in keys[2:]]
    assert sorted(admitted) == ["False", "True", "True"], "two of three services fit a quota of two"


async def test_services_are_planned_from_one_view_while_the_picture_stays(monkeypatch):
    """A restart reconciles thousands of services; sharing a tenant's quota anew for each would take the square."""
    names = ("chat", "search", "code")
    services = [build_service(name, accelerator={"classes": ["h200"]}) for name in names]
    cluster = build_cluster(
        build_tenant(quota={"gpus": [{"name": "h200", "nominal": 3}]}), build_gpu_class(), *services
    )
    picture = await cluster.observe(CHAT)
    shared = []
    monkeypatch.setattr(cluster, "observe", AsyncMock(return_value=picture))
    monkeypatch.setattr(admission, "share_cohort", lambda *world: shared.append(1) or share_cohort(*world))
    reconciler = build_reconciler(cluster)

    for name in names:
        await reconciler.reconcile(Key("InferenceService", "team-a", name))

    assert shared == [1]


class SlowCluster(InMemoryCluster):
    """A cluster whose writes take their time, and whose pods hold what their Deployment asks for."""

    async def apply(self, owner, children):
        for _ in range(3):
            await asyncio.sleep(0)
        applied = await super().apply(owner, children)
        for child in children:
            if child["kind"] == "Deployment":
                replicas = child["spec"]["replicas"]
                self.workloads[owner] = Workload(replicas=replicas, wanted=replicas, gpu_class="h200", devices=replicas)
        return applied


async def test_devices_that_are_being_given_away_are_not_given_away_again():
    """A borrower's Deployment is on its way when the owner's service appears."""
    quota = {"quota": {"gpus": [{"name": "h200", "nominal": 2}]}, "cohort": "research"}
    guest, owner = Key("InferenceService", "team-b", "guest"), Key("InferenceService", "team-a", "owner")
    fields = {"accelerator": {"classes": ["h200"]}}
    cluster = SlowCluster()
    cluster.put(
        build_tenant(**quota),
        build_tenant("team-b", ["team-b"], **quota),
        build_gpu_class(),
        build_service("guest", "team-b", replicas=4, **fields),
    )
    reconciler = build_reconciler(cluster)

    borrowing = asyncio.create_task(reconciler.reconcile(guest))
    await asyncio.sleep(0)
    cluster.put(build_service("owner", replicas=2, **fields))
    await asyncio.gather(borrowing, reconciler.reconcile(owner))

    assert {key: runs.devices for key, runs in cluster.workloads.items()} == {guest: 4}
    assert cluster.statuses[owner]["conditions"][0]["reason"] == "QuotaReturning"


async def test_a_child_that_somebody_deleted_comes_back():
    cluster = build_cluster(build_tenant(), build_service())
    reconciler = build_reconciler(cluster)
    await reconciler.reconcile(CHAT)
    del cluster.children["Deployment", "team-a", "chat"]

    done = await reconciler.reconcile(CHAT)

    assert done.applied.written == ("Deployment/chat",)


async def test_children_that_a_changed_spec_no_longer_needs_go():
    scaling = {"maxReplicas": 3}
    cluster = build_cluster(build_tenant(), build_service(scaling=scaling))
    reconciler = build_reconciler(cluster)
    await reconciler.reconcile(CHAT)
    cluster.put(build_service(generation=2, replicas=2))

    done = await reconciler.reconcile(CHAT)

    assert "HorizontalPodAutoscaler/chat" in done.applied.pruned


@pytest.mark.parametrize("how", ["gone", "leaving"])
async def test_a_service_that_is_gone_or_leaving_gets_no_writes(how):
    cluster = build_cluster(build_tenant(), build_service(deleted=True))
    if how == "gone":
        cluster.delete(CHAT)

    done = await build_reconciler(cluster).reconcile(CHAT)

    assert (done.result, cluster.writes) == (Result.GONE, [])


async def test_a_refused_object_is_named_in_the_status_and_the_others_are_applied():
    cluster = build_cluster(build_tenant(), build_service())
    cluster.refused["Deployment/chat"] = "QuotaExceeded: exceeded quota: pods"

    done = await build_reconciler(cluster).reconcile(CHAT)

    ready = next(one for one in cluster.statuses[CHAT]["conditions"] if one["type"] == "Ready")
    assert done.result is Result.PROBLEMS
    assert "Service/chat" in done.applied.written
    assert (ready["status"], "exceeded quota: pods" in ready["message"]) == ("False", True)


async def test_a_refused_plan_leaves_running_replicas_alone():
    """HOLD: a tenant that loses its quota keeps what already serves."""
    cluster = build_cluster(build_tenant(), build_service())
    reconciler = build_reconciler(cluster)
    await reconciler.reconcile(CHAT)
    before = cluster.children_of(CHAT)
    cluster.workloads[CHAT] = Workload(replicas=1, ready=1, updated=1, updated_ready=1, wanted=1)
    cluster.put(build_service(generation=2, accelerator={"classes": ["no-such-class"]}))

    await reconciler.reconcile(CHAT)

    ready = next(one for one in cluster.statuses[CHAT]["conditions"] if one["type"] == "Ready")
    assert cluster.children_of(CHAT) == before
    assert ready["status"] == "False"


async def test_what_the_apply_brought_is_in_the_status_of_the_same_reconcile():
    """The workload is observed after the apply, or the status would tell of the moment before."""

    class Lively(InMemoryCluster):
        async def apply(self, owner, children):
            applied = await super().apply(owner, children)
            self.workloads[owner] = Workload(replicas=1, ready=1, updated=1, updated_ready=1, wanted=1)
            return applied

    cluster = Lively()
    cluster.put(build_tenant(), build_service())

    await build_reconciler(cluster).reconcile(CHAT)

    assert cluster.statuses[CHAT]["readyReplicas"] == 1


GPU = {"accelerator": {"classes": ["h200"]}, "rollout": {"minAvailable": 1}}


def build_rolling_cluster(*names: str, devices: int) -> InMemoryCluster:
    """Services of one promised replica each, on so many devices."""
    cluster = build_cluster(
        build_gpu_class(),
        Node("n", {"gpu": "h200"}, {"nvidia.com/gpu": devices}),
        *(build_service(n, **GPU) for n in names),
    )
    for name in names:
        key = Key("InferenceService", "team-a", name)
        cluster.workloads[key] = build_workload(1, gpu_class="h200", template="old", revisions=(OLD,), max_surge=1)
    return cluster


OLD = Revision("old", 1, 1, "h200", newest=True)


def strategy_of(cluster: InMemoryCluster, name: str) -> tuple[int, bool]:
    """maxSurge, and whether the Deployment waits."""
    ((_, manifest),) = [one for key, one in cluster.children.items() if key == ("Deployment", "team-a", name)]
    return manifest["spec"]["strategy"]["rollingUpdate"]["maxSurge"], manifest["spec"].get("paused", False)


async def test_two_rollouts_planned_at_the_same_moment_do_not_both_take_the_free_device():
    class Slow(InMemoryCluster):
        async def apply(self, owner, children):
            await asyncio.sleep(0.01)  # as an API server takes its time: the other one plans meanwhile
            applied = await super().apply(owner, children)
            template = next(child["spec"]["template"] for child in children if child["kind"] == "Deployment")
            paused = next(child for child in children if child["kind"] == "Deployment")["spec"].get("paused", False)
            self.workloads[owner] = dataclasses.replace(
                self.workloads[owner], template=fingerprint(template), observed=False, paused=paused
            )
            return applied

    cluster = Slow(**vars(build_rolling_cluster("chat", "code", devices=3)))
    reconciler = build_reconciler(cluster)

    await asyncio.gather(*(reconciler.reconcile(Key("InferenceService", "team-a", name)) for name in ("chat", "code")))

    assert sorted(strategy_of(cluster, name) for name in ("chat", "code")) == [(1, False), (1, True)]
    states = [cluster.statuses[Key("InferenceService", "team-a", n)]["rollout"]["state"] for n in ("chat", "code")]
    assert sorted(states) == ["InProgress", "Waiting"]


async def test_a_pod_without_a_place_is_looked_at_again_before_it_is_believed():
    cluster = build_rolling_cluster("chat", devices=3)
    cluster.workloads[CHAT] = dataclasses.replace(
        cluster.workloads[CHAT], replicas=2, unplaced=1, template="new", observed=False
    )

    done = await build_reconciler(cluster).reconcile(CHAT)

    assert 0 < done.again_in_s <= SETTLE_S
    assert cluster.statuses[CHAT]["rollout"]["state"] == "InProgress"


async def test_a_pod_that_stays_without_a_place_blocks_a_rollout_that_may_stop_no_other():
    cluster = build_rolling_cluster("chat", devices=3)
    cluster.workloads[CHAT] = dataclasses.replace(
        cluster.workloads[CHAT], replicas=2, unplaced=1, template="new", observed=False
    )
    reconciler = build_reconciler(cluster)

    for _ in range(30):  # a second of the test's clock passes with every look at it
        done = await reconciler.reconcile(CHAT)

    assert done.again_in_s is None
    assert cluster.statuses[CHAT]["rollout"]["state"] == "Blocked"


class Bench:
    """Workers on a queue whose clock the test moves."""

    def __init__(self, cluster) -> None:
        self.now = 0.0
        self.core = KeyedQueue[Key](Backoff(1.0, 60.0, 0.0), Rate(1e6, 10**6))
        self.queue = AsyncKeyedQueue[Key](self.core, lambda: self.now, lambda: 0.0)
        self.results: list[tuple[Key, Result]] = []
        self.finished = asyncio.Event()
        self.may_work = asyncio.Event()
        self.may_work.set()
        self.workers = Workers(
            build_reconciler(cluster),
            self.queue,
            may_work=self._wait,
            clock=lambda: self.now,
            observe=self._observe,
            problem_retry_s=60.0,
        )

    def _observe(self, key: Key, result: Result, seconds: float) -> None:
        self.results.append((key, result))
        self.finished.set()

    async def _wait(self) -> None:
        await self.may_work.wait()

    async def run(self, key: Key) -> Result:
        """Let one worker take and finish one key."""
        self.queue.add(key)
        task = asyncio.create_task(self.workers.work())
        self.finished.clear()
        await asyncio.wait_for(self.finished.wait(), 2.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return self.results[-1][1]


@pytest.mark.parametrize(
    ("failure", "expected", "comes_back_s"),
    [
        pytest.param(
            errors.ApplyConflict("conflict", after_s=0.2), Result.RETRY, 1.0, id="a conflict after the backoff"
        ),
        pytest.param(errors.RetryLater("429", after_s=17.0), Result.RETRY, 17.0, id="a busy server when it says"),
        pytest.param(errors.ClusterUnavailable("no route"), Result.FAILED, 1.0, id="no cluster after the backoff"),
        pytest.param(ZeroDivisionError("a bug"), Result.FAILED, 1.0, id="a bug after the backoff"),
        pytest.param(
            errors.InvalidInput((errors.Problem("spec", "x", "y"),)),
            Result.INVALID,
            None,
            id="unreadable input on a change only",
        ),
    ],
)
async def test_what_goes_wrong_decides_when_a_key_comes_back(failure, expected, comes_back_s):
    cluster = build_cluster(build_tenant(), build_service())
    cluster.failures.append(failure)
    bench = Bench(cluster)

    result = await bench.run(CHAT)

    assert (result, bench.core.next_due_s(0.0)) == (expected, comes_back_s)


async def test_a_conflict_is_gone_after_the_retry():
    cluster = build_cluster(build_tenant(), build_service())
    cluster.failures.append(errors.ApplyConflict("conflict"))
    bench = Bench(cluster)
    await bench.run(CHAT)
    bench.now = 10.0

    assert await bench.run(CHAT) is Result.CHANGED
    assert ("Deployment", "team-a", "chat") in cluster.children


async def test_a_refused_object_is_tried_again_after_a_while():
    cluster = build_cluster(build_tenant(), build_service())
    cluster.refused["Deployment/chat"] = "QuotaExceeded: no room"
    bench = Bench(cluster)

    assert await bench.run(CHAT) is Result.PROBLEMS
    assert bench.core.next_due_s(0.0) == 60.0


async def test_a_worker_that_is_cancelled_gives_its_key_back():
    class Stuck(InMemoryCluster):
        async def observe(self, key):
            await asyncio.Event().wait()

    bench = Bench(Stuck())
    bench.queue.add(CHAT)
    task = asyncio.create_task(bench.workers.work())
    for _ in range(5):
        await asyncio.sleep(0)
    assert bench.core.busy == {CHAT}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert (bench.core.busy, bench.core.depth) == (frozenset(), 1)


async def test_a_standby_takes_no_keys():
    cluster = build_cluster(build_tenant(), build_service())
    bench = Bench(cluster)
    bench.may_work.clear()
    bench.queue.add(CHAT)
    task = asyncio.create_task(bench.workers.work())
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert (bench.results, bench.core.depth) == ([], 1)


async def test_metrics_that_are_lost_now_are_looked_at_again_when_the_fallback_is_due():
    """The status that tells of it is our own write: nothing else would wake the service."""
    scaling = {"minReplicas": 1, "maxReplicas": 6, "fallback": {"replicas": 4, "afterSeconds": 300}}
    cluster = build_cluster(build_service(scaling=scaling))
    problem = "FailedGetPodsMetric: no metrics"
    cluster.workloads[CHAT] = build_workload(1, autoscaler_problem=problem)

    done = await build_reconciler(cluster).reconcile(CHAT)

    assert 290 < done.again_in_s <= 310  # each look at the clock of the test costs a second
