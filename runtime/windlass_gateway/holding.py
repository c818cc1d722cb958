"""Hold requests for a service that sleeps, until a replica runs: a bounded line per service, with a deadline.

However many wait, the service is woken once: the control plane reads how many there are. When the first replica is
there they all go on together, and picking spreads them.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Final

from windlass_contract.endpoints import Route
from windlass_gateway import answers

RouteKey = tuple[str, str]

_LOOK_AGAIN_S: Final = 0.5
"""After replicas that took no connection: the table may list them for a moment after they ended."""


@dataclasses.dataclass(slots=True)
class _Line:
    """Who waits for one service."""

    waiting: int = 0
    open: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class HoldingRoom:
    """The lines of one gateway. Used from its event loop only."""

    def __init__(self) -> None:
        self._lines: dict[RouteKey, _Line] = {}
        self._closed = False

    def waiting(self, route: Route) -> int:
        """Requests that wait for a service."""
        line = self._lines.get(_key(route))
        return 0 if line is None else line.waiting

    def let_go(self, routes: Mapping[RouteKey, Route]) -> None:
        """Let those go on whose service has a replica now, or is gone. Called with every new table."""
        for key, line in list(self._lines.items()):
            route = routes.get(key)
            if route is None or may_go_on(route):
                # Whoever comes after this moment stands in a line of its own: the replica may be gone again.
                del self._lines[key]
                line.open.set()

    def close(self) -> None:
        """Send everybody away: this gateway ends, and another one can hold them."""
        self._closed = True
        for line in self._lines.values():
            line.open.set()

    async def wait(self, route: Route, deadline_s: float) -> None:
        """Return once the service may have a replica. Raises Refused when the line is full or the time is over.

        `deadline_s`: time of the loop's clock at which waiting ends.
        """
        if self._closed:
            raise answers.Refused(answers.NO_REPLICAS)
        line = self._lines.setdefault(_key(route), _Line())
        if line.waiting >= route.max_held:
            raise answers.Refused(answers.too_many_held(route.max_held))
        line.waiting += 1
        try:
            async with asyncio.timeout_at(deadline_s):
                await line.open.wait()
        except TimeoutError as exc:
            raise answers.Refused(answers.held_too_long(route.hold_s)) from exc
        finally:
            line.waiting -= 1
            if line.waiting == 0 and self._lines.get(_key(route)) is line:
                del self._lines[_key(route)]
        if self._closed:
            raise answers.Refused(answers.NO_REPLICAS)

    async def look_again(self, deadline_s: float) -> None:
        """Give a table that lists replicas which are gone a moment to be renewed."""
        now_s = asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, min(_LOOK_AGAIN_S, deadline_s - now_s)))

    def check(self) -> None:
        """Assert the invariants; for tests."""
        assert all(line.waiting > 0 for line in self._lines.values())


def may_go_on(route: Route) -> bool:
    """Whether a request need not wait: there is a replica, of the service or of a canary, or nobody would wake one."""
    return route.hold_s <= 0 or bool(route.replicas) or any(canary.replicas for canary in route.canaries)


def _key(route: Route) -> RouteKey:
    return route.namespace, route.service
