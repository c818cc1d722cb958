"""Decide what becomes of one service's replica processes: which start, leave, are told to drain, are killed. Pure.

The life of a replica:

    starting <-> ready -> leaving -> draining -> gone
                    out of the routing table   SIGTERM   SIGKILL after the drain timeout

A new revision replaces the old one as a Deployment's rolling update does: within `surge` and `unavailable`.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Sequence
from typing import Final

FIRST_BACKOFF_S: Final = 0.5
LONGEST_BACKOFF_S: Final = 30.0
STEADY_S: Final = 60.0
"""A replica that was ready for this long has proved its revision: its end starts the back-off from the beginning."""


class Phase(enum.StrEnum):
    """Where a replica stands."""

    STARTING = "Starting"
    """Alive and not ready: loading, or failing its readiness probe."""
    READY = "Ready"
    LEAVING = "Leaving"
    """Out of the routing table, but not told yet: requests that were on their way still get in."""
    DRAINING = "Draining"
    """Told to finish what it runs."""


LIVE: Final = frozenset({Phase.STARTING, Phase.READY})


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """How many processes of which revision, and how they may be replaced."""

    replicas: int
    revision: str
    surge: int = 1
    """Live replicas allowed above `replicas` while an old revision is being replaced."""
    unavailable: int = 0
    """Ready replicas that may be missing meanwhile."""
    drain_timeout_s: float = 60.0
    startup_timeout_s: float = 1800.0


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """One replica process."""

    name: str
    revision: str
    phase: Phase
    since_s: float
    """When it entered the phase."""


@dataclasses.dataclass(frozen=True, slots=True)
class Crashes:
    """Ends that nobody asked for, of the wanted revision."""

    in_a_row: int = 0
    last_s: float = 0.0

    def after(self, now_s: float, ready_for_s: float) -> Crashes:
        """Count one more end of a replica that had been ready for `ready_for_s`."""
        return Crashes(1 if ready_for_s >= STEADY_S else self.in_a_row + 1, now_s)

    @property
    def next_start_s(self) -> float:
        """When the next start is due."""
        if not self.in_a_row:
            return self.last_s
        return self.last_s + min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(self.in_a_row - 1, 16))


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessPlan:
    """What to do now. The name lists are disjoint."""

    start: int = 0
    leave: tuple[str, ...] = ()
    terminate: tuple[str, ...] = ()
    kill: tuple[str, ...] = ()
    wake_s: float | None = None
    """When to plan again even if nothing happens; None: only when something does."""


def plan_processes(
    wanted: Wanted, processes: Sequence[Process], crashes: Crashes, now_s: float, notice_s: float = 0.3
) -> ProcessPlan:
    """Decide the next step. `notice_s`: time between leaving the routing table and SIGTERM."""
    goodbyes = _choose_goodbyes(wanted, processes)
    overdue = [item.name for item in processes if _kill_s(item, wanted) <= now_s]
    goodbyes = [item for item in goodbyes if item.name not in overdue]
    leave = [item.name for item in goodbyes if item.phase is Phase.READY]
    # A replica that never was ready is in no routing table, so it needs no notice.
    terminate = [item.name for item in goodbyes if item.phase is Phase.STARTING]
    terminate += [item.name for item in processes if item.phase is Phase.LEAVING and item.since_s + notice_s <= now_s]
    missing = _count_starts(wanted, processes, gone=len(goodbyes))
    start = missing if crashes.next_start_s <= now_s else 0
    due = [_kill_s(item, wanted) for item in processes if item.name not in overdue]
    due += [item.since_s + notice_s for item in processes if item.phase is Phase.LEAVING]
    due += [crashes.next_start_s] if missing else []
    return ProcessPlan(
        start,
        tuple(leave),
        tuple(terminate),
        tuple(overdue),
        min((at for at in due if now_s < at < math.inf), default=None),
    )


def _choose_goodbyes(wanted: Wanted, processes: Sequence[Process]) -> list[Process]:
    """Pick the live replicas that go now: the surplus of the wanted revision, and as much of the old as readiness
    allows.
    """
    current = [item for item in processes if item.phase in LIVE and item.revision == wanted.revision]
    old = [item for item in processes if item.phase in LIVE and item.revision != wanted.revision]
    by_worth = sorted(current, key=lambda item: (item.phase is not Phase.READY, item.since_s, item.name))
    surplus = by_worth[wanted.replicas :]
    kept_ready = sum(item.phase is Phase.READY for item in by_worth[: wanted.replicas])
    unready_old = [item for item in old if item.phase is not Phase.READY]
    ready_old = sorted((item for item in old if item.phase is Phase.READY), key=lambda item: (item.since_s, item.name))
    needed = max(0, wanted.replicas - wanted.unavailable - kept_ready)
    return surplus + unready_old + ready_old[: max(0, len(ready_old) - needed)]


def _count_starts(wanted: Wanted, processes: Sequence[Process], gone: int) -> int:
    live = [item for item in processes if item.phase in LIVE]
    current = sum(item.revision == wanted.revision for item in live)
    has_old = current < len(live)
    ceiling = wanted.replicas + (wanted.surge if has_old else 0)
    return max(0, min(wanted.replicas - current, ceiling - (len(live) - gone)))


def _kill_s(item: Process, wanted: Wanted) -> float:
    """When patience with a replica ends."""
    if item.phase is Phase.DRAINING:
        return item.since_s + wanted.drain_timeout_s
    if item.phase is Phase.STARTING:
        return item.since_s + wanted.startup_timeout_s
    return math.inf
