"""Services that may sleep: count what they are asked for, and hold requests until they are awake. Connects `holding`,
`peaks` and `upstream`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from windlass_contract.endpoints import Route
from windlass_gateway import answers
from windlass_gateway.holding import HoldingRoom, may_go_on
from windlass_gateway.peaks import Peaks
from windlass_gateway.routes import RouteSource
from windlass_gateway.tenants import Directory
from windlass_gateway.upstream import BusyAnswer, Call, Part, Reply, Upstream

_ASLEEP: Final = (answers.NO_REPLICAS, answers.UNREACHABLE)
"""Refusals that a service which has just gone to sleep, or has just been woken, gives for a moment."""


class Sleepers:
    """One per gateway, used from its event loop only."""

    def __init__(self, routes: RouteSource, upstream: Upstream) -> None:
        self._routes, self._upstream = routes, upstream
        self.room, self._peaks = HoldingRoom(), Peaks()

    def adopt(self, directory: Directory) -> None:
        """Go by a new table."""
        self.room.let_go(directory.routes)
        self._peaks.keep_only(directory.routes.keys())

    def close(self) -> None:
        """Hold nobody any more."""
        self.room.close()

    def count(self, route: Route) -> AbstractContextManager[None]:
        """Count a request while the block runs; services that never sleep are not counted."""
        if route.hold_s <= 0:
            return nullcontext()
        return self._peaks.count((route.namespace, route.service), _now_s())

    def readings(self, routes: Iterable[Route]) -> Iterator[tuple[Route, int, int]]:
        """Yield each service that may sleep, with the requests that are held and the peak of the last minute."""
        for route in routes:
            if route.hold_s > 0:
                yield route, self.room.waiting(route), self._peaks.peak((route.namespace, route.service), _now_s())

    async def send(self, route: Route, call: Call, part: Part) -> Reply | BusyAnswer:
        """Send a call, after waiting for a replica where the service sleeps. Raises Refused."""
        if route.hold_s <= 0:
            return await self._upstream.send(route, call, part)
        deadline_s = _now_s() + route.hold_s
        while True:
            if not may_go_on(self._routes.newest(route)):
                await self.room.wait(route, deadline_s)
            try:
                return await self._upstream.send(route, call, part)
            except answers.Refused as exc:
                if exc.problem not in _ASLEEP or part.only or _now_s() >= deadline_s:
                    raise
            await self.room.look_again(deadline_s)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
