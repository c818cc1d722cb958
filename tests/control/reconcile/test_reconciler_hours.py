"""Plans that change with the hour alone: the reconcile says when to come back, and finds another plan then."""

from __future__ import annotations

import asyncio
import datetime

import pytest

from support.builders import build_service, build_workload
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.snapshot import Key
from windlass_operator.reconcile.keyed_queue import AsyncKeyedQueue, Backoff, KeyedQueue, Rate
from windlass_operator.reconcile.reconciler import Reconciler, Workers
from windlass_operator.testing import InMemoryCluster

CHAT = Key("InferenceService", "team-a", "chat")
OFFICE = {"name": "office", "timeZone": "Europe/Berlin", "start": "08:00", "end": "18:00", "minReplicas": 4}
SCALING = {"minReplicas": 1, "maxReplicas": 9, "schedules": [OFFICE]}


class Hours:
    """A cluster with one service, and a clock that the test sets."""

    def __init__(self, scaling: dict[str, object]) -> None:
        self.now = datetime.datetime(2026, 1, 15, 6, 0, tzinfo=datetime.UTC)
        self.cluster = InMemoryCluster()
        self.cluster.put(build_service(scaling=scaling))
        self.cluster.workloads[CHAT] = build_workload(1)
        self.reconciler = Reconciler(self.cluster, FleetSettings(), lambda: self.now)

    @property
    def minimum(self) -> int:
        """What the autoscaler is told."""
        _, manifest = self.cluster.children["HorizontalPodAutoscaler", "team-a", "chat"]
        found: int = manifest["spec"]["minReplicas"]
        return found


async def test_a_reconcile_comes_back_at_the_next_boundary_and_finds_other_bounds() -> None:
    world = Hours(SCALING)

    before = await world.reconciler.reconcile(CHAT)
    assert (before.again_in_s, world.minimum) == (3600.0, 1)

    world.now += datetime.timedelta(hours=1)
    within = await world.reconciler.reconcile(CHAT)
    assert (within.again_in_s, world.minimum) == (36_000.0, 4)

    world.now += datetime.timedelta(hours=10)
    await world.reconciler.reconcile(CHAT)
    assert world.minimum == 1


async def test_without_schedules_nothing_comes_back_by_itself() -> None:
    world = Hours({"minReplicas": 1, "maxReplicas": 9})

    assert (await world.reconciler.reconcile(CHAT)).again_in_s is None


async def test_a_fallback_comes_due_without_an_event() -> None:
    world = Hours({"minReplicas": 1, "maxReplicas": 9, "fallback": {"replicas": 3, "afterSeconds": 120}})
    world.cluster.workloads[CHAT] = build_workload(1, autoscaler_problem="FailedGetPodsMetric: no values")
    await world.reconciler.reconcile(CHAT)
    world.cluster.put(
        build_service(scaling=SCALING).model_copy(
            update={
                "spec": world.cluster.services[CHAT].spec,
                "status": world.cluster.services[CHAT].status.model_validate(world.cluster.statuses[CHAT]),
            }
        )
    )

    held = await world.reconciler.reconcile(CHAT)
    assert (held.again_in_s, world.minimum) == (120.0, 1)

    world.now += datetime.timedelta(seconds=120)
    await world.reconciler.reconcile(CHAT)
    assert world.minimum == 3


@pytest.mark.timeout(10)
async def test_the_queue_takes_the_service_again_when_it_says_so() -> None:
    world = Hours(SCALING)
    world.now = datetime.datetime(2026, 1, 15, 6, 59, 59, 900_000, tzinfo=datetime.UTC)
    clock = asyncio.get_running_loop().time
    begun = clock()
    start = world.now
    world.reconciler = Reconciler(
        world.cluster, FleetSettings(), lambda: start + datetime.timedelta(seconds=clock() - begun)
    )
    queue = AsyncKeyedQueue(KeyedQueue[Key](Backoff(), Rate()), clock, lambda: 0.0)

    async def always() -> None:
        """Leading."""

    workers = Workers(world.reconciler, queue, may_work=always, clock=clock, observe=lambda *_: None)
    working = asyncio.create_task(workers.work())
    queue.add(CHAT)
    while not world.cluster.children or world.minimum == 1:
        await asyncio.sleep(0.01)
    queue.close()
    await working

    assert world.minimum == 4
