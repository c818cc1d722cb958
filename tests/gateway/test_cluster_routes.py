"""Routes in a cluster: table and endpoints from an API server that lists, watches, forgets and fails."""

from __future__ import annotations

import asyncio
import base64
import json
import pathlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from windlass_contract.endpoints import ROUTES_KEY, Canary, Replica, Route, RoutingTable, TenantRates
from windlass_gateway import kube_watch
from windlass_gateway.cluster_routes import ClusterPlace, ClusterRoutes, parse_slice
from windlass_gateway.kube_watch import Api, api_of_pod

SECRETS = "/api/v1/namespaces/windlass-system/secrets"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
ROUTE = Route(
    "team", "chat", "acme", ("d1",), (), canaries=(Canary("strict", 10, endpoints="chat-strict"),), endpoints="chat"
)


RATES = TenantRates("acme", requests_per_minute=6)


def build_secret(*routes: Route, data: str | None = None) -> dict[str, Any]:
    text = base64.b64encode(RoutingTable(routes, (RATES,)).pack()).decode() if data is None else data
    metadata = {"name": "routes", "namespace": "windlass-system"}
    return {"metadata": metadata, "data": {ROUTES_KEY: text}}


def build_slice(name: str, service: str, *pods: str, **conditions: bool) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": service, "app.kubernetes.io/part-of": "windlass"}
    return {
        "metadata": {"name": name, "namespace": "team", "labels": labels},
        "ports": [{"name": "http", "port": 8000}],
        "endpoints": [
            {
                "addresses": [f"10.0.0.{pod[-1]}"],
                "conditions": {"ready": True, **conditions},
                "targetRef": {"kind": "Pod", "name": pod},
            }
            for pod in pods
        ],
    }


class FakeApi:
    """Two collections with one version counter; every change is an event for whoever watches."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {SECRETS: {}, SLICES: {}}
        self.version = 1
        self.watchers: dict[str, list[asyncio.Queue[Any]]] = {SECRETS: [], SLICES: []}
        self.queries: list[tuple[str, dict[str, str], str]] = []
        self.down = False

    def put(self, path: str, item: dict[str, Any]) -> None:
        self.version += 1
        stored = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
        kind = "MODIFIED" if item["metadata"]["name"] in self.objects[path] else "ADDED"
        self.objects[path][item["metadata"]["name"]] = stored
        self._tell(path, {"type": kind, "object": stored})

    def delete(self, path: str, name: str) -> None:
        self.version += 1
        self._tell(path, {"type": "DELETED", "object": self.objects[path].pop(name)})

    def end_watches(self, event: Any = None) -> None:
        for path in self.watchers:
            if event is not None:
                self._tell(path, event)
            self._tell(path, None)

    def _tell(self, path: str, event: Any) -> None:
        for watcher in self.watchers[path]:
            watcher.put_nowait(event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.queries.append((request.path, dict(request.query), request.headers.get("Authorization", "")))
        if self.down:
            return web.json_response({"message": "etcd is away"}, status=500)
        if "watch" not in request.query:
            items = list(self.objects[request.path].values())
            return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": items})
        response = web.StreamResponse()
        await response.prepare(request)
        events: asyncio.Queue[Any] = asyncio.Queue()
        self.watchers[request.path].append(events)
        while (event := await events.get()) is not None:
            await response.write(json.dumps(event).encode() + b"\n")
        self.watchers[request.path].remove(events)
        return response


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
async def routes(api: FakeApi, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ClusterRoutes]:
    """Routes that follow the fake API server; no TLS on loopback."""
    monkeypatch.setattr(Api, "ssl_context", lambda self: True)
    monkeypatch.setattr(kube_watch, "FIRST_PAUSE_S", 0.01)
    token = tmp_path / "token"
    token.write_text("token-1\n")
    app = web.Application()
    app.router.add_get("/{path:.*}", api.handle)
    async with TestServer(app) as server:
        place = ClusterPlace(
            Api(str(server.make_url("")).rstrip("/"), tmp_path / "ca.crt", token), "windlass-system", "routes"
        )
        found = ClusterRoutes(place)
        following = asyncio.create_task(found.follow(0.1))
        yield found
        following.cancel()
        await asyncio.wait([following])
        api.end_watches()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.005)


def replicas(routes: ClusterRoutes) -> list[str]:
    route = routes.directory.routes.get(("team", "chat"))
    return [replica.name for replica in route.replicas] if route else []


def canary_replicas(routes: ClusterRoutes) -> list[str]:
    return [item.name for item in routes.directory.routes["team", "chat"].canaries[0].replicas]


async def test_table_and_endpoints_become_routes(api: FakeApi, routes: ClusterRoutes) -> None:
    api.put(SLICES, build_slice("chat-x", "chat", "pod-1", "pod-2"))
    api.put(SLICES, build_slice("strict-x", "chat-strict", "pod-3"))
    api.put(SECRETS, build_secret(ROUTE))

    await until(lambda: replicas(routes))

    assert routes.loaded
    assert routes.directory.routes["team", "chat"].replicas == (
        Replica("pod-1", "http://10.0.0.1:8000"),
        Replica("pod-2", "http://10.0.0.2:8000"),
    )
    assert canary_replicas(routes) == ["pod-3"]
    assert routes.directory.rates == (RATES,)


async def test_it_asks_for_one_secret_and_for_our_endpoints_with_its_token(api: FakeApi, routes: ClusterRoutes) -> None:
    await until(lambda: len(api.queries) >= 4)

    selectors = {(path, query.get("fieldSelector"), query.get("labelSelector")) for path, query, _ in api.queries}
    assert selectors == {
        (SECRETS, "metadata.name=routes", None),
        (SLICES, None, "app.kubernetes.io/part-of=windlass"),
    }
    assert {authorization for _, _, authorization in api.queries} == {"Bearer token-1"}


async def test_it_is_not_loaded_before_there_is_a_table(api: FakeApi, routes: ClusterRoutes) -> None:
    await until(lambda: len(api.queries) >= 4)
    before = routes.loaded

    api.put(SECRETS, build_secret())
    await until(lambda: routes.loaded)

    assert not before


async def test_replicas_come_and_go_with_their_endpoints(api: FakeApi, routes: ClusterRoutes) -> None:
    api.put(SECRETS, build_secret(ROUTE))
    api.put(SLICES, build_slice("chat-x", "chat", "pod-1"))
    await until(lambda: replicas(routes) == ["pod-1"])

    api.put(SLICES, build_slice("chat-y", "chat", "pod-2"))
    await until(lambda: replicas(routes) == ["pod-1", "pod-2"])
    api.delete(SLICES, "chat-x")

    await until(lambda: replicas(routes) == ["pod-2"])


@pytest.mark.parametrize("end", [None, {"type": "ERROR", "object": {"code": 410, "message": "too old"}}])
async def test_what_a_watch_missed_comes_with_the_next_one(
    api: FakeApi, routes: ClusterRoutes, end: dict[str, Any] | None
) -> None:
    api.put(SECRETS, build_secret(ROUTE))
    api.put(SLICES, build_slice("chat-x", "chat", "pod-1"))
    await until(lambda: replicas(routes) == ["pod-1"])
    await until(lambda: all(api.watchers.values()))

    if end is not None:
        del api.objects[SLICES]["chat-x"]
        api.objects[SLICES]["chat-y"] = build_slice("chat-y", "chat", "pod-2")
        api.objects[SLICES]["chat-y"]["metadata"]["resourceVersion"] = "99"
    api.end_watches(end)
    if end is None:
        await until(lambda: all(api.watchers.values()) and len(api.queries) >= 6)
        api.put(SLICES, build_slice("chat-x", "chat", "pod-2"))

    await until(lambda: replicas(routes) == ["pod-2"])


async def test_an_api_server_that_fails_changes_nothing(api: FakeApi, routes: ClusterRoutes) -> None:
    api.put(SECRETS, build_secret(ROUTE))
    api.put(SLICES, build_slice("chat-x", "chat", "pod-1"))
    await until(lambda: replicas(routes) == ["pod-1"])

    api.down = True
    asked = len(api.queries)
    api.end_watches({"type": "ERROR", "object": {"code": 500, "message": "away"}})
    await until(lambda: len(api.queries) > asked + 4)

    assert replicas(routes) == ["pod-1"]
    assert routes.loaded


@pytest.mark.parametrize("data", ["", "!!", base64.b64encode(b"no table").decode()])
async def test_a_bad_table_leaves_the_last_good_one(api: FakeApi, routes: ClusterRoutes, data: str) -> None:
    api.put(SECRETS, build_secret(ROUTE))
    await until(lambda: routes.directory.routes)

    api.put(SECRETS, build_secret(data=data))
    api.put(SLICES, build_slice("chat-x", "chat", "pod-1"))

    await until(lambda: replicas(routes) == ["pod-1"])


async def test_a_table_that_is_deleted_stays_in_force(api: FakeApi, routes: ClusterRoutes) -> None:
    api.put(SECRETS, build_secret(ROUTE))
    await until(lambda: routes.directory.routes)

    api.delete(SECRETS, "routes")
    api.put(SLICES, build_slice("chat-x", "chat", "pod-1"))

    await until(lambda: replicas(routes) == ["pod-1"])


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        pytest.param({"ready": True}, 1, id="ready"),
        pytest.param({"ready": False}, 0, id="not ready"),
        pytest.param({}, 1, id="unknown counts as ready"),
        pytest.param({"ready": True, "terminating": True}, 0, id="leaving"),
    ],
)
def test_only_ready_endpoints_are_replicas(conditions: dict[str, bool], expected: int) -> None:
    item = build_slice("chat-x", "chat", "pod-1")
    item["endpoints"][0]["conditions"] = conditions

    assert len(parse_slice(item)) == expected


def test_an_ipv6_address_stands_in_brackets() -> None:
    item = build_slice("chat-x", "chat", "pod-1")
    item["endpoints"][0]["addresses"] = ["fd00::7"]

    assert parse_slice(item) == (Replica("pod-1", "http://[fd00::7]:8000"),)


def test_a_slice_without_our_port_has_no_replicas() -> None:
    assert parse_slice({**build_slice("chat-x", "chat", "pod-1"), "ports": [{"name": "db", "port": 1}]}) == ()


def test_a_pod_is_told_where_its_api_server_is(tmp_path: pathlib.Path) -> None:
    (tmp_path / "token").write_text("t")
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}

    found = api_of_pod(environment, tmp_path)

    assert found == Api("https://[fd00::1]:6443", tmp_path / "ca.crt", tmp_path / "token")
    assert api_of_pod({}, tmp_path) is None


async def test_an_event_larger_than_any_buffer_is_read(api: FakeApi, routes: ClusterRoutes) -> None:
    many = tuple(Route("team", f"s{number}", "acme", (f"{number * 7919:064x}",), ()) for number in range(20_000))
    await until(lambda: all(api.watchers.values()))

    api.put(SECRETS, build_secret(*many))

    await until(lambda: len(routes.directory.routes) == 20_000)
