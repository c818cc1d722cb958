"""The listening side against hostile and departing clients, on raw sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.parse

import openai
import pytest

from support.gateway import KEY, Bench, BuildBench, BuildReplica, build_route
from support.replica import Behaviour


async def exchange(front: Bench, request: bytes, within_s: float = 5.0) -> bytes:
    """Send raw bytes; return everything up to the end of the connection."""
    address = urllib.parse.urlsplit(front.url)
    async with asyncio.timeout(within_s):
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    return answer


HEAD = f"Host: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    "request_text",
    [
        pytest.param(
            f"POST /team/chat/v1/completions HTTP/1.1\r\n{HEAD}Content-Length: 3\r\n"
            "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="two lengths",
        ),
        pytest.param(
            f"POST /team/chat/v1/completions HTTP/1.1\r\n{HEAD}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
            id="two content lengths",
        ),
        pytest.param(f"GET /team/chat/v1/models HTTP/1.1\r\n{HEAD}X-A : 1\r\n\r\n", id="space before the colon"),
        pytest.param(f"GET /team/chat/v1/models HTTP/1.1\r\n{HEAD}X-A: {'y' * 9000}\r\n\r\n", id="huge header"),
        pytest.param(f"GET /team/chat/v1/%2e%2e/models HTTP/1.1\r\n{HEAD}\r\n", id="encoded parent segment"),
        pytest.param(f"GET http://x/team/chat/v1/models HTTP/1.1\r\n{HEAD}\r\n", id="absolute form"),
    ],
)
async def test_smuggling_is_refused_and_reaches_no_replica(
    bench: BuildBench, replica: BuildReplica, request_text: str, caplog: pytest.LogCaptureFixture
) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]))

    answer = await exchange(front, request_text.encode())

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == b"400"
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert a.seen == []
    assert KEY not in caplog.text


async def test_two_authorization_headers_open_nothing(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a")
    front = await bench(build_route([a.address]))

    answer = await exchange(
        front, f"GET /team/chat/v1/models HTTP/1.1\r\n{HEAD}Authorization: Bearer x\r\n\r\n".encode()
    )

    assert answer.startswith(b"HTTP/1.1 401 ")
    assert a.seen == []


async def test_a_connection_that_sends_no_request_is_closed(bench: BuildBench) -> None:
    front = await bench(build_route([]), head_timeout_s=0.05)

    assert await exchange(front, b"GET /heal") == b""


async def test_a_body_that_does_not_arrive_is_given_up(bench: BuildBench) -> None:
    front = await bench(build_route([]), body_timeout_s=0.05)

    answer = await exchange(
        front, f"POST /team/chat/v1/completions HTTP/1.1\r\n{HEAD}Content-Length: 9\r\n\r\nabc".encode(), within_s=15
    )

    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_a_connection_too_many_is_told_so(bench: BuildBench) -> None:
    front = await bench(build_route([]), max_connections=1)
    address = urllib.parse.urlsplit(front.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"alive")

    answer = await exchange(front, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    writer.close()
    await writer.wait_closed()

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in answer


async def test_sigterm_lets_a_stream_finish_and_takes_no_new_connection(
    bench: BuildBench, replica: BuildReplica
) -> None:
    a = await replica("a", Behaviour.HELD, words=3)
    front = await bench(build_route([a.address]))
    table = str(front.table)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "windlass_gateway", "run", "--routes", table, "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=dict(os.environ),
    )
    assert process.stdout is not None
    url = json.loads(await process.stdout.readline())["url"]

    async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/team/chat/v1", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True
        )
        pieces = aiter(stream)
        await anext(pieces)
        process.send_signal(signal.SIGTERM)
        await refused(url)
        a.proceed.set()
        rest = [chunk.choices[0].delta.content async for chunk in pieces]
        async with asyncio.timeout(5):
            code = await process.wait()

    assert rest == ["a1 ", "a2 "]
    assert code == 0


async def refused(url: str) -> None:
    """Wait until nothing listens any more."""
    address = urllib.parse.urlsplit(url)
    async with asyncio.timeout(5):
        while True:
            try:
                _, writer = await asyncio.open_connection(address.hostname, address.port)
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.01)
