"""Hostile bytes on raw sockets: whatever comes, the gateway answers in HTTP or hangs up, replicas see sound requests
only, and the next client is served as if nothing had been.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import logging
import random
import re
import urllib.parse
from collections.abc import Sequence

import pytest

from support.gateway import KEY, Bench, BuildBench, BuildReplica, build_route
from support.replica import FakeReplica
from windlass_contract.endpoints import TenantRates

HEAD = f"Host: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
POST = "POST /team/chat/v1/completions HTTP/1.1\r\n"
BODY = json.dumps({"model": "m", "prompt": "hello", "max_tokens": 4}).encode()
LIMITS = [TenantRates("acme", 10**7, 10**9, 10**6)]


async def send(front: Bench, *pieces: bytes, within_s: float = 10.0, pause_s: float = 0.01) -> bytes:
    """Send pieces one after another; return everything up to the end of the connection."""
    address = urllib.parse.urlsplit(front.url)
    async with asyncio.timeout(within_s):
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
            return await reader.read()
        except OSError:
            return b""
        finally:
            writer.close()


def statuses(answer: bytes) -> list[int]:
    """Status of each answer in what came back."""
    return [int(found) for found in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]


def require_sound(replica: FakeReplica) -> None:
    """Every request that reached the replica is one that our own HTTP client would send."""
    for seen in replica.seen:
        assert seen.method in ("GET", "POST")
        assert re.fullmatch(r"/v1/[!-~]*", seen.path)
        assert "Transfer-Encoding" not in seen.headers
        assert int(seen.headers.get("Content-Length", "0")) == len(seen.body)
        assert "Authorization" not in seen.headers


def mutate(source: random.Random, request: bytes) -> bytes:
    """A few changes of the kind that confuse parsers."""
    out = bytearray(request)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(out) + 1)
        match source.randrange(7):
            case 0:
                out[at : at + 1] = bytes([source.randrange(256)])
            case 1:
                out[at:at] = source.choice([b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"%00", b"\r\n\r\n"])
            case 2:
                del out[at : at + source.randint(1, 20)]
            case 3:
                out[at:at] = out[at : at + source.randint(1, 60)]
            case 4:
                extra = source.choice(
                    [
                        b"Content-Length: 5\r\n",
                        b"Transfer-Encoding: chunked\r\n",
                        b"Transfer-Encoding:\tchunked\r\n",
                        b"Content-Encoding: gzip\r\n",
                        b"Expect: 100-continue\r\n",
                        b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
                        b"Authorization: Bearer other\r\n",
                        b"X-Windlass-Report-Usage: \xff\r\n",
                    ]
                )
                end = out.find(b"\r\n") + 2
                out[end:end] = extra
            case 5:
                out += b"GET /team/chat/v1/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
            case 6:
                out = bytearray(
                    bytes(out).replace(b"HTTP/1.1", source.choice([b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.10"]))
                )
    return bytes(out)


def cut(source: random.Random, request: bytes) -> list[bytes]:
    """The same bytes in one to three pieces."""
    places = sorted(source.randrange(len(request) + 1) for _ in range(source.randrange(3)))
    edges = [0, *places, len(request)]
    return [request[start:end] for start, end in itertools.pairwise(edges)]


BASES = [
    f"{POST}{HEAD}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY,
    f"{POST}{HEAD}Transfer-Encoding: chunked\r\n\r\n{len(BODY):x}\r\n".encode() + BODY + b"\r\n0\r\n\r\n",
    f"GET /team/chat/v1/models HTTP/1.1\r\n{HEAD}\r\n".encode(),
]


@pytest.mark.parametrize("seed", range(4))
async def test_mutated_requests_break_nothing(
    bench: BuildBench, replica: BuildReplica, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    source = random.Random(seed)
    a = await replica("a")
    front = await bench(build_route([a.address]), rates=LIMITS, body_timeout_s=0.3, head_timeout_s=0.3, keepalive_s=0.3)

    requests = [mutate(source, source.choice(BASES)) for _ in range(75)]
    answers = [await send(front, *cut(source, request), pause_s=0.001) for request in requests]
    sound = await send(front, BASES[0])

    assert 500 not in {status for answer in answers for status in statuses(answer)}
    assert statuses(sound) == [200]
    require_sound(a)
    assert not [seen for seen in a.seen if "smuggled" in seen.path and "Authorization" in seen.headers]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert KEY not in caplog.text


async def test_a_request_behind_another_is_served_on_its_own_terms(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]))
    first = f"{POST}Host: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    second = b"GET /team/chat/v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    answer = await send(front, first + second)

    assert statuses(answer) == [200, 401], "the key of the first request opens nothing for the second"
    assert [seen.path for seen in a.seen] == ["/v1/completions"]


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param(["Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n", "abc"], id="no gzip"),
        pytest.param(["Content-Encoding: deflate\r\nContent-Length: 3\r\n\r\n", "abc"], id="no deflate"),
        pytest.param(["Transfer-Encoding: chunked\r\n\r\n", "zz\r\nabc\r\n0\r\n\r\n"], id="no chunk size"),
        pytest.param(["Transfer-Encoding: chunked\r\n\r\n", "3\r\nabcdef\r\n0\r\n\r\n"], id="chunk too long"),
        pytest.param(["Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "-1\r\n\r\n"], id="negative chunk size"),
    ],
)
async def test_a_broken_body_is_the_clients_mistake_and_not_ours(
    bench: BuildBench, replica: BuildReplica, pieces: Sequence[str], caplog: pytest.LogCaptureFixture
) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]), rates=LIMITS, body_timeout_s=0.2)

    answer = await send(front, f"{POST}{HEAD}{pieces[0]}".encode(), *(piece.encode() for piece in pieces[1:]))

    # The parser does not tell a handler that waits for more; then the deadline of the body does.
    assert statuses(answer)[0] in (400, 408)
    assert b'"type": "invalid_request_error"' in answer
    assert a.seen == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_body_that_unpacks_to_more_than_the_limit_is_refused(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]), max_body_bytes=2**20)
    bomb = gzip.compress(b"\0" * 32 * 2**20)

    answer = await send(
        front, f"{POST}{HEAD}Content-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode() + bomb
    )

    assert statuses(answer) == [413]
    assert front.gateway._proxy._bodies.space.held == 0
    assert a.seen == []


async def test_a_client_that_drips_its_second_head_is_closed(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]), keepalive_s=0.2, head_timeout_s=0.2)
    first = f"GET /team/chat/v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()

    drops = [b"GET", b" /t", b"eam", b"/ch"]
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    address = urllib.parse.urlsplit(front.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(first)
    await reader.readuntil(b"}")
    for drop in drops:
        writer.write(drop)
        await asyncio.sleep(0.02)
    async with asyncio.timeout(5):
        rest = await reader.read()
    writer.close()

    assert rest == b""
    assert loop.time() - started_s < 4


async def test_a_client_that_does_not_read_is_given_up_and_frees_the_replica(
    bench: BuildBench, replica: BuildReplica
) -> None:
    a = await replica("a", words=200_000)
    front = await bench(build_route([a.address]), client_stall_s=0.2, rates=LIMITS)
    body = json.dumps({"messages": [], "stream": True}).encode()
    address = urllib.parse.urlsplit(front.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1)
    target = "POST /team/chat/v1/chat/completions HTTP/1.1\r\n"
    writer.write(f"{target}{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async with asyncio.timeout(10):
        await a.cancelled.wait()
    writer.close()

    assert front.gateway.picker.in_flight(a.address) == 0
    assert reader is not None


async def test_a_hundred_clients_that_leave_in_the_middle_of_their_bodies_hold_nothing(
    bench: BuildBench, replica: BuildReplica
) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]), rates=[TenantRates("acme", concurrent_requests=200)])
    head = f"{POST}{HEAD}Content-Length: 100000\r\n\r\n".encode()

    async def leave() -> None:
        with contextlib.suppress(TimeoutError):
            await send(front, head, b"x" * 5000, within_s=0.2)

    await asyncio.gather(*(leave() for _ in range(100)))
    async with asyncio.timeout(5):
        while front.gateway._proxy._bodies.space.held:
            await asyncio.sleep(0.01)

    assert a.seen == []
    assert statuses(await send(front, BASES[0])) == [200]
    assert all(account.running == 0 for account in front.gateway._turnstile._limiter._accounts.values())


HOSTILE_ANSWERS = [
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 502, id="two lengths"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX-A: " + b"y" * 100_000 + b"\r\n\r\n", 502, id="endless header"),
    pytest.param(b"not http at all\r\n\r\n", 502, id="no HTTP"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort", None, id="less than announced"),
    pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", None, id="broken chunks"),
    pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", 502, id="101"),
    pytest.param(b"HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n", 502, id="status too low"),
]


@pytest.mark.parametrize(("answer", "status"), HOSTILE_ANSWERS)
async def test_a_replica_that_breaks_the_protocol_harms_nobody_else(
    bench: BuildBench, replica: BuildReplica, answer: bytes, status: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    sound = await replica("sound")

    async def misbehave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(misbehave, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    bad = type(sound.address)("bad", f"http://127.0.0.1:{port}")
    front = await bench(build_route([bad], timeout_s=1.0), build_route([sound.address], service="sound"), rates=LIMITS)

    broken = await send(front, f"GET /team/chat/v1/models HTTP/1.1\r\n{HEAD}\r\n".encode())
    other = await send(front, f"GET /team/sound/v1/models HTTP/1.1\r\n{HEAD}\r\n".encode())
    server.close()
    await server.wait_closed()

    if status is None:
        assert statuses(broken) in ([], [200], [502]), "a broken answer must not look whole"
        assert not broken.endswith(b"0\r\n\r\n")
    else:
        assert statuses(broken) == [status]
    assert statuses(other) == [200]
    assert "Request failed inside the gateway" not in caplog.text
