from __future__ import annotations

import asyncio
import datetime

import pytest

from windlass_operator import errors
from windlass_operator.cluster.kubernetes_events import BACKLOG, REPEAT_AFTER_S, EventRecorder, Note, notes_of_status

CHAT = {
    "apiVersion": "windlass.dev/v1alpha1",
    "kind": "InferenceService",
    "metadata": {"name": "chat", "namespace": "ns", "uid": "u"},
}
TENANT = {"apiVersion": "windlass.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "t", "uid": "v"}}


class Recorded:
    def __init__(self) -> None:
        self.events = []
        self.failure: Exception | None = None
        self.arrived = asyncio.Event()

    async def create(self, kind, namespace, manifest):
        self.arrived.set()
        if self.failure:
            raise self.failure
        self.events.append(manifest)
        return manifest


class Bench:
    def __init__(self) -> None:
        self.now = 0.0
        self.leads = True
        self.client = Recorded()
        wall = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        self.recorder = EventRecorder(
            self.client,
            component="windlass.dev/operator",
            instance="me",
            clock=lambda: self.now,
            wall_clock=lambda: wall,
            may_post=lambda: self.leads,
        )


def test_the_same_words_about_the_same_object_are_posted_once_in_a_while():
    bench, note = Bench(), Note(True, "PodsPending", "no room")

    first, again = bench.recorder.post(CHAT, note), bench.recorder.post(CHAT, note)
    other = bench.recorder.post(TENANT, note)
    bench.now = REPEAT_AFTER_S
    later = bench.recorder.post(CHAT, note)

    assert (first, again, other, later) == (True, False, True, True)


def test_a_full_backlog_drops_events_and_blocks_nobody():
    bench = Bench()

    posted = [bench.recorder.post(CHAT, Note(False, "R", f"message {number}")) for number in range(BACKLOG + 5)]

    assert sum(posted) == BACKLOG


async def test_a_refused_event_does_not_stop_the_next():
    bench = Bench()
    bench.client.failure = errors.ApplyRejected("no")
    bench.recorder.post(CHAT, Note(False, "One", "1"))
    task = asyncio.create_task(bench.recorder.run())
    await asyncio.wait_for(bench.client.arrived.wait(), 1.0)
    bench.client.failure = None
    bench.client.arrived.clear()
    bench.recorder.post(TENANT, Note(True, "Two", "x" * 5000))
    await asyncio.wait_for(bench.client.arrived.wait(), 1.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    (event,) = bench.client.events
    assert (event["reason"], event["type"], len(event["note"])) == ("Two", "Warning", 1000)
    assert event["metadata"]["namespace"] == "default", "events about cluster-scoped objects live in default"


def build_condition(kind="Ready", status="True", reason="R", message="m"):
    return {"type": kind, "status": status, "reason": reason, "message": message}


@pytest.mark.parametrize(
    ("stored", "wanted", "expected"),
    [
        pytest.param({}, {"conditions": [build_condition()]}, [Note(False, "R", "m")], id="a first condition"),
        pytest.param(
            {"conditions": [build_condition()]},
            {"conditions": [build_condition(message="1 of 2")]},
            [],
            id="progress is no event",
        ),
        pytest.param({}, {"conditions": [build_condition("Stalled")]}, [Note(True, "R", "m")], id="stalled warns"),
        pytest.param(
            {}, {"conditions": [build_condition("Admitted", "False")]}, [Note(True, "R", "m")], id="a refusal warns"
        ),
        pytest.param(
            {},
            {"conditions": [build_condition("Ready", "False")]},
            [Note(False, "R", "m")],
            id="not ready yet is normal",
        ),
        pytest.param(
            {"decisions": [{"topic": "class", "choice": "h200", "reason": "first"}]},
            {"decisions": [{"topic": "class", "choice": "a100", "reason": "h200 is full"}]},
            [Note(False, "Decided", "class: a100 (h200 is full)")],
            id="another choice",
        ),
        pytest.param(
            {"lastFailure": {"reason": "Error", "pod": "a", "message": ""}},
            {"lastFailure": {"reason": "OOMKilled", "pod": "b", "message": "boom"}},
            [Note(True, "OOMKilled", "pod b: boom")],
            id="a new failure",
        ),
    ],
)
def test_a_status_change_says_what_people_want_to_know(stored, wanted, expected):
    assert list(notes_of_status(stored, wanted)) == expected


async def test_events_that_still_wait_when_the_lease_is_lost_are_dropped():
    bench = Bench()
    bench.recorder.post(CHAT, Note(True, "Old", "from when we led"))
    bench.leads = False
    running = asyncio.create_task(bench.recorder.run())
    await asyncio.sleep(0)
    bench.leads = True
    bench.recorder.post(CHAT, Note(True, "New", "leading again"))
    await asyncio.wait_for(bench.client.arrived.wait(), 1.0)
    running.cancel()

    assert [event["reason"] for event in bench.client.events] == ["New"]
