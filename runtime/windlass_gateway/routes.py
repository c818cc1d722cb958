"""Where routes come from, and the first such place: a file. One that cannot be read or parsed leaves the last good
table in force.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pathlib
from collections.abc import Callable
from typing import Protocol

from windlass_contract.endpoints import Route, RoutingTable, RoutingTableError
from windlass_gateway.tenants import Directory, index_table

_log = logging.getLogger(__name__)

Stamp = tuple[int, int, int]
"""Modification time, inode and size: differs after every atomic replacement of the file."""


class RouteSource(Protocol):
    """The newest routes, however they are learned."""

    on_change: Callable[[Directory], None]
    """Called with every new directory."""

    @property
    def directory(self) -> Directory:
        """What is in force; replaced as a whole and never edited."""
        ...

    @property
    def loaded(self) -> bool:
        """Whether a good table has ever been read."""
        ...

    def newest(self, route: Route) -> Route:
        """Return the route as it is now; the one given once it is gone."""
        ...

    async def refresh(self) -> bool:
        """Look once, before the first request; return whether a new table is in force."""
        ...

    async def follow(self, poll_s: float) -> None:
        """Keep up until cancelled; `poll_s` is for sources that have to look."""
        ...


class RouteBook:
    """The newest good routing table. `directory` is replaced as a whole and never edited."""

    def __init__(self, path: pathlib.Path, on_change: Callable[[Directory], None] = lambda _: None) -> None:
        self._path = path
        self.on_change = on_change
        self._stamp: Stamp | None = None
        self._complaint = ""
        self.directory = index_table(RoutingTable())
        self.loaded = False
        """Whether a good table has ever been read."""

    def newest(self, route: Route) -> Route:
        """Return the route as the table has it now; the one given once it is gone."""
        return self.directory.routes.get((route.namespace, route.service), route)

    async def follow(self, poll_s: float) -> None:
        """Look at the file every `poll_s` seconds until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(poll_s)

    async def refresh(self) -> bool:
        """Read the file if it changed; return whether a new table is in force."""
        try:
            text = await asyncio.to_thread(self._read_if_changed)
            if text is None:
                return False
            directory = index_table(RoutingTable.from_json(text))
        except (OSError, UnicodeDecodeError, RoutingTableError) as exc:
            self._complain(str(exc))
            return False
        self._complaint = ""
        self.directory, self.loaded = directory, True
        _log.info("Routing table loaded. routes=%d", len(directory.routes))
        self.on_change(directory)
        return True

    def _read_if_changed(self) -> str | None:
        """Runs in a worker thread; touches nothing but the file and the stamp, which one refresh at a time uses."""
        with self._path.open(encoding="utf-8") as file:
            stamp = _stamp(os.fstat(file.fileno()))
            if stamp == self._stamp:
                return None
            text = file.read()
        self._stamp = stamp
        return text

    def _complain(self, words: str) -> None:
        """Log each distinct problem once, not at every poll."""
        if words != self._complaint:
            self._complaint = words
            _log.warning("Routing table unusable; the last good one stays in force. problem=%s", words)


def _stamp(stat: os.stat_result) -> Stamp:
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
