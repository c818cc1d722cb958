"""Follow objects of one Kubernetes API collection: list, then watch, for ever.

The gateway needs two reads of the API server and no more, so it speaks to it itself. Trouble with the server changes
nothing: what was last known stays in force, because replicas serve on without it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import pathlib
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import aiohttp

_log = logging.getLogger(__name__)

Json = dict[str, Any]

SERVICE_ACCOUNT: Final = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
PAGE_SIZE: Final = 500
LIST_TIMEOUT_S: Final = 30.0
WATCH_S: Final = 300
"""Length of one watch; the server ends it, and a new one goes on where it stopped."""
SILENCE_S: Final = WATCH_S + 30.0
"""A watch that is silent for longer is dead, whatever the connection says."""
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 10.0
MAX_LINE_BYTES: Final = 16 * 2**20
"""Longest event that is read; the largest object a server stores is far below."""


class WatchError(Exception):
    """The server refused or ended a list or a watch."""


class OutdatedError(WatchError):
    """The version to go on from is forgotten: list anew."""


@dataclasses.dataclass(frozen=True, slots=True)
class Api:
    """Where the API server is. The token is read before each request, because it rotates."""

    server: str
    ca_file: pathlib.Path
    token_file: pathlib.Path

    def ssl_context(self) -> ssl.SSLContext:
        """Return the TLS settings. Raises OSError for an unreadable authority."""
        return ssl.create_default_context(cafile=str(self.ca_file))

    def headers(self) -> dict[str, str]:
        """Say who we are. Raises OSError for an unreadable token."""
        return {"Authorization": f"Bearer {self.token_file.read_text().strip()}", "Accept": "application/json"}


def api_of_pod(environment: Mapping[str, str] = os.environ, folder: pathlib.Path = SERVICE_ACCOUNT) -> Api | None:
    """Return what a pod is told about its cluster; None outside one."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (folder / "token").is_file():
        return None
    return Api(f"https://{f'[{host}]' if ':' in host else host}:{port}", folder / "ca.crt", folder / "token")


class Collection:
    """The objects of one collection as last seen, by namespace and name. `run` keeps them up to date."""

    def __init__(
        self, api: Api, session: aiohttp.ClientSession, path: str, selectors: Mapping[str, str], on_change: OnChange
    ) -> None:
        self._api = api
        self._session = session
        self._path = path
        self._selectors = dict(selectors)
        self._on_change = on_change
        self._objects: dict[tuple[str, str], Json] = {}
        self.listed = asyncio.Event()
        """Set once the first listing is complete."""

    async def run(self) -> None:
        """Follow until cancelled."""
        failures = 0
        while True:
            try:
                version = await self._list()
                failures = 0
                while True:
                    version = await self._watch(version)
            except OutdatedError:
                continue
            except (WatchError, aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as exc:
                failures += 1
                pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures, 10)) * (1 + random.random())
                _log.warning("Watch ended; what is known stays. path=%s in_s=%.1f error=%r", self._path, pause_s, exc)
                await asyncio.sleep(pause_s)

    async def _list(self) -> str:
        found: dict[tuple[str, str], Json] = {}
        parameters: dict[str, str] = {**self._selectors, "limit": str(PAGE_SIZE)}
        while True:
            page = await self._get_page(parameters)
            found.update({_identity(item): item for item in page.get("items") or ()})
            token = page["metadata"].get("continue")
            if not token:
                break
            parameters["continue"] = token
        gone = {key: item for key, item in self._objects.items() if key not in found}
        self._objects = found
        self.listed.set()
        for item in gone.values():
            self._on_change(item, False)
        for item in found.values():
            self._on_change(item, True)
        return str(page["metadata"]["resourceVersion"])

    async def _get_page(self, parameters: Mapping[str, str]) -> Json:
        async with self._session.get(
            self._api.server + self._path,
            params=parameters,
            headers=await asyncio.to_thread(self._api.headers),
            timeout=aiohttp.ClientTimeout(total=LIST_TIMEOUT_S),
        ) as answer:
            await _refuse(answer)
            page: Json = json.loads(await answer.read())
            return page

    async def _watch(self, version: str) -> str:
        """Take events until the server ends the watch; return the version to go on from."""
        parameters = {
            **self._selectors,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_S),
        }
        async with self._session.get(
            self._api.server + self._path,
            params=parameters,
            headers=await asyncio.to_thread(self._api.headers),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=LIST_TIMEOUT_S, sock_read=SILENCE_S),
        ) as answer:
            await _refuse(answer)
            async for line in _lines(answer.content):
                event = json.loads(line)
                version = self._take(event["type"], event["object"]) or version
        return version

    def _take(self, kind: str, item: Json) -> str:
        if kind == "ERROR":
            code, words = item.get("code"), item.get("message", "")
            raise OutdatedError(words) if code == 410 else WatchError(f"{code}: {words}")
        if kind == "DELETED":
            self._objects.pop(_identity(item), None)
            self._on_change(item, False)
        elif kind in ("ADDED", "MODIFIED"):
            self._objects[_identity(item)] = item
            self._on_change(item, True)
        return str(item["metadata"]["resourceVersion"])


OnChange = Callable[[Json, bool], None]
"""Takes an object and whether it exists still."""


def _identity(item: Json) -> tuple[str, str]:
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


async def _refuse(answer: aiohttp.ClientResponse) -> None:
    if answer.status == 410:
        raise OutdatedError("410")
    if answer.status >= 300:
        raise WatchError(f"{answer.status}: {(await answer.content.read(400)).decode(errors='replace')}")


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield whole lines of any length: aiohttp's own reader refuses those beyond its buffer."""
    parts: list[bytes] = []
    size = 0
    async for piece in content.iter_any():
        *whole, rest = piece.split(b"\n")
        for line in whole:
            yield b"".join((*parts, line))
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size > MAX_LINE_BYTES:
            raise WatchError(f"expected events of at most {MAX_LINE_BYTES} bytes, found more")
