"""Routes in a cluster: the operator's table says who may use what, endpoints of Services which replicas are ready.

The table is a Secret, because it holds digests of keys; the gateway may read this one Secret and no other. Replicas
come from EndpointSlices, not from DNS: they arrive within milliseconds of a change and name pods that leave as not
ready.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import dataclasses
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import aiohttp

from windlass_contract.endpoints import PORT_NAME, ROUTES_KEY, Canary, Replica, Route, RoutingTable, RoutingTableError
from windlass_gateway.kube_watch import Api, Collection, Json
from windlass_gateway.tenants import Directory, index_table

_log = logging.getLogger(__name__)

SERVICE_LABEL: Final = "kubernetes.io/service-name"
PART_OF: Final = "app.kubernetes.io/part-of=windlass"
"""Kubernetes copies the labels of a Service to its EndpointSlices."""
GATHER_S: Final = 0.02
"""Changes within this time become one new directory."""
REPLICA_URL: Final = "http://{ip}:{port}"

ServiceKey = tuple[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class ClusterPlace:
    """Where a gateway finds its routes."""

    api: Api
    namespace: str
    """Namespace of the Secret."""
    secret: str
    namespaces: tuple[str, ...] = ()
    """Namespaces whose endpoints are followed; empty: all."""
    replica_url: str = REPLICA_URL
    """Base URL of a replica, with {ip}, {port}, {namespace} and {pod} filled in."""


class ClusterRoutes:
    """A RouteSource. `directory` is replaced as a whole and never edited."""

    def __init__(self, place: ClusterPlace, on_change: Callable[[Directory], None] = lambda _: None) -> None:
        self._place = place
        self.on_change = on_change
        self._table: RoutingTable | None = None
        self._slices: dict[ServiceKey, dict[str, tuple[Replica, ...]]] = {}
        self._changed = asyncio.Event()
        self._watched: list[Collection] = []
        self.directory = index_table(RoutingTable())

    @property
    def loaded(self) -> bool:
        """Whether table and endpoints have been read."""
        return self._table is not None and bool(self._watched) and all(item.listed.is_set() for item in self._watched)

    def newest(self, route: Route) -> Route:
        """See RouteSource.newest."""
        return self.directory.routes.get((route.namespace, route.service), route)

    async def refresh(self) -> bool:
        """Bring the directory up to what is known."""
        if not self.loaded or self._table is None:
            return False
        routes = tuple(self._resolve(route) for route in self._table.routes)
        self.directory = index_table(dataclasses.replace(self._table, routes=routes))
        self.on_change(self.directory)
        return True

    async def follow(self, poll_s: float) -> None:  # noqa: ARG002 - watches need no polling
        """See RouteSource.follow."""
        async with AsyncExitStack() as stack:
            connector = aiohttp.TCPConnector(ssl=await asyncio.to_thread(self._place.api.ssl_context))
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, trust_env=False))
            self._watched = list(self._collections(session))
            async with asyncio.TaskGroup() as group:
                for collection in self._watched:
                    group.create_task(collection.run())
                while True:
                    await self._changed.wait()
                    await asyncio.sleep(GATHER_S)
                    self._changed.clear()
                    await self.refresh()

    def _collections(self, session: aiohttp.ClientSession) -> list[Collection]:
        place = self._place
        secrets = f"/api/v1/namespaces/{place.namespace}/secrets"
        named = {"fieldSelector": f"metadata.name={place.secret}"}
        slices = "/apis/discovery.k8s.io/v1"
        paths = [f"{slices}/namespaces/{name}/endpointslices" for name in place.namespaces]
        return [
            Collection(place.api, session, secrets, named, self._take_table),
            *(
                Collection(place.api, session, path, {"labelSelector": PART_OF}, self._take_slice)
                for path in paths or [f"{slices}/endpointslices"]
            ),
        ]

    def _take_table(self, secret: Json, exists: bool) -> None:
        """A table that is gone or unusable leaves the last good one in force: an operator may be about to write it."""
        if not exists:
            _log.warning("Routing table is gone; the last one stays in force. secret=%s", self._place.secret)
            return
        try:
            self._table = RoutingTable.unpack(base64.b64decode((secret.get("data") or {})[ROUTES_KEY], validate=True))
        except (KeyError, binascii.Error, RoutingTableError) as exc:
            _log.warning("Routing table unusable; the last good one stays in force. problem=%r", exc)
            return
        _log.info("Routing table loaded. routes=%d", len(self._table.routes))
        self._changed.set()

    def _take_slice(self, item: Json, exists: bool) -> None:
        metadata = item["metadata"]
        service = (metadata.get("labels") or {}).get(SERVICE_LABEL, "")
        key = metadata.get("namespace", ""), service
        known = self._slices.setdefault(key, {})
        if exists:
            known[metadata["name"]] = parse_slice(item, self._place.replica_url)
        else:
            known.pop(metadata["name"], None)
        if not known:
            del self._slices[key]
        self._changed.set()

    def _resolve(self, route: Route) -> Route:
        canaries = tuple(self._resolve_canary(route.namespace, canary) for canary in route.canaries)
        return dataclasses.replace(
            route, replicas=self._replicas(route.namespace, route.endpoints, route.replicas), canaries=canaries
        )

    def _resolve_canary(self, namespace: str, canary: Canary) -> Canary:
        return dataclasses.replace(canary, replicas=self._replicas(namespace, canary.endpoints, canary.replicas))

    def _replicas(self, namespace: str, service: str, listed: tuple[Replica, ...]) -> tuple[Replica, ...]:
        if not service:
            return listed
        found = self._slices.get((namespace, service), {})
        return tuple(sorted({replica for replicas in found.values() for replica in replicas}, key=_by_name))


def parse_slice(item: Mapping[str, Any], template: str = REPLICA_URL) -> tuple[Replica, ...]:
    """Return the ready replicas of one EndpointSlice; none for one that lacks our port."""
    port = next((entry.get("port") for entry in item.get("ports") or () if entry.get("name") == PORT_NAME), None)
    if port is None:
        return ()
    namespace = item["metadata"].get("namespace", "")
    return tuple(
        _replica(endpoint, namespace, int(port), template)
        for endpoint in item.get("endpoints") or ()
        if endpoint.get("addresses") and _is_ready(endpoint)
    )


def _is_ready(endpoint: Mapping[str, Any]) -> bool:
    """By the API's own rule: an unknown readiness counts as ready, and a pod that leaves does not."""
    conditions = endpoint.get("conditions") or {}
    return conditions.get("ready") is not False and not conditions.get("terminating")


def _replica(endpoint: Mapping[str, Any], namespace: str, port: int, template: str) -> Replica:
    ip = endpoint["addresses"][0]
    pod = (endpoint.get("targetRef") or {}).get("name", ip)
    host = f"[{ip}]" if ":" in ip else ip
    return Replica(pod, template.format(ip=host, port=port, namespace=namespace, pod=pod))


def _by_name(replica: Replica) -> tuple[str, str]:
    return replica.name, replica.url
