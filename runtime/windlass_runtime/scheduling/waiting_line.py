"""One tenant's waiting sequences in the order in which they run: priority, then deadline, then arrival."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from windlass_runtime.scheduling.sequence import Rank, Sequence


class WaitingLine:
    """A preempted sequence keeps its rank and thus its place."""

    def __init__(self) -> None:
        self._heap: list[tuple[Rank, str]] = []
        self._waiting: dict[str, Sequence] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting.values())

    def __contains__(self, sequence_id: object) -> bool:
        return sequence_id in self._waiting

    def add(self, sequence: Sequence) -> None:
        self._waiting[sequence.sequence_id] = sequence
        heapq.heappush(self._heap, (sequence.rank, sequence.sequence_id))

    def peek(self) -> Sequence | None:
        """The next candidate; None when nobody waits. It stays in line."""
        # A removed sequence leaves its heap entry behind; entries are dropped when they surface.
        while self._heap:
            sequence = self._waiting.get(self._heap[0][1])
            if sequence is not None and sequence.rank == self._heap[0][0]:
                return sequence
            heapq.heappop(self._heap)
        return None

    def get(self, sequence_id: str) -> Sequence | None:
        return self._waiting.get(sequence_id)

    def remove(self, sequence_id: str) -> Sequence | None:
        """Take a sequence out of the line; None when it is not there."""
        return self._waiting.pop(sequence_id, None)
