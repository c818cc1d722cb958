"""What one engine step computes, as the scheduler hands it out, and as it comes to be."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from windlass_runtime.scheduling.sequence import FinishReason, Sequence


class PlannedRow(NamedTuple):
    """One sequence's share of a step. `token_ids` follow the `start` tokens already in its pages."""

    sequence_id: str
    token_ids: tuple[int, ...]
    start: int
    page_table: tuple[int, ...]
    lane: int
    cached_tokens: int
    """Leading prompt tokens that were in the cache when the sequence first started."""
    samples: bool
    """Whether a next token is sampled after this row: true when it computes the sequence's last known token."""


@dataclasses.dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step runs, and what making room for it cost."""

    rows: tuple[PlannedRow, ...]
    admitted: tuple[str, ...] = ()
    """Sequences that left the waiting line for this step; they may come back when preempted."""
    preempted: tuple[str, ...] = ()

    @property
    def token_count(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    """A sequence that ended by itself in `apply_tokens`."""

    sequence: Sequence
    reason: FinishReason


class Draft:
    """A plan in the making: tokens per sequence, within the budget."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.shares: dict[str, int] = {}
        self.open: dict[str, list[Sequence]] = {}
        """By tenant, running sequences that could use more of the budget, first to run last."""
        self.admitted: list[str] = []
        self.preempted: list[str] = []
        self.squeezed = False
        """Whether a running sequence was parked because another one grew."""

    def add(self, sequence: Sequence, tokens: int) -> None:
        name = sequence.sequence_id
        self.shares[name] = self.shares.get(name, 0) + tokens
        self.budget -= tokens

    def left(self, sequence: Sequence) -> int:
        """Tokens that the sequence misses beyond its share."""
        return sequence.missing - self.shares.get(sequence.sequence_id, 0)

    def forget(self, victims: list[Sequence]) -> None:
        """Take back the shares of sequences that were parked meanwhile."""
        for victim in victims:
            self.budget += self.shares.pop(victim.sequence_id, 0)
            self.preempted.append(victim.sequence_id)
            waiting_for_more = self.open.get(victim.tenant, [])
            if victim in waiting_for_more:
                waiting_for_more.remove(victim)
