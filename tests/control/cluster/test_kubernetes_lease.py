from __future__ import annotations

import asyncio
import datetime

import pytest

from windlass_operator import errors
from windlass_operator.cluster.kubernetes_lease import (
    LeaderElector,
    Leadership,
    LeaseAction,
    LeaseRecord,
    LeaseTimes,
    decide_lease,
    next_record,
)

NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("record", "unchanged_s", "expected"),
    [
        pytest.param(None, 0, LeaseAction.CREATE, id="no lease yet"),
        pytest.param(LeaseRecord("me"), 999, LeaseAction.RENEW, id="mine, however old"),
        pytest.param(LeaseRecord("other"), 0, LeaseAction.WAIT, id="a live leader"),
        pytest.param(LeaseRecord("other"), 15, LeaseAction.WAIT, id="exactly at its end"),
        pytest.param(LeaseRecord("other"), 15.1, LeaseAction.ACQUIRE, id="a silent leader"),
        pytest.param(LeaseRecord("other", duration_s=60), 30, LeaseAction.WAIT, id="the leader's own duration counts"),
        pytest.param(LeaseRecord(""), 0, LeaseAction.ACQUIRE, id="released"),
    ],
)
def test_a_candidate_takes_only_a_lease_that_nobody_keeps(record, unchanged_s, expected):
    assert decide_lease(record, "me", unchanged_s) is expected


def test_a_renewal_keeps_the_time_of_acquisition_and_a_takeover_counts_as_a_transition():
    mine = LeaseRecord("me", 15, "t1", "t0", 4, "77")

    renewed, taken = next_record(mine, "me", "t2", 15), next_record(mine, "you", "t2", 15)

    assert (renewed.acquire_time, renewed.transitions, renewed.resource_version) == ("t0", 4, "77")
    assert (taken.acquire_time, taken.transitions, taken.holder) == ("t2", 5, "you")


class StoredLease:
    """The part of KubernetesClient an elector uses: one object with optimistic locking."""

    def __init__(self) -> None:
        self.manifest = None
        self.version = 0
        self.broken: Exception | None = None

    async def get_at(self, path):
        self._fail()
        return self.manifest

    async def create(self, kind, namespace, manifest):
        self._fail()
        if self.manifest is not None:
            raise errors.ApplyConflict("exists")
        return self._store(manifest)

    async def replace(self, kind, manifest):
        self._fail()
        if manifest["metadata"].get("resourceVersion") != str(self.version):
            raise errors.ApplyConflict("stale")
        return self._store(manifest)

    def _store(self, manifest):
        self.version += 1
        self.manifest = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": str(self.version)}}
        return self.manifest

    def _fail(self):
        if self.broken is not None:
            raise self.broken


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def build_elector(store, clock, identity):
    leadership = Leadership(clock)
    elector = LeaderElector(
        store,
        leadership,
        namespace="ns",
        name="lease",
        identity=identity,
        times=LeaseTimes(15, 10, 2),
        clock=clock,
        wall_clock=lambda: NOON,
    )
    return elector, leadership


async def test_only_one_of_two_candidates_leads():
    store, clock = StoredLease(), Clock()
    (one, first), (other, second) = build_elector(store, clock, "one"), build_elector(store, clock, "other")

    for _ in range(3):
        await one._attempt()
        await other._attempt()
        clock.now += 2

    assert (first.held, second.held) == (True, False)


async def test_a_standby_takes_over_once_the_leader_is_silent_for_the_whole_duration():
    store, clock = StoredLease(), Clock()
    (one, first), (other, second) = build_elector(store, clock, "one"), build_elector(store, clock, "other")
    await one._attempt()
    await other._attempt()

    held = []
    for _ in range(10):
        clock.now += 2
        await other._attempt()
        held.append((first.held, second.held))

    assert (True, True) not in held
    assert held[-1] == (False, True)


async def test_a_leader_that_cannot_renew_stops_writing_before_anybody_else_may_start():
    store, clock = StoredLease(), Clock()
    elector, leadership = build_elector(store, clock, "one")
    await elector._attempt()
    store.broken = errors.RetryLater("server away")

    clock.now += 9.9
    await elector._attempt()
    still = leadership.held
    clock.now += 0.2

    assert (still, leadership.held) == (True, False)
    with pytest.raises(errors.RetryLater, match="does not hold the lease"):
        leadership.require()


async def test_a_leader_that_sees_another_holder_drops_at_once():
    store, clock = StoredLease(), Clock()
    elector, leadership = build_elector(store, clock, "one")
    await elector._attempt()
    store.manifest["spec"]["holderIdentity"] = "thief"

    await elector._attempt()

    assert not leadership.held


async def test_stopping_releases_the_lease_for_the_next_one():
    store, clock = StoredLease(), Clock()
    elector, leadership = build_elector(store, clock, "one")
    task = asyncio.create_task(elector.run())
    await asyncio.wait_for(leadership.wait(), 1.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    other, second = build_elector(store, clock, "other")
    await other._attempt()

    assert (leadership.held, second.held) == (False, True)


async def test_waiting_for_leadership_ends_when_it_is_given():
    leadership = Leadership(Clock())
    waiting = asyncio.create_task(leadership.wait())
    await asyncio.sleep(0)
    await leadership.extend(200.0)

    await asyncio.wait_for(waiting, 1.0)


async def test_a_standby_looks_again_exactly_when_a_silent_leaders_lease_ends():
    """Looking only every two seconds would add up to two to a failover."""
    store, clock = StoredLease(), Clock()
    (one, _), (other, _) = build_elector(store, clock, "one"), build_elector(store, clock, "other")
    await one._attempt()
    await other._attempt()

    clock.now += 14
    await other._attempt()
    near_the_end = other._pause_s()

    assert (one._pause_s(), near_the_end) == (2, pytest.approx(1.05))


async def test_taking_the_lease_is_told_once():
    store, clock, told = StoredLease(), Clock(), []
    elector, leadership = build_elector(store, clock, "one")
    elector._on_taken = lambda: told.append(leadership.held)

    await elector._attempt()
    await elector._attempt()

    assert told == [True], "and only once writing is allowed"


async def test_a_write_that_still_waits_when_the_lease_ends_is_broken_off():
    """It could arrive at the server under the next leader."""
    loop = asyncio.get_running_loop()
    leadership = Leadership(loop.time)
    await leadership.extend(loop.time() + 0.02)

    with pytest.raises(errors.RetryLater, match="lease ended while a write waited"):
        async with leadership.writing():
            await asyncio.sleep(60)


async def test_a_write_that_waits_when_leadership_is_dropped_is_broken_off():
    leadership = Leadership(asyncio.get_running_loop().time)
    await leadership.extend(asyncio.get_running_loop().time() + 60)
    started = asyncio.Event()

    async def write():
        async with leadership.writing():
            started.set()
            await asyncio.sleep(60)

    writing = asyncio.create_task(write())
    await started.wait()
    await leadership.drop()

    with pytest.raises(errors.RetryLater):
        await asyncio.wait_for(writing, 1.0)


async def test_a_long_write_goes_on_while_the_lease_is_renewed():
    loop = asyncio.get_running_loop()
    leadership = Leadership(loop.time)
    await leadership.extend(loop.time() + 0.05)

    async with leadership.writing():
        await leadership.extend(loop.time() + 60)
        await asyncio.sleep(0.1)

    assert leadership.held


async def test_nothing_is_written_without_the_lease():
    with pytest.raises(errors.RetryLater, match="does not hold the lease"):
        async with Leadership(Clock()).writing():
            pytest.fail("the write began")


async def test_leading_counts_from_the_moment_it_was_taken():
    clock = Clock()
    leadership = Leadership(clock)
    before = leadership.held_for_s
    await leadership.extend(clock.now + 10)
    clock.now += 8
    await leadership.extend(clock.now + 10)
    clock.now += 4

    assert (before, leadership.held_for_s) == (0.0, 12.0)
