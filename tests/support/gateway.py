"""A gateway in this process with its routing table on disk: what gateway tests build their worlds from."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Awaitable, Callable, Sequence

import openai

from support.replica import FakeReplica
from windlass_contract.endpoints import Replica, Route, RoutingTable, TenantRates, digest_key
from windlass_gateway.main import Gateway

KEY = "key-of-acme-0123456789"
RIVAL_KEY = "key-of-rival-9876543210"


def build_route(
    replicas: Sequence[Replica], service: str = "chat", key: str = KEY, timeout_s: float = 5.0, tenant: str = "acme"
) -> Route:
    """One route; tests name only what they care about."""
    return Route("team", service, tenant, (digest_key(key),), tuple(replicas), timeout_s)


def write_table(path: pathlib.Path, *routes: Route, rates: Sequence[TenantRates] = ()) -> None:
    """Replace the routing table atomically, as a control plane does."""
    aside = path.with_suffix(".new")
    aside.write_text(RoutingTable(routes, tuple(rates)).to_json())
    os.replace(aside, path)


@dataclasses.dataclass
class Bench:
    """A running gateway with its table file."""

    gateway: Gateway
    table: pathlib.Path

    @property
    def url(self) -> str:
        """Base URL of the gateway."""
        return self.gateway.url

    def client(self, key: str = KEY, service: str = "chat", retries: int = 0) -> openai.AsyncOpenAI:
        """The official client, pointed at one service."""
        return openai.AsyncOpenAI(
            api_key=key, base_url=f"{self.url}/team/{service}/v1", max_retries=retries, timeout=20
        )


BuildBench = Callable[..., Awaitable[Bench]]
BuildReplica = Callable[..., Awaitable[FakeReplica]]
