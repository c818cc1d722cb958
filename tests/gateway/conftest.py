"""Gateways and fake replicas that end with the test."""

from __future__ import annotations

import dataclasses
import pathlib
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

import pytest

from support.gateway import Bench, BuildBench, BuildReplica, write_table
from support.replica import Behaviour, FakeReplica
from windlass_contract.endpoints import Replica, Route, TenantRates
from windlass_gateway.main import Gateway
from windlass_gateway.routes import RouteBook
from windlass_gateway.settings import Settings


@pytest.fixture
async def replica() -> AsyncIterator[BuildReplica]:
    """Start fake replicas; all stop with the test."""
    async with AsyncExitStack() as stack:

        async def build(name: str = "a", behaviour: Behaviour = Behaviour.NORMAL, words: int = 5) -> FakeReplica:
            return await stack.enter_async_context(FakeReplica(name, behaviour, words))

        yield build


@pytest.fixture
async def bench(tmp_path: pathlib.Path) -> AsyncIterator[BuildBench]:
    """Start gateways; all drain with the test."""
    async with AsyncExitStack() as stack:

        async def build(*routes: Route, rates: Sequence[TenantRates] = (), **settings: float | bytes) -> Bench:
            table = tmp_path / "routes.json"
            write_table(table, *routes, rates=rates)
            defaults = Settings(poll_s=0.01, connect_timeout_s=1.0, drain_timeout_s=1.0)
            sock = socket.create_server(("127.0.0.1", 0))
            gateway = Gateway(dataclasses.replace(defaults, **settings), RouteBook(table), sock)  # type: ignore[arg-type]
            return Bench(await stack.enter_async_context(gateway), table)

        yield build


@pytest.fixture
def dead_address() -> Replica:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return Replica("dead", f"http://127.0.0.1:{sock.getsockname()[1]}")
