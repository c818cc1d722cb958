from __future__ import annotations

import asyncio
import datetime

import pytest

from support.kubernetes_client import FakeKubernetesClient
from windlass_operator import errors
from windlass_operator.cluster.kubernetes import KubernetesCluster
from windlass_operator.cluster.kubernetes_audit import AuditTimes, WatchAudit
from windlass_operator.cluster.kubernetes_events import EventRecorder
from windlass_operator.cluster.kubernetes_kinds import KINDS, OWNERS, Ref
from windlass_operator.cluster.kubernetes_lease import Leadership
from windlass_operator.domain.snapshot import Key

SERVICES = OWNERS[0]
CHAT = Ref("InferenceService", "ns", "chat")


def build_service(name="chat", **labels):
    metadata = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "labels": labels}
    return {
        "apiVersion": "v1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {"model": {"uri": "file:///m"}},
    }


class World:
    """A server's objects, a cache that a watch feeds, and an audit that waits no time at all."""

    def __init__(self) -> None:
        self.client = FakeKubernetesClient()
        now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        events = EventRecorder(self.client, component="c", instance="i", clock=lambda: 0.0, wall_clock=lambda: now)
        self.cluster = KubernetesCluster(self.client, Leadership(lambda: 0.0), events, lambda kind, verb: None)
        self.woken: list[Key] = []
        self.fillings = 0
        self.audit = WatchAudit(
            self.client,
            self.cluster,
            namespaces=(),
            times=AuditTimes(grace_s=0.0),
            on_change=self.woken.append,
            clock=lambda: 0.0,
            on_filled=self.note_filled,
        )

    def note_filled(self):
        self.fillings += 1

    def watch_brings(self, manifest, event="MODIFIED"):
        self.cluster.absorb(event, manifest)


@pytest.fixture
def world() -> World:
    return World()


async def test_a_watch_that_brought_everything_is_in_order(world):
    world.watch_brings(world.client.put(build_service()))

    assert not await world.audit.audit(SERVICES, "")
    assert (world.woken, world.audit.dead_watches) == ([], ())


async def test_an_object_that_the_watch_missed_is_read_and_wakes_its_key(world):
    world.client.put(build_service())

    missed = await world.audit.audit(SERVICES, "")

    assert missed.stale == (CHAT,)
    assert world.cluster.cache.get(CHAT) is not None
    assert world.woken == [Key("InferenceService", "ns", "chat")]


async def test_a_deletion_that_no_watch_told_is_found(world):
    world.watch_brings(world.client.put(build_service()))
    del world.client.objects[CHAT]

    await world.audit.audit(SERVICES, "")

    assert world.cluster.cache.get(CHAT) is None
    assert world.woken == [Key("InferenceService", "ns", "chat")]


async def test_our_own_replies_do_not_hide_a_dead_watch(world):
    world.watch_brings(world.client.put(build_service()))
    world.cluster.cache.absorb_reply(world.client.put(build_service(changed="by-us")))

    assert (await world.audit.audit(SERVICES, "")).stale == (CHAT,)


async def test_a_watch_that_misses_changes_twice_in_a_row_is_dead(world):
    world.client.put(build_service("one"))
    await world.audit.audit(SERVICES, "")
    once = world.audit.dead_watches
    world.client.put(build_service("two"))
    await world.audit.audit(SERVICES, "")

    assert (once, world.audit.dead_watches) == ((), ("inferenceservices",))


async def test_a_watch_that_recovers_is_alive_again(world):
    for name in ("one", "two"):
        world.client.put(build_service(name))
        await world.audit.audit(SERVICES, "")
    for manifest in world.client.objects.values():
        world.watch_brings(manifest)

    await world.audit.audit(SERVICES, "")

    assert world.audit.dead_watches == ()


async def test_a_list_older_than_the_watch_accuses_nobody(world):
    """Lists come from the server's cache and may lag behind what a watch has brought."""
    world.watch_brings(world.client.put(build_service()))
    newer = world.client.put(build_service(version="newer"))
    world.watch_brings(newer)
    world.client.objects[CHAT]["metadata"]["resourceVersion"] = "1"

    assert not await world.audit.audit(SERVICES, "")


async def test_a_list_that_still_shows_a_deleted_object_accuses_nobody(world):
    stored = world.client.put(build_service())
    world.watch_brings(stored)
    world.watch_brings(stored, "DELETED")

    assert not await world.audit.audit(SERVICES, "")


async def test_trouble_of_the_server_says_nothing_about_a_watch(world):
    world.client.put(build_service())
    for _ in range(3):
        world.client.fail("list InferenceService/*", errors.RetryLater("503"))
        await world.audit._audit_safely(SERVICES, "")

    assert world.audit.dead_watches == ()


async def test_the_first_listing_is_complete_once_the_watch_brought_what_lists_show(world):
    stored = world.client.put(build_service())
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "uid": "u"}, "status": {}}
    world.watch_brings(world.client.put(node))
    await world.audit._fill_one(KINDS["Node"], "")
    before = world.cluster.filling
    world.watch_brings(stored)
    await world.audit._fill()

    assert ("InferenceService" in before, "Node" in before, world.cluster.filling) == (True, False, ())
    assert world.audit.filled.is_set()


async def test_a_relist_finds_what_was_deleted_while_no_watch_looked_and_blames_nobody(world):
    """A list after a lost connection tells nothing of deletions; the next audit may be minutes away."""
    for name in ("chat", "kept"):
        world.watch_brings(world.client.put(build_service(name)))
    del world.client.objects[CHAT]
    await world.audit._fill()
    world.watch_brings(world.client.put(build_service("late")))
    del world.client.objects[Ref("InferenceService", "ns", "kept")]

    for _ in range(2):
        world.audit.note_relist()
        await world.audit._sweep()

    assert [ref.name for ref in world.cluster.cache.all_of("InferenceService")] == ["late"]
    assert Key("InferenceService", "ns", "kept") in world.woken
    assert world.audit.dead_watches == ()


async def test_while_the_watches_are_down_nobody_may_plan_and_afterwards_the_caches_are_checked(world):
    world.watch_brings(world.client.put(build_service()))
    running = asyncio.create_task(world.audit.run())
    world.audit.note_begin()
    await asyncio.wait_for(world.audit.filled.wait(), 5.0)
    del world.client.objects[CHAT]

    world.audit.note_end()
    down = world.cluster.filling
    world.audit.note_begin()
    await asyncio.wait_for(world.audit.filled.wait(), 5.0)
    running.cancel()

    assert "InferenceService" in down
    assert world.cluster.filling == ()
    assert world.cluster.cache.get(CHAT) is None
    assert world.fillings == 2


async def test_one_dead_watch_does_not_hold_up_the_audit_of_the_others(world):
    """Each waits for its grace; one after the other that took minutes for a server that forgot all watches."""
    world.client.put(build_service())
    world.client.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "uid": "u"}, "status": {}})
    world.audit._times = AuditTimes(grace_s=0.5, poll_s=0.01)
    loop = asyncio.get_running_loop()
    world.audit._clock = loop.time
    started = loop.time()

    await world.audit.audit_all()

    assert loop.time() - started < 0.9
    assert len(world.woken) == 2


async def test_a_slow_first_listing_is_waited_for_and_not_asked_for_again(world):
    """Thousands of objects take longer than the grace; every list in between would make it longer still."""
    stored = [world.client.put(build_service(f"chat-{number}")) for number in range(6)]
    world.audit._times = AuditTimes(grace_s=0.3, poll_s=0.01)
    world.audit._clock = asyncio.get_running_loop().time

    filling = asyncio.create_task(world.audit._fill_one(SERVICES, ""))
    for manifest in stored:
        await asyncio.sleep(0.1)
        world.watch_brings(manifest)
    await asyncio.wait_for(filling, 5.0)

    assert world.client.requests.count("list InferenceService/*") == 1
