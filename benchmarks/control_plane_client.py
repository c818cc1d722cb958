"""A small asynchronous Kubernetes client for the control-plane benchmark: writes, lists, watches that note the time.

Times are seconds of the system-wide monotonic clock, taken when an answer or an event has been read.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from support.control_plane import Access

Manifest = dict[str, Any]

METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
MERGE = "application/merge-patch+json"
CONNECTIONS = 64
PLURALS = {"NetworkPolicy": "networkpolicies", "GPUClass": "gpuclasses", "PriorityClass": "priorityclasses"}
CLUSTER_SCOPED = frozenset(
    {"Namespace", "Node", "CustomResourceDefinition", "Tenant", "GPUClass", "PriorityClass", "ClusterRoleBinding"}
)


class RefusedError(Exception):
    """The API server answered with an error."""


class Api:
    """Speaks to one API server. Use `connected`."""

    def __init__(self, access: Access, session: aiohttp.ClientSession) -> None:
        self._access = access
        self._session = session

    async def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        accept: str = "application/json",
        content_type: str = "application/json",
    ) -> Manifest:
        """One call. Raises RefusedError."""
        headers = {**self._access.headers, "Accept": accept, "Content-Type": content_type}
        data = json.dumps(body) if body is not None else None
        async with self._session.request(method, self._access.url + path, data=data, headers=headers) as answer:
            text = await answer.text()
        if answer.status >= 300:
            raise RefusedError(f"{method} {path}: {answer.status}: {text[:500]}")
        found: Manifest = json.loads(text)
        return found

    async def create(self, manifest: Manifest) -> Manifest:
        """POST."""
        return await self.request("POST", collection_of(manifest), manifest)

    async def merge(self, manifest: Manifest, change: Mapping[str, Any], subresource: str = "") -> Manifest:
        """JSON merge patch."""
        path = f"{collection_of(manifest)}/{manifest['metadata']['name']}" + (f"/{subresource}" if subresource else "")
        return await self.request("PATCH", path, change, content_type=MERGE)

    async def count(self, path: str, selector: str = "") -> int:
        """How many objects a collection holds."""
        suffix = f"?resourceVersion=0&labelSelector={selector}" if selector else "?resourceVersion=0"
        return len((await self.request("GET", path + suffix, accept=METADATA_LIST)).get("items") or ())

    async def watch(self, path: str, see: Callable[[str, Manifest], None], *, whole: bool) -> None:
        """Pass on every event for ever, beginning with what exists; `whole` objects or their metadata alone."""
        version = "0"
        timeout = aiohttp.ClientTimeout(total=None, sock_read=None)
        while True:
            url = f"{self._access.url}{path}?watch=1&allowWatchBookmarks=true&resourceVersion={version}"
            headers = {**self._access.headers, "Accept": "application/json" if whole else METADATA}
            async with self._session.get(url, headers=headers, timeout=timeout) as answer:
                if answer.status >= 300:
                    raise RefusedError(f"watch {path}: {answer.status}: {await answer.text()}")
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise RefusedError(f"watch {path}: {event['object']}")
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        see(event["type"], event["object"])


@asynccontextmanager
async def connected(access: Access) -> AsyncIterator[Api]:
    """A client with a pool of its own."""
    connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=access.ssl_context())
    async with aiohttp.ClientSession(connector=connector, read_bufsize=2**22) as session:
        yield Api(access, session)


def collection_of(manifest: Mapping[str, Any]) -> str:
    """URL path of the collection an object lies in."""
    return collection(manifest["apiVersion"], manifest["kind"], manifest["metadata"].get("namespace", ""))


def collection(api_version: str, kind: str, namespace: str = "") -> str:
    """URL path of a collection, in one namespace or in all."""
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    plural = PLURALS.get(kind, f"{kind.lower()}s")
    return f"{root}/namespaces/{namespace}/{plural}" if namespace and kind not in CLUSTER_SCOPED else f"{root}/{plural}"


def own_name(manifest: Mapping[str, Any]) -> str:
    """Name of an object."""
    return str(manifest["metadata"]["name"])


class Sightings:
    """What a watch saw first, by name of the object or of its owner."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}
        """First sight of the object."""
        self.accepted: dict[str, float] = {}
        """First sight of the object in a state that `accept` takes."""
        self.generations: dict[str, int] = {}
        self._changed = asyncio.Event()

    def taker(
        self, accept: Callable[[Manifest], bool] = bool, name_of: Callable[[Manifest], str] = own_name
    ) -> Callable[[str, Manifest], None]:
        """A function for `Api.watch`."""

        def take(event_type: str, manifest: Manifest) -> None:
            if event_type == "DELETED":
                return
            now, name = time.monotonic(), name_of(manifest)
            self.seen.setdefault(name, now)
            self.generations[name] = manifest["metadata"].get("generation", 0)
            if name not in self.accepted and accept(manifest):
                self.accepted[name] = now
            self._changed.set()

        return take

    async def until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `holds` after an event; False when time is up."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            self._changed.clear()
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._changed.wait()
            except TimeoutError:
                return False
        return True
