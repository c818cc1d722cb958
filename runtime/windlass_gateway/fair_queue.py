"""Share places for running requests among tenants by weight, when there are fewer than are asked for. Pure.

A place that frees goes to the waiting tenant that runs least for its weight; of several that are equal, to the one
whose first request waits longest. Requests of one tenant go in their order. So

- no place is idle while anybody waits;
- a tenant with nothing running gets a place after at most as many departures as there are tenants like it before it;
- tenants that always want more settle at their weighted parts, however long their requests take.

Taking turns (deficit round robin) is not enough here: a place is held for as long as a stream lasts, so equal numbers
of starts would leave most places to whoever has the longest streams.

Waiting room is bounded and shared as other memory is (`fair_share`): a tenant may wait as often as it leaves room.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
from typing import Generic, TypeVar

from windlass_gateway.fair_share import SharedSpace

W = TypeVar("W")
"""What stands for a waiting request; compared by identity."""


class Verdict(enum.Enum):
    """What becomes of a request."""

    RUNS = enum.auto()
    WAITS = enum.auto()
    NO_ROOM = enum.auto()
    """Nor is there room to wait."""


@dataclasses.dataclass(slots=True)
class _Tenant(Generic[W]):
    weight: int = 1
    running: int = 0
    line: collections.deque[tuple[int, W]] = dataclasses.field(default_factory=collections.deque)
    """Arrival number and request, oldest first."""


class FairQueue(Generic[W]):
    """Who runs and who waits. Used from one event loop only."""

    def __init__(self, places: int, waiting_places: int) -> None:
        self._places = places
        self._room = SharedSpace(waiting_places)
        self._tenants: dict[str, _Tenant[W]] = {}
        self._waiting: set[str] = set()
        """Tenants with a line."""
        self._arrivals = 0
        self.running = 0
        """Sum over all tenants."""

    def ask(self, tenant: str, weight: int, request: W) -> Verdict:
        """Let a request run or wait. One that runs ends with `leave`; one that waits is returned by somebody's `leave`,
        or ends with `give_up`.
        """
        if self.running < self._places:
            self._start(self._tenant(tenant, weight))
            return Verdict.RUNS
        if not self._room.take(tenant, 1):
            return Verdict.NO_ROOM
        self._arrivals += 1
        self._tenant(tenant, weight).line.append((self._arrivals, request))
        self._waiting.add(tenant)
        return Verdict.WAITS

    def leave(self, tenant: str) -> W | None:
        """A request that ran has ended; return the waiting one that runs in its place."""
        self.running -= 1
        self._tenants[tenant].running -= 1
        chosen = min(self._waiting, key=self._standing, default=None)
        found = None
        if chosen is not None:
            record = self._tenants[chosen]
            _, found = record.line.popleft()
            self._start(record)
            self._one_less_waits(chosen)
        self._forget(tenant)
        return found

    def give_up(self, tenant: str, request: W) -> None:
        """A waiting request is gone."""
        record = self._tenants[tenant]
        record.line = collections.deque(item for item in record.line if item[1] is not request)
        self._one_less_waits(tenant)
        self._forget(tenant)

    def waiting(self, tenant: str) -> int:
        """How many requests of a tenant wait."""
        return self._room.held_by(tenant)

    def running_of(self, tenant: str) -> int:
        """How many requests of a tenant run."""
        record = self._tenants.get(tenant)
        return 0 if record is None else record.running

    def check(self) -> None:
        """Assert the invariants; for tests."""
        self._room.check()
        assert self.running == sum(record.running for record in self._tenants.values()) <= self._places
        assert not self._waiting or self.running == self._places, "a place is idle while somebody waits"
        assert self._waiting == {name for name, record in self._tenants.items() if record.line}
        assert all(len(record.line) == self.waiting(name) for name, record in self._tenants.items())
        assert all(record.running or record.line for record in self._tenants.values()), "nobody idle is remembered"

    def _tenant(self, name: str, weight: int) -> _Tenant[W]:
        record = self._tenants.setdefault(name, _Tenant())
        record.weight = weight
        return record

    def _start(self, record: _Tenant[W]) -> None:
        record.running += 1
        self.running += 1

    def _standing(self, name: str) -> tuple[float, int]:
        record = self._tenants[name]
        return record.running / record.weight, record.line[0][0]

    def _one_less_waits(self, name: str) -> None:
        self._room.give_back(name, 1)
        if not self._tenants[name].line:
            self._waiting.discard(name)

    def _forget(self, name: str) -> None:
        record = self._tenants[name]
        if not record.running and not record.line:
            del self._tenants[name]
