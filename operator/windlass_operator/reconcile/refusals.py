"""Since when the pods of each service find no place. A rollout believes it only after a while, and no object tells.

Forgotten with the process: then the while begins anew.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable

from windlass_operator.domain.rollout import SETTLE_S, refused_of
from windlass_operator.domain.snapshot import Key, Snapshot


class Refusals:
    """Times by service, of those whose pods find no place now."""

    def __init__(self, wall_clock: Callable[[], datetime.datetime]) -> None:
        self._wall_clock = wall_clock
        self._since: dict[Key, datetime.datetime] = {}

    def waited_s(self, key: Key, snapshot: Snapshot) -> float:
        """Note what a snapshot says of a service; return for how long its pods have found no place."""
        workload = snapshot.workloads.get(key)
        if workload is None or not refused_of(workload):
            self._since.pop(key, None)
            return 0.0
        return self._age_s(self._since.setdefault(key, self._wall_clock()))

    def settles_in_s(self, key: Key) -> float | None:
        """Return the seconds until what was noted last is believed; None when there is nothing to wait for."""
        since = self._since.get(key)
        left_s = SETTLE_S - self._age_s(since) if since is not None else 0.0
        return left_s if left_s > 0 else None

    def forget(self, key: Key) -> None:
        """Note that a service is gone."""
        self._since.pop(key, None)

    def _age_s(self, since: datetime.datetime) -> float:
        return max(0.0, (self._wall_clock() - since).total_seconds())
