"""A client that stops reading: what it may hold in the gateway, and for how long."""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from support.gateway import KEY, Bench, BuildBench, build_route
from windlass_contract.endpoints import Replica

PIECE = b"x" * 2**16
SOCKET_BUFFERS = 24 * 2**20
"""More than the kernel holds on both sides of two loopback connections."""


class Endless:
    """A replica that streams for as long as it is let."""

    def __init__(self) -> None:
        self.sent = 0
        self.cancelled = asyncio.Event()

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/v1/models", self._stream)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address = Replica("endless", "http://{}:{}".format(*runner.addresses[0]))
        return runner

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(PIECE)
                self.sent += len(PIECE)
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled.set()
            raise


@pytest.fixture
async def endless() -> AsyncIterator[Endless]:
    replica = Endless()
    runner = await replica.start()
    yield replica
    await runner.cleanup()


async def ask_and_never_read(front: Bench) -> asyncio.Transport:
    """A connection that has sent a request and takes nothing in."""
    address = urllib.parse.urlsplit(front.url)
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, address.hostname, address.port)
    transport.pause_reading()
    transport.write(f"GET /team/chat/v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
    return transport


async def come_to_rest(replica: Endless) -> int:
    """Bytes that the replica could send before everything was full."""
    before = -1
    async with asyncio.timeout(60):
        while replica.sent == 0 or replica.sent != before:
            before = replica.sent
            await asyncio.sleep(0.3)
    return before


async def test_a_client_that_does_not_read_stops_the_replica_instead_of_filling_the_gateway(
    bench: BuildBench, endless: Endless
) -> None:
    front = await bench(build_route([endless.address], timeout_s=60))

    client = await ask_and_never_read(front)

    assert await come_to_rest(endless) < SOCKET_BUFFERS
    client.abort()


async def test_a_client_that_does_not_read_for_too_long_is_cut_off(bench: BuildBench, endless: Endless) -> None:
    front = await bench(build_route([endless.address], timeout_s=60), client_stall_s=0.2)

    client = await ask_and_never_read(front)

    async with asyncio.timeout(30):
        await endless.cancelled.wait()
    client.abort()
    async with asyncio.timeout(30):
        while front.gateway.picker.in_flight(endless.address):
            await asyncio.sleep(0.01)
