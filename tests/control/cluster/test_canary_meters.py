"""What meters ask, and what they make of the answers."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from windlass_contract.endpoints import Replica
from windlass_operator.cluster.canary_meter import Subject
from windlass_operator.cluster.prometheus_meter import PrometheusMeter, PrometheusPlace, fold_result, render_query
from windlass_operator.cluster.quality_probe import QualityProbe
from windlass_operator.cluster.replica_meter import ReplicaMeter
from windlass_operator.domain.canary import Reading, RevisionReading
from windlass_operator.domain.canary_plan import canary_of
from windlass_operator.domain.snapshot import Key

CHAT = Key("InferenceService", "team-a", "chat")
SUBJECT = Subject(CHAT, "next", 60, "chat")
PLACE = PrometheusPlace("http://127.0.0.1:9", timeout_s=1.0)


def series(pod: str, outcome: str, *values: tuple[float, str]) -> dict[str, Any]:
    labels = {"__name__": "windlass_requests_total", "namespace": "team-a", "pod": pod, "outcome": outcome}
    return {"metric": labels, "values": [list(value) for value in values]}


def no_probe(_: Key, __: str) -> str:
    return ""


def test_one_query_covers_both_revisions_and_nobody_else() -> None:
    query = render_query(SUBJECT, PrometheusPlace("http://p", matchers='cluster="one"', pod_label="exported_pod"))

    (pods,) = re.findall(r'exported_pod=~"([^"]*)"', query)
    names = ["chat-5d4f8c7b9-x2x4z", "chat-next-5d4f8c7b9-x2x4z"]
    others = ["chat-other-5d4f8c7b9-x2x4z", "chat-next", "mychat-5d4f8c7b9-x2x4z", "chat-next-more-5d4f8c7b9-x2x4z"]
    assert all(re.fullmatch(pods, name) for name in names)
    assert not [name for name in others if re.fullmatch(pods, name)]
    assert 'cluster="one"' in query
    assert query.endswith("[180s]")


def test_pods_are_told_apart_by_name() -> None:
    result = [
        series("chat-5d4f8c7b9-x2x4z", "stop", (0, "10"), (150, "20")),
        series("chat-next-5d4f8c7b9-x2x4z", "failed", (150, "3")),
    ]

    reading = fold_result(result, SUBJECT, PLACE, since_s=100)

    assert reading == Reading(RevisionReading(3, 3), RevisionReading(10, 0))


def test_a_canary_that_prometheus_does_not_know_is_said_to_be_unknown() -> None:
    reading = fold_result([series("chat-5d4f8c7b9-x2x4z", "stop", (150, "3"))], SUBJECT, PLACE, since_s=100)

    assert reading.problem == "Prometheus knows no series of next's pods"


async def test_a_prometheus_that_does_not_answer_is_no_data() -> None:
    reading = await PrometheusMeter(PLACE, QualityProbe(no_probe), lambda: 0.0).read(SUBJECT)

    assert reading.canary == RevisionReading()
    assert reading.problem.startswith("http://127.0.0.1:9: ")


class FakePod:
    """Counters and words of one replica."""

    def __init__(self, words: str, stops: int = 0) -> None:
        self.words, self.stops, self.url = words, stops, ""
        self.asked: list[dict[str, Any]] = []

    async def metrics(self, _: web.Request) -> web.Response:
        text = f'# TYPE windlass_requests_total counter\nwindlass_requests_total{{outcome="stop"}} {self.stops}\n'
        return web.Response(text=text)

    async def complete(self, request: web.Request) -> web.Response:
        self.asked.append(json.loads(await request.read()))
        return web.json_response({"choices": [{"text": self.words}]})


@pytest.fixture
async def pods() -> AsyncIterator[Callable[..., Any]]:
    servers = []

    async def build(words: str, stops: int = 0) -> FakePod:
        pod, app = FakePod(words, stops), web.Application()
        app.router.add_get("/metrics", pod.metrics)
        app.router.add_post("/v1/completions", pod.complete)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        pod.url = str(server.make_url("")).rstrip("/")
        return pod

    yield build
    for server in servers:
        await server.close()


async def test_replicas_are_read_since_the_last_check(pods: Callable[..., Any]) -> None:
    stable, canary = await pods("a", stops=5), await pods("b", stops=2)

    def replicas_of(key: Key) -> tuple[Replica, ...]:
        pod = canary if canary_of(key) else stable
        return (Replica("pod", pod.url),)

    meter = ReplicaMeter(replicas_of, QualityProbe(no_probe))
    first = await meter.read(SUBJECT)
    stable.stops, canary.stops = 9, 1
    second = await meter.read(SUBJECT)
    await meter.close()

    assert (first.canary.finished, first.stable.finished) == (2, 5)
    assert (second.canary.finished, second.stable.finished) == (1, 4), "the canary's replica started again"


async def test_a_probe_asks_both_revisions_the_same_and_compares_the_words(pods: Callable[..., Any]) -> None:
    stable, canary = await pods("one two three four"), await pods("one two other four")
    subject = Subject(CHAT, "next", 60, "chat", ("what?", "why?"))
    probe = QualityProbe(lambda _, name: canary.url if name else stable.url)

    reading = await probe.complete(Reading(), subject)
    await probe.close()

    assert (reading.agreement, reading.prompts) == (50.0, 2)
    assert stable.asked == canary.asked
    assert [(body["prompt"], body["temperature"], body["model"]) for body in stable.asked] == [
        ("what?", 0, "chat"),
        ("why?", 0, "chat"),
    ]


async def test_a_probe_without_an_answer_is_no_data(pods: Callable[..., Any]) -> None:
    stable = await pods("one")
    subject = Subject(CHAT, "next", 60, "chat", ("what?",))
    probe = QualityProbe(lambda _, name: "" if name else stable.url)

    reading = await probe.complete(Reading(problem="before"), subject)
    await probe.close()

    assert reading.agreement is None
    assert reading.problem == "before; prompts not answered: ValueError: next has no ready replica"
