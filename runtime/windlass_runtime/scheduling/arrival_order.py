"""Who is next to run: first come, first served. The place where tenant fairness replaces one class.

The scheduler asks for the next candidate, takes it, returns preempted sequences and drops cancelled ones; it knows
nothing of the order itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from windlass_runtime.scheduling.sequence import Sequence


class ArrivalOrder:
    """Waiting sequences, oldest first. A preempted sequence keeps its arrival number and thus its place."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        self._waiting: dict[str, Sequence] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting.values())

    def __contains__(self, sequence_id: object) -> bool:
        return sequence_id in self._waiting

    def add(self, sequence: Sequence) -> None:
        self._waiting[sequence.sequence_id] = sequence
        heapq.heappush(self._heap, (sequence.arrival, sequence.sequence_id))

    def peek(self) -> Sequence | None:
        """The next candidate; None when nobody waits. It stays in line."""
        # A removed sequence leaves its heap entry behind; entries are dropped when they surface.
        while self._heap:
            sequence = self._waiting.get(self._heap[0][1])
            if sequence is not None and sequence.arrival == self._heap[0][0]:
                return sequence
            heapq.heappop(self._heap)
        return None

    def remove(self, sequence_id: str) -> Sequence | None:
        """Take a sequence out of the line; None when it is not there."""
        return self._waiting.pop(sequence_id, None)
