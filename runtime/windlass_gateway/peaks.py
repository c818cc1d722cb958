"""How many requests a service had at once lately: what keeps it awake, and how many replicas wake it.

Autoscalers look every few seconds. A short request between two looks must not be overlooked, so the peak of the last
minute counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

RouteKey = tuple[str, str]

SLOT_S: Final = 30.0
"""Half of the time that is remembered: the slot that is filled and the one before it."""


@dataclasses.dataclass(slots=True)
class _Count:
    now: int = 0
    peak: int = 0
    peak_before: int = 0
    slot: int = 0


class Peaks:
    """Requests per service. Used from one event loop only; the time is an argument."""

    def __init__(self) -> None:
        self._counts: dict[RouteKey, _Count] = {}

    @contextmanager
    def count(self, key: RouteKey, now_s: float) -> Iterator[None]:
        """Count one request while the block runs."""
        count = self._counts.setdefault(key, _Count(slot=_slot(now_s)))
        _turn(count, now_s)
        count.now += 1
        count.peak = max(count.peak, count.now)
        try:
            yield
        finally:
            count.now -= 1

    def peak(self, key: RouteKey, now_s: float) -> int:
        """Most requests at once within the last 30 to 60 seconds."""
        count = self._counts.get(key)
        if count is None:
            return 0
        _turn(count, now_s)
        return max(count.peak, count.peak_before)

    def keep_only(self, keys: Collection[RouteKey]) -> None:
        """Forget services that left the routing table, once nothing runs for them."""
        self._counts = {key: count for key, count in self._counts.items() if key in keys or count.now}


def _slot(now_s: float) -> int:
    return int(now_s // SLOT_S)


def _turn(count: _Count, now_s: float) -> None:
    """Move on to the slot of now: what still runs is the peak it begins with."""
    passed = _slot(now_s) - count.slot
    if passed <= 0:
        return
    count.peak_before = count.peak if passed == 1 else count.now
    count.peak, count.slot = count.now, _slot(now_s)
