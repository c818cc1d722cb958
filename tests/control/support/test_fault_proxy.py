"""The fault proxy does what chaos tests believe it does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

pytest.importorskip("cryptography")

from support.certificates import Authority
from support.control_plane import Access
from support.fault_proxy import (
    Answer,
    BlackHole,
    Call,
    ErrorEvent,
    FaultProxy,
    LoseReply,
    Silence,
    is_any,
    is_lease,
    is_watch,
    is_write,
    running_proxy,
    settle,
)

EVENT = {"type": "ADDED", "object": {"kind": "Pod"}}


class Upstream:
    """A server that remembers what it was asked, and whose watches bring one event and stay open."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path_qs, request.headers.get("Authorization", "")))
        if not request.query.get("watch"):
            return web.json_response({"echo": await request.text()}, status=201)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(json.dumps(EVENT).encode() + b"\n")
        await asyncio.sleep(60)
        return response


class Bench:
    """A client that goes through a proxy."""

    def __init__(self, upstream: Upstream, proxy: FaultProxy, session: aiohttp.ClientSession) -> None:
        self.upstream, self.proxy, self._session = upstream, proxy, session
        self._access = proxy.access("secret")

    def ask(self, method: str, path: str, body: str | None = None):
        context = self._access.ssl_context()
        return self._session.request(
            method, self._access.url + path, data=body, headers=self._access.headers, ssl=context
        )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    authority = Authority(tmp_path / "upstream", "authority")
    files = authority.server("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    upstream, app = Upstream(), web.Application()
    app.router.add_route("*", "/{path:.*}", upstream.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    access = Access(f"https://127.0.0.1:{runner.addresses[0][1]}", authority.file)
    with running_proxy(access, tmp_path / "proxy") as proxy:
        connector = aiohttp.TCPConnector()
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Bench(upstream, proxy, session)
            await connector.close(abort_ssl=True)
        await settle()
    await runner.cleanup()
    await settle()


async def test_without_a_fault_everything_goes_through_as_it_is(bench):
    async with bench.ask("PATCH", "/api/v1/pods/a?force=true", "body") as answer:
        text = await answer.json()

    assert (answer.status, text) == (201, {"echo": "body"})
    assert bench.upstream.asked == [("PATCH", "/api/v1/pods/a?force=true", "Bearer secret")]
    assert [(write.method, write.status) for write in bench.proxy.of_objects()] == [("PATCH", 201)]


async def test_an_answer_in_the_servers_place_reaches_nobody_and_ends_when_it_should(bench):
    with bench.proxy.fault(Answer(429, retry_after_s=7), on=is_write, times=1):
        async with bench.ask("POST", "/x", "1") as refused, bench.ask("POST", "/x", "2") as taken:
            reason = (await refused.json())["reason"]

    assert (refused.status, refused.headers["Retry-After"], reason, taken.status) == (429, "7", "TooManyRequests", 201)
    assert len(bench.upstream.asked) == 1
    assert bench.proxy.done["Answer"] == 1


async def test_a_lost_reply_was_done(bench):
    with bench.proxy.fault(LoseReply(), on=is_write), pytest.raises(aiohttp.ClientError):
        async with bench.ask("PATCH", "/x"):  # others are repeated by aiohttp itself
            pytest.fail("there was an answer")

    assert [method for method, _, _ in bench.upstream.asked] == ["PATCH"]
    assert [write.status for write in bench.proxy.writes] == [201]


async def test_a_black_hole_answers_nothing_until_it_is_over(bench):
    async def ask() -> None:
        async with bench.ask("PATCH", "/x"):
            pytest.fail("there was an answer")

    with bench.proxy.fault(BlackHole(), on=is_any):
        asking = asyncio.create_task(ask())
        while not bench.proxy.done["BlackHole"]:
            await asyncio.sleep(0.01)
        waits = not asking.done()

    with pytest.raises(aiohttp.ClientError):
        await asyncio.wait_for(asking, 5)
    assert waits
    assert bench.upstream.asked == []


async def test_a_cut_watch_breaks_in_the_middle_of_a_line(bench):
    async with bench.ask("GET", "/pods?watch=true") as answer:
        first = await answer.content.readline()
        cut = await asyncio.to_thread(bench.proxy.cut_watches)
        with pytest.raises(aiohttp.ClientError):
            await answer.content.read()

    assert (json.loads(first), cut, bench.proxy.done["cut"]) == (EVENT, 1, 1)


async def test_a_silent_watch_is_accepted_and_brings_nothing(bench):
    with bench.proxy.fault(Silence(), on=is_watch):
        async with bench.ask("GET", "/pods?watch=true") as answer:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    pytest.fail(f"it brought {await answer.content.readline()!r}")

    assert answer.status == 200
    assert bench.upstream.asked


async def test_an_expired_watch_begins_with_the_error(bench):
    with bench.proxy.fault(ErrorEvent(410), on=is_watch):
        async with bench.ask("GET", "/pods?watch=true") as answer:
            event = json.loads(await answer.content.readline())

    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        pytest.param(Call("PATCH", "/api/v1/pods/a", False), "write", id="write"),
        pytest.param(Call("PATCH", "/api/v1/pods/a", False, dry=True), "", id="dry run"),
        pytest.param(Call("GET", "/api/v1/pods", True), "watch", id="watch"),
        pytest.param(Call("PUT", "/apis/coordination.k8s.io/v1/namespaces/n/leases/l", False), "lease", id="lease"),
        pytest.param(Call("GET", "/api/v1/pods", False), "", id="list"),
    ],
)
def test_faults_choose_by_what_a_request_is_for(call, expected):
    kinds = {"write": is_write, "watch": is_watch, "lease": is_lease}

    assert [name for name, holds in kinds.items() if holds(call)] == ([expected] if expected else [])
