"""Both sources against real servers on loopback: one reading for all, bounded, and absent where there is no answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from windlass_contract.metric_names import KV_USE_RATIO, REQUESTS_RUNNING, REQUESTS_WAITING
from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.errors import RetryLater
from windlass_operator.serve import sources
from windlass_operator.serve.readings import Replica
from windlass_operator.serve.samples import PodKey
from windlass_operator.serve.settings import AdapterSettings
from windlass_operator.serve.sources import PrometheusSource, ReplicaDirectory, ReplicaSource, replica_url

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
NOW = 1000.0


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """A server on loopback; yields its address."""
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class FakeClient(KubernetesClient):
    """Lists pods in pages of one."""

    def __init__(self, *pods: str) -> None:
        self.pods = list(pods)
        self.requests: list[tuple[str, Mapping[str, str]]] = []
        self.broken = False

    async def request(self, method: str, path: str, *, params: Mapping[str, str], accept: str) -> dict[str, Any]:
        self.requests.append((path, params))
        if self.broken:
            raise RetryLater("the API server is away")
        place = int(params.get("continue", "0"))
        items = [self._pod(name) for name in self.pods[place : place + 1]]
        more = {"continue": str(place + 1)} if place + 1 < len(self.pods) else {}
        return {"items": items, "metadata": more}

    def _pod(self, name: str) -> dict[str, Any]:
        labels = {"windlass.dev/service": "chat"}
        metadata = {"name": name, "namespace": "team-a", "labels": labels}
        return {"metadata": metadata, "status": {"podIP": "10.0.0.7"}}


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def directory_of(client: FakeClient, settings: AdapterSettings, clock: Clock) -> ReplicaDirectory:
    return ReplicaDirectory(client, settings, clock)


async def test_pods_are_listed_page_by_page_once_per_interval() -> None:
    client, clock = FakeClient("a", "b", "c"), Clock()
    directory = directory_of(client, AdapterSettings(interval_s=10), clock)

    first = await directory.replicas()
    await directory.replicas()

    assert [replica.key.name for replica in first] == ["a", "b", "c"]
    assert [params.get("continue") for _, params in client.requests] == [None, "1", "2"]
    assert "app.kubernetes.io/component=runtime" in client.requests[0][1]["labelSelector"]


async def test_only_the_namespaces_served_are_listed() -> None:
    client = FakeClient("a")
    await directory_of(client, AdapterSettings(namespaces=("x", "y")), Clock()).replicas()

    assert [path for path, _ in client.requests] == ["/api/v1/namespaces/x/pods", "/api/v1/namespaces/y/pods"]


async def test_a_failed_listing_keeps_the_pods_that_were_known() -> None:
    client, clock = FakeClient("a"), Clock()
    directory = directory_of(client, AdapterSettings(interval_s=10), clock)
    await directory.replicas()
    client.broken, clock.now = True, clock.now + 10

    assert [replica.key.name for replica in await directory.replicas()] == ["a"]
    assert directory.problem == "the API server is away"


@contextlib.asynccontextmanager
async def replica_source(
    handler: Handler, *pods: str, clock: Clock | None = None, **more: Any
) -> AsyncIterator[ReplicaSource]:
    clock = clock or Clock()
    async with serving(handler) as url:
        settings = replace(AdapterSettings(), replica_url=f"{url}/{{namespace}}/{{pod}}/metrics", **more)
        source = ReplicaSource(directory_of(FakeClient(*pods), settings, clock), settings, clock, clock)
        try:
            yield source
        finally:
            await source.close()


async def test_each_replica_is_read_once_for_all_metrics_and_all_who_ask() -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(text=f"{REQUESTS_WAITING} 4\n{KV_USE_RATIO} 0.5\n")

    async with replica_source(answer, "a", "b") as source:
        found = await asyncio.gather(*(source.samples(REQUESTS_WAITING) for _ in range(20)))
        ratio = await source.samples(KV_USE_RATIO)
        running = await source.samples(REQUESTS_RUNNING)

    assert sorted(asked) == ["/team-a/a/metrics", "/team-a/b/metrics"]
    assert {key.name: sample.value for key, sample in found[-1].items()} == {"a": 4, "b": 4}
    assert ratio[PodKey("team-a", "a")].value == 0.5
    assert running == {}


async def redirect(_: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": "http://169.254.169.254/"})


async def fail(_: web.Request) -> web.Response:
    return web.Response(status=500)


async def flood(_: web.Request) -> web.Response:
    return web.Response(text=f"{REQUESTS_WAITING} 4\n" + "x" * 2000)


async def lie(_: web.Request) -> web.Response:
    return web.Response(text=f"{REQUESTS_WAITING} four\n")


async def hang(_: web.Request) -> web.Response:
    await asyncio.sleep(5)
    return web.Response()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        pytest.param(redirect, "expected 200, found 302", id="a redirect is not followed"),
        pytest.param(fail, "expected 200, found 500", id="an error"),
        pytest.param(flood, "expected at most 1000 bytes", id="an endless page"),
        pytest.param(lie, "could not convert", id="no number"),
        pytest.param(hang, "no answer within 0.3 s", id="no answer"),
    ],
)
async def test_a_replica_that_cannot_be_read_is_absent_and_stops_no_other(
    bad: Handler, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_EXPOSITION_BYTES", 1000)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await bad(request) if "/bad/" in request.path else web.Response(text=f"{REQUESTS_WAITING} 4\n")

    async with replica_source(answer, "bad", "good", scrape_timeout_s=0.3) as source:
        found = await source.samples(REQUESTS_WAITING)

        assert {key.name for key in found} == {"good"}
        assert words in source.problem_of(REQUESTS_WAITING)
        assert "1 of 2 replicas not read" in source.problem_of(REQUESTS_WAITING)


async def test_the_last_value_of_a_replica_stays_with_its_time() -> None:
    answers = [web.Response(text=f"{REQUESTS_WAITING} 4\n"), web.Response(status=500)]

    async def answer(_: web.Request) -> web.Response:
        return answers.pop(0)

    clock = Clock()
    async with replica_source(answer, "a", clock=clock) as source:
        first = await source.samples(REQUESTS_WAITING)
        clock.now += 10
        assert await source.samples(REQUESTS_WAITING) == first
    assert first[PodKey("team-a", "a")].at_s == NOW


@pytest.mark.parametrize(
    ("ip", "expected"),
    [("10.0.0.7", "http://10.0.0.7:8000/metrics"), ("fd00::7", "http://[fd00::7]:8000/metrics")],
)
def test_the_address_of_a_replica(ip: str, expected: str) -> None:
    assert replica_url(AdapterSettings().replica_url, Replica(PodKey("n", "p"), "chat", {}, ip)) == expected


# -- Prometheus --------------------------------------------------------------------------------------------------------


class FakePrometheus:
    """Answers one query after another; the last answer stays."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.answers = list(answers)
        self.queries: list[Mapping[str, str]] = []
        self.authorization: list[str | None] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.queries.append(dict(request.query))
        self.authorization.append(request.headers.get("Authorization"))
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.json_response(body, status=status)


def matrix(*values: tuple[str, float, str]) -> tuple[int, Any]:
    result = [{"metric": {"namespace": "team-a", "pod": pod}, "values": [[at, text]]} for pod, at, text in values]
    return 200, {"status": "success", "data": {"resultType": "matrix", "result": result}}


@contextlib.asynccontextmanager
async def prometheus_source(fake: FakePrometheus, clock: Clock, **more: Any) -> AsyncIterator[PrometheusSource]:
    async with serving(fake.answer) as url:
        settings = replace(AdapterSettings(), source="prometheus", prometheus_url=f"{url}/", **more)
        source = PrometheusSource(settings, clock)
        try:
            yield source
        finally:
            await source.close()


async def test_prometheus_is_asked_once_per_metric_and_interval() -> None:
    fake, clock = FakePrometheus(matrix(("a", 990.5, "4"))), Clock()

    async with prometheus_source(fake, clock, prometheus_matchers='cluster="one"') as source:
        found = await asyncio.gather(*(source.samples(REQUESTS_WAITING) for _ in range(20)))
        await source.samples(KV_USE_RATIO)
        clock.now += 10
        await source.samples(REQUESTS_WAITING)

    (sample,) = found[0].values()
    assert (sample.value, sample.at_s) == (4, 990.5)
    assert [query["query"] for query in fake.queries] == [
        f'{REQUESTS_WAITING}{{cluster="one"}}[60s]',
        f'{KV_USE_RATIO}{{cluster="one"}}[60s]',
        f'{REQUESTS_WAITING}{{cluster="one"}}[60s]',
    ]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param((503, {"status": "error"}), id="unavailable"),
        pytest.param((200, {"status": "success"}), id="no data"),
        pytest.param((200, []), id="no object"),
        pytest.param((200, None), id="null"),
    ],
)
async def test_an_answer_that_is_none_keeps_what_was_known_and_says_why(answer: tuple[int, Any]) -> None:
    fake, clock = FakePrometheus(matrix(("a", NOW, "4")), answer), Clock()

    async with prometheus_source(fake, clock) as source:
        first = await source.samples(REQUESTS_WAITING)
        clock.now += 10
        assert await source.samples(REQUESTS_WAITING) == first
        assert f"query {REQUESTS_WAITING}" in source.problem_of(REQUESTS_WAITING)


async def test_an_empty_answer_is_absence_and_no_zero() -> None:
    async with prometheus_source(FakePrometheus(matrix()), Clock()) as source:
        assert await source.samples(REQUESTS_WAITING) == {}
        assert source.problem_of(REQUESTS_WAITING) == ""


async def test_a_prometheus_that_is_away_is_said_quickly() -> None:
    settings = replace(AdapterSettings(), source="prometheus", prometheus_url="http://127.0.0.1:9")
    source = PrometheusSource(settings, Clock())

    began = time.monotonic()
    assert await source.samples(REQUESTS_WAITING) == {}

    assert time.monotonic() - began < 5
    assert "http://127.0.0.1:9" in source.problem_of(REQUESTS_WAITING)


async def test_the_token_is_read_anew_for_each_query(tmp_path: Any) -> None:
    file, fake, clock = tmp_path / "token", FakePrometheus(matrix()), Clock()
    async with prometheus_source(fake, clock, prometheus_token_file=str(file)) as source:
        for token in ("first\n", "second\n"):
            file.write_text(token)
            await source.samples(REQUESTS_WAITING)
            clock.now += 10

    assert fake.authorization == ["Bearer first", "Bearer second"]
