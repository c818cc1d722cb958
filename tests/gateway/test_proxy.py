"""Requests through a real gateway, to replicas that behave and to replicas that do not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import aiohttp
import httpx2
import openai
import pytest

from support.gateway import KEY, RIVAL_KEY, Bench, BuildBench, BuildReplica, build_route
from support.replica import Behaviour, FakeReplica
from windlass_contract.endpoints import TENANT_HEADER, TENANT_PROOF_HEADER, Replica, prove_tenant

MESSAGES = [{"role": "user", "content": "hello"}]


async def ask(bench: Bench, **options: object) -> str:
    """One chat completion, whole."""
    async with bench.client() as client:
        answer = await client.chat.completions.create(model="m", messages=MESSAGES, **options)  # type: ignore[call-overload]
        return str(answer.choices[0].message.content)


async def ask_streamed(client: openai.AsyncOpenAI) -> str:
    """One chat completion, streamed."""
    stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)  # type: ignore[call-overload]
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def reached(holds: Callable[[], bool]) -> None:
    """Let the loop run until something counted elsewhere has come to pass; callers bound the time."""
    while not holds():
        await asyncio.sleep(0.005)


async def test_a_whole_answer_passes_through(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a", words=3)

    answer = await ask(await bench(build_route([a.address])))

    assert answer == "a0 a1 a2 "


async def test_an_answer_that_came_in_one_piece_leaves_in_one(
    bench: BuildBench, replica: BuildReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await replica("a", words=3)
    front = await bench(build_route([a.address]))
    port = int(front.url.rpartition(":")[2])
    written: list[bytes] = []
    write = asyncio.selector_events._SelectorSocketTransport.write  # type: ignore[attr-defined]

    def note(transport: asyncio.Transport, data: bytes) -> None:
        if transport.get_extra_info("sockname")[1] == port:
            written.append(bytes(data))
        write(transport, data)

    # Nothing above the transport shows how often it is written to, and each time is a system call and a packet.
    monkeypatch.setattr(asyncio.selector_events._SelectorSocketTransport, "write", note)  # type: ignore[attr-defined]
    answer = await post(front)

    assert [piece.endswith(answer.content) for piece in written] == [True]


async def test_each_streamed_piece_arrives_before_the_replica_sends_the_next(
    bench: BuildBench, replica: BuildReplica
) -> None:
    a = await replica("a", Behaviour.HELD, words=2)
    front = await bench(build_route([a.address]))

    async with front.client() as client:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        pieces = aiter(stream)
        first = await anext(
            pieces
        )  # the replica is held after its first event, so this returns only if nothing buffers
        a.proceed.set()
        second = await anext(pieces)

    assert [first.choices[0].delta.content, second.choices[0].delta.content] == ["a0 ", "a1 "]


async def test_load_goes_to_the_replica_with_the_fewest_requests_in_flight(
    bench: BuildBench, replica: BuildReplica
) -> None:
    a, b = await replica("a", Behaviour.HELD), await replica("b", Behaviour.HELD)
    front = await bench(build_route([a.address, b.address]))

    async with front.client() as client:
        asking = [asyncio.create_task(ask_streamed(client)) for _ in range(10)]
        async with asyncio.timeout(5):
            await reached(lambda: a.counts["begun"] + b.counts["begun"] == 10)
        a.proceed.set()
        b.proceed.set()
        await asyncio.gather(*asking)

    assert (a.counts["begun"], b.counts["begun"]) == (5, 5)


async def test_a_client_that_leaves_stops_the_work_at_once(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a", Behaviour.HELD)
    front = await bench(build_route([a.address]))

    async with front.client() as client:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        await anext(aiter(stream))
        await stream.close()
        async with asyncio.timeout(1):
            await a.cancelled.wait()

    assert a.counts["cancelled"] == 1
    assert front.gateway.picker.in_flight(a.address) == 0


async def test_a_client_that_leaves_before_the_first_byte_stops_the_work_too(
    bench: BuildBench, replica: BuildReplica
) -> None:
    a = await replica("a", Behaviour.SILENT)
    front = await bench(build_route([a.address]))

    asking = asyncio.create_task(ask(front))
    async with asyncio.timeout(2):
        await reached(lambda: a.counts["begun"] == 1)
        asking.cancel()
        await a.cancelled.wait()

    assert front.gateway.picker.in_flight(a.address) == 0


@pytest.mark.parametrize(
    ("behaviours", "status", "code", "visits"),
    [
        pytest.param(
            [Behaviour.DRAINING, Behaviour.NORMAL], 200, "", [1, 1], id="a draining replica passes the request on"
        ),
        pytest.param([Behaviour.FULL, Behaviour.NORMAL], 200, "", [1, 1], id="a full replica passes the request on"),
        pytest.param(
            [Behaviour.FULL, Behaviour.FULL], 429, "queue full", [1, 1], id="429 is passed through when all are full"
        ),
        pytest.param(
            [Behaviour.DRAINING, Behaviour.FULL], 429, "queue full", [1, 1], id="full beats draining as an answer"
        ),
        pytest.param([Behaviour.DRAINING], 503, "draining", [1], id="a lone draining replica is passed through"),
        pytest.param(
            [Behaviour.FULL] * 6, 429, "queue full", [1, 1, 1, 1, 0, 0], id="a full fleet is not asked over and over"
        ),
        pytest.param(
            [Behaviour.DIES_BEFORE_ANSWER, Behaviour.NORMAL],
            502,
            "replica_failed",
            [1, 0],
            id="a request that kills its replica visits no other",
        ),
        pytest.param(
            [Behaviour.SILENT, Behaviour.NORMAL], 504, "replica_timeout", [1, 0], id="a silent replica times out"
        ),
        pytest.param([], 503, "no_ready_replica", [], id="no replica at all"),
    ],
)
async def test_faults_before_the_answer(
    bench: BuildBench,
    replica: BuildReplica,
    behaviours: Sequence[Behaviour],
    status: int,
    code: str,
    visits: list[int],
) -> None:
    replicas = [await replica(f"r{index}", behaviour) for index, behaviour in enumerate(behaviours)]
    front = await bench(build_route([item.address for item in replicas], timeout_s=0.3))

    answer = await post(front)

    assert answer.status_code == status
    assert (answer.json().get("error") or {}).get("code", "") == code
    assert [len(item.seen) for item in replicas] == visits


async def post(front: Bench, **kwargs: object) -> httpx2.Response:
    """One raw chat request."""
    async with httpx2.AsyncClient(timeout=10) as client:
        return await client.post(
            f"{front.url}/team/chat/v1/chat/completions",
            **{"json": {"model": "m", "messages": MESSAGES}, "headers": {"Authorization": f"Bearer {KEY}"}, **kwargs},  # type: ignore[arg-type]
        )


async def test_a_dead_replica_costs_one_attempt_and_then_rests(
    bench: BuildBench, replica: BuildReplica, dead_address: Replica
) -> None:
    a = await replica("a", words=1)
    front = await bench(build_route([dead_address, a.address]))

    answers = [await ask(front) for _ in range(6)]

    assert answers == ["a0 "] * 6
    assert front.gateway.picker.pick([dead_address, a.address], (), asyncio.get_running_loop().time()) == a.address


async def test_when_nothing_takes_connections_the_client_learns_when_to_come_back(
    bench: BuildBench, dead_address: Replica
) -> None:
    front = await bench(build_route([dead_address]))

    answer = await post(front)

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replicas_unreachable")
    assert int(answer.headers["Retry-After"]) > 0


async def test_a_replica_that_dies_between_events_ends_the_stream_with_an_error_event(
    bench: BuildBench, replica: BuildReplica
) -> None:
    a = await replica("a", Behaviour.DIES_BETWEEN_EVENTS)
    front = await bench(build_route([a.address]))

    async with front.client() as client:
        with pytest.raises(openai.APIError, match="ended before the answer was complete"):
            await ask_streamed(client)


async def test_a_replica_that_dies_inside_an_event_cuts_the_stream(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a", Behaviour.DIES_INSIDE_EVENT)
    front = await bench(build_route([a.address]))

    async with front.client() as client:
        with pytest.raises(openai.APIConnectionError):
            await ask_streamed(client)


async def test_a_stream_that_falls_silent_ends_with_an_error_event(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a", Behaviour.STALLS)
    front = await bench(build_route([a.address], timeout_s=0.2))

    async with front.client() as client:
        with pytest.raises(openai.APIError, match="ended before the answer was complete"):
            await ask_streamed(client)

    async with asyncio.timeout(1):
        await a.cancelled.wait()


@pytest.mark.parametrize(
    ("path", "key", "status", "code"),
    [
        pytest.param("team/chat", "", 401, "missing_api_key", id="no key"),
        pytest.param("team/chat", "nobodys-key", 401, "invalid_api_key", id="unknown key, real service"),
        pytest.param("team/none", "nobodys-key", 401, "invalid_api_key", id="unknown key, no such service"),
        pytest.param("team/chat", RIVAL_KEY, 404, "service_not_found", id="another tenant's key, real service"),
        pytest.param("team/none", RIVAL_KEY, 404, "service_not_found", id="another tenant's key, no such service"),
        pytest.param("team/rival", KEY, 404, "service_not_found", id="own key, another tenant's service"),
    ],
)
async def test_refusals_do_not_tell_whether_a_service_exists(
    bench: BuildBench, replica: BuildReplica, path: str, key: str, status: int, code: str
) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]), build_route([a.address], service="rival", key=RIVAL_KEY))

    async with httpx2.AsyncClient() as client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answer = await client.get(f"{front.url}/{path}/v1/models", headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert a.seen == []


async def test_what_a_client_says_about_itself_stays_at_the_gateway(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]))
    claims = {
        "Authorization": f"Bearer {KEY}",
        "X-Windlass-Tenant": "rival",
        "X-Tenant-Id": "rival",
        "X-Forwarded-For": "10.0.0.1",
        "Cookie": "session=1",
        "Connection": "keep-alive, X-Smuggled",
        "X-Smuggled": "1",
        "X-Request-Id": "mine-1",
        "Traceparent": "00-1-2-01",
    }

    answer = await post(front, headers=claims)

    (seen,) = a.seen
    names = {name.lower() for name in seen.headers}
    passed = {"host", "accept", "user-agent", "content-type", "content-length", "traceparent"}
    assert names == passed | {"x-request-id", "x-windlass-report-usage"}
    assert seen.headers["Host"] == a.url.removeprefix("http://")
    assert seen.headers["X-Request-Id"] == answer.headers["X-Request-Id"] == "mine-1"


async def test_with_a_shared_key_the_gateway_says_and_proves_whose_a_request_is(
    bench: BuildBench, replica: BuildReplica
) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]), tenant_key=b"shared")

    await post(front, headers={"Authorization": f"Bearer {KEY}", "X-Windlass-Tenant": "rival"})

    (seen,) = a.seen
    assert seen.headers.getall(TENANT_HEADER) == ["acme"]
    assert seen.headers[TENANT_PROOF_HEADER] == prove_tenant(b"shared", "acme")


@pytest.mark.parametrize("offered", ["", "two words", "x" * 200])
async def test_an_unusable_request_id_is_replaced(bench: BuildBench, replica: BuildReplica, offered: str) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]))

    answer = await post(front, headers={"Authorization": f"Bearer {KEY}", "X-Request-Id": offered})

    assert answer.headers["X-Request-Id"] == a.seen[0].headers["X-Request-Id"] != offered


@pytest.mark.parametrize("announced", [True, False], ids=["announced by Content-Length", "chunked"])
async def test_a_body_over_the_limit_is_refused(bench: BuildBench, replica: BuildReplica, announced: bool) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]), max_body_bytes=100_000)

    async def pieces() -> object:
        for _ in range(20):
            yield b"x" * 10_000

    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
        body = b"x" * 200_000 if announced else pieces()
        async with session.post(f"{front.url}/team/chat/v1/completions", data=body) as answer:
            problem = await answer.json()

    assert (answer.status, problem["error"]["code"]) == (413, "request_too_large")
    assert a.seen == []


async def test_bodies_over_all_connections_are_bounded(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a", Behaviour.HELD)
    front = await bench(build_route([a.address]), max_buffered_bytes=16_000)
    large = {"model": "m", "messages": [{"role": "user", "content": "x" * 6000}]}

    holding = asyncio.create_task(post(front, json=large))
    async with asyncio.timeout(2):
        await reached(lambda: a.counts["begun"] == 1)
    refused = await post(front, json=large)
    a.proceed.set()
    served = await holding
    again = await post(front, json=large)

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway_overloaded")
    assert (served.status_code, again.status_code) == (200, 200)


async def test_a_tenant_that_fills_the_buffer_leaves_room_for_others(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a", Behaviour.HELD)
    rival = build_route([a.address], service="rival", key=RIVAL_KEY, tenant="rival")
    front = await bench(build_route([a.address]), rival, max_buffered_bytes=40_000)
    large = {"model": "m", "messages": [{"role": "user", "content": "x" * 9000}]}

    greedy = [asyncio.create_task(post(front, json=large)) for _ in range(10)]
    async with asyncio.timeout(5):
        await reached(lambda: sum(task.done() for task in greedy) == 8)
    async with front.client(key=RIVAL_KEY, service="rival") as client:
        other = asyncio.create_task(ask_streamed(client))
        async with asyncio.timeout(5):
            await reached(lambda: a.counts["begun"] == 3)
        a.proceed.set()
        answer = await other

    assert sorted([(await task).status_code for task in greedy]) == [200] * 2 + [503] * 8
    assert answer == "a0 a1 a2 a3 a4 "


async def test_own_paths_need_no_key(bench: BuildBench) -> None:
    front = await bench(build_route([]))

    async with httpx2.AsyncClient() as client:
        answers = [await client.get(f"{front.url}{path}") for path in ("/healthz", "/readyz", "/metrics")]

    assert [answer.status_code for answer in answers] == [200, 200, 200]


async def test_requests_are_counted_by_route_and_outcome(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]))

    await post(front)
    await post(front, headers={})
    text = front.gateway.metrics.render().decode()

    route = 'namespace="team",service="chat",tenant="acme"'
    assert f'windlass_gateway_requests_total{{code="200",{route}}} 1.0' in text
    assert 'windlass_gateway_requests_total{code="401",namespace="",service="",tenant=""} 1.0' in text
    assert f"windlass_gateway_requests_in_flight{{{route}}} 0.0" in text


async def test_a_stream_broken_by_the_replica_counts_as_a_failure(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a", Behaviour.DIES_BETWEEN_EVENTS)
    front = await bench(build_route([a.address]))

    async with front.client() as client:
        with pytest.raises(openai.APIError):
            await ask_streamed(client)

    assert 'requests_total{code="502"' in front.gateway.metrics.render().decode()


async def test_two_hundred_streams_run_at_once_and_each_gets_its_own_answer(
    bench: BuildBench, replica: BuildReplica
) -> None:
    fleet: list[FakeReplica] = [await replica(name, Behaviour.HELD, words=8) for name in "abcd"]
    front = await bench(build_route([item.address for item in fleet]))

    async with front.client() as client:
        asking = [asyncio.create_task(ask_streamed(client)) for _ in range(200)]
        async with asyncio.timeout(15):
            await reached(lambda: sum(item.counts["begun"] for item in fleet) == 200)
            held = [front.gateway.picker.in_flight(item.address) for item in fleet]
            for item in fleet:
                item.proceed.set()
            answers = await asyncio.gather(*asking)

    assert sum(held) == 200
    assert max(held) - min(held) <= 2  # a choice in flight is not counted yet
    assert set(answers) == {"".join(f"{name}{n} " for n in range(8)) for name in "abcd"}
    front.gateway.picker.check()
