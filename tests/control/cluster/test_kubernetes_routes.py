"""The Secret with the gateway's routing table: written when it differs, and only then."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from windlass_contract.endpoints import ROUTES_KEY, Route, RoutingTable
from windlass_operator import errors
from windlass_operator.cluster import kubernetes_routes
from windlass_operator.cluster.kubernetes_access import Access
from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.cluster.kubernetes_lease import Leadership
from windlass_operator.cluster.kubernetes_routes import RoutesSecret

TABLE = RoutingTable((Route("team-a", "chat", "acme", ("digest",), (), endpoints="chat"),))
PATH = "/api/v1/namespaces/windlass-system/secrets/routes"


class Server:
    """Holds one Secret."""

    def __init__(self) -> None:
        self.secret: dict[str, Any] = {}
        self.requests: list[str] = []
        self.fails = False

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append(f"{request.method} {request.path}")
        if request.method == "PATCH":
            self.secret = json.loads(await request.read())
            if self.fails:
                return web.json_response({}, status=503)
        return web.json_response(self.secret)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    found = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", found.handle)
    async with TestServer(app) as test_server:
        found.url = str(test_server.make_url("")).rstrip("/")
        yield found


@pytest.fixture
async def secret(server: Server) -> AsyncIterator[RoutesSecret]:
    async def load() -> Access:
        return Access(server.url, "a test")

    leadership = Leadership(lambda: 0.0)
    await leadership.extend(1e9)
    async with KubernetesClient(load) as client:
        yield RoutesSecret(client, leadership, "windlass-system", "routes")


async def test_a_table_is_written_once(server: Server, secret: RoutesSecret) -> None:
    written = [await secret.publish(TABLE), await secret.publish(TABLE)]

    assert written == [True, False]
    assert server.requests == [f"GET {PATH}", f"PATCH {PATH}"]
    assert RoutingTable.unpack(base64.b64decode(server.secret["data"][ROUTES_KEY])) == TABLE


async def test_what_an_earlier_process_wrote_is_not_written_again(server: Server, secret: RoutesSecret) -> None:
    await secret.publish(TABLE)

    secret.forget()
    written = await secret.publish(TABLE)

    assert not written
    assert server.requests[-1] == f"GET {PATH}"


async def test_a_write_without_an_answer_is_looked_at_again(server: Server, secret: RoutesSecret) -> None:
    server.fails = True
    with pytest.raises(errors.RetryLater):
        await secret.publish(TABLE)

    server.fails = False
    written = await secret.publish(TABLE)

    assert not written, "the write had arrived"


async def test_a_table_that_fits_into_no_secret_is_refused(
    secret: RoutesSecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_routes, "MAX_PACKED_BYTES", 10)

    with pytest.raises(errors.ApplyRejected, match="1 services: expected at most 10 packed bytes"):
        await secret.publish(TABLE)
