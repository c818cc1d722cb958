"""Bound the requests that one gateway answers at once, and let tenants in by weight when there are more. Connects
`fair_queue` to a request.

A service belongs to one tenant, so tenants do not meet in a replica. They meet here: each running request holds two
descriptors and a part of the gateway's time, and without a bound whoever opens most streams has them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from windlass_contract.endpoints import Route
from windlass_gateway import answers
from windlass_gateway.fair_queue import FairQueue, Verdict
from windlass_gateway.metrics import Metrics


class Turn:
    """A waiting request. `given` is set together with the event, so that whoever stops waiting in the same moment knows
    whether it has a place to give back.
    """

    __slots__ = ("came", "given")

    def __init__(self) -> None:
        self.given = False
        self.came = asyncio.Event()


class Entrance:
    """One per gateway, used from its event loop only."""

    def __init__(self, places: int, waiting_places: int, longest_wait_s: float, metrics: Metrics) -> None:
        self._queue: FairQueue[Turn] = FairQueue(places, waiting_places)
        self._longest_wait_s = longest_wait_s
        self._metrics = metrics

    @asynccontextmanager
    async def enter(self, route: Route) -> AsyncIterator[None]:
        """Run the block once there is a place for it. Raises Refused when waiting room or patience is used up."""
        turn = Turn()
        match self._queue.ask(route.tenant, route.weight, turn):
            case Verdict.NO_ROOM:
                raise answers.Refused(answers.OVERLOADED)
            case Verdict.WAITS:
                await self._wait(route, turn)
        try:
            yield
        finally:
            self._leave(route.tenant)

    async def _wait(self, route: Route, turn: Turn) -> None:
        with self._metrics.queued(route):
            try:
                async with asyncio.timeout(self._longest_wait_s):
                    await turn.came.wait()
            except BaseException as exc:
                if turn.given:
                    self._leave(route.tenant)
                else:
                    self._queue.give_up(route.tenant, turn)
                if isinstance(exc, TimeoutError):
                    raise answers.Refused(answers.queued_too_long(self._longest_wait_s)) from exc
                raise

    def _leave(self, tenant: str) -> None:
        turn = self._queue.leave(tenant)
        if turn is not None:
            turn.given = True
            turn.came.set()

    def check(self) -> None:
        """Assert the invariants; for tests."""
        self._queue.check()
