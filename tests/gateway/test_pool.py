"""Connections towards replicas: reused, bounded, and never blamed on a replica when the gateway itself has run out."""

from __future__ import annotations

import asyncio
import errno
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from support.gateway import Bench, BuildBench, BuildReplica, build_route
from support.replica import Behaviour, FakeReplica
from windlass_contract.endpoints import Replica
from windlass_gateway import answers
from windlass_gateway.picking import Picker
from windlass_gateway.routes import RouteBook
from windlass_gateway.settings import Settings
from windlass_gateway.upstream import Call, Upstream


def connections(replica: FakeReplica) -> int:
    """Connections that the replica holds open."""
    server = replica._runner.server
    assert server is not None
    return len(server.connections)


async def ask_at_once(front: Bench, replica: FakeReplica, count: int) -> None:
    """Requests that all run at the same time and then end together."""
    replica.proceed.clear()
    begun = replica.counts["begun"] + count
    async with front.client() as client:

        async def ask() -> None:
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])

        asking = [asyncio.create_task(ask()) for _ in range(count)]
        async with asyncio.timeout(30):
            while replica.counts["begun"] < begun:
                await asyncio.sleep(0.005)
            replica.proceed.set()
            await asyncio.gather(*asking)


async def test_a_wave_of_requests_leaves_a_bounded_number_of_connections_behind(
    bench: BuildBench, replica: BuildReplica
) -> None:
    a = await replica("a", Behaviour.HELD)
    front = await bench(build_route([a.address]), max_idle_upstream=4)

    await ask_at_once(front, a, 20)

    async with asyncio.timeout(10):
        while connections(a) > 4:
            await asyncio.sleep(0.01)
    assert connections(a) == 4


async def test_connections_left_behind_are_used_again(bench: BuildBench, replica: BuildReplica) -> None:
    a = await replica("a", Behaviour.HELD)
    front = await bench(build_route([a.address]), max_idle_upstream=4)

    for _ in range(3):
        await ask_at_once(front, a, 4)

    assert connections(a) == 4


async def test_connections_that_replicas_closed_make_room_for_others(bench: BuildBench, replica: BuildReplica) -> None:
    a, b = await replica("a", Behaviour.HELD), await replica("b", Behaviour.HELD)
    front = await bench(build_route([a.address]), build_route([b.address], service="other"), max_idle_upstream=2)
    await ask_at_once(front, a, 2)
    await a.stop()

    async with front.client(service="other") as client:
        b.proceed.set()
        for _ in range(2):
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])

    assert connections(b) == 1


class Exhausted:
    """A session that cannot open sockets."""

    def __init__(self, code: int) -> None:
        self._code = code

    async def request(self, *_: object, **__: object) -> Any:
        key: Any = SimpleNamespace(host="r", port=1, ssl=True, is_ssl=False)
        raise aiohttp.ClientConnectorError(key, OSError(self._code, "no more"))


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL])
async def test_a_gateway_without_descriptors_does_not_blame_the_replica(tmp_path: Any, code: int) -> None:
    replica = Replica("a", "http://r:1")
    route, picker = build_route([replica]), Picker()
    routes = RouteBook(tmp_path / "none")
    upstream = Upstream(Settings(), routes, picker, Exhausted(code))  # type: ignore[arg-type]

    with pytest.raises(answers.Refused) as refused:
        await upstream.send(route, Call("GET", "/v1/models", {}, b"", "id"))

    assert refused.value.problem is answers.OVERLOADED
    assert picker.in_flight(replica) == 0
    busy = Replica("busy", "http://r:2")
    picker.start(busy)
    assert picker.pick([busy, replica], (), asyncio.get_running_loop().time()) == replica  # it does not rest
