"""Decide what the next engine step computes: iteration-level batching with chunked prefill.

Called by `loop` in turns of `plan_step`, compute, `apply_tokens`. Pure: no clock, no tensors, no tenants' identities.

Each step has a budget of tokens. Decoding sequences get one token each first, so running streams never stall behind a
long prompt; what is left of the budget goes to prompt chunks, oldest first; then waiting sequences are admitted. When
pages run out, the youngest running sequence gives its pages back and waits again; its tokens are kept and recomputed.
The oldest sequence can always take every page, and no sequence may need more than the pool has, so somebody always
advances.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from windlass_runtime import errors
from windlass_runtime.kv.pages import PagePool
from windlass_runtime.scheduling.arrival_order import ArrivalOrder
from windlass_runtime.scheduling.prefixes import Prefixes
from windlass_runtime.scheduling.sequence import FinishReason, Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one engine step and of one sequence."""

    step_tokens: int
    """Most tokens computed in one step, over all rows."""
    max_running: int
    """Most sequences that hold pages at once."""
    page_tokens: int
    max_sequence_tokens: int
    """Prompt plus output; at most what the page pool holds."""


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedRow:
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


class Scheduler:
    """Owns the page pool and every sequence between `submit` and its end."""

    def __init__(self, limits: Limits, pages: PagePool, scope_of: Callable[[str], bytes] | None = None) -> None:
        """scope_of: see `Prefixes`."""
        capacity = pages.page_count * limits.page_tokens
        if limits.max_running < 1 or limits.step_tokens < 1 or limits.page_tokens < 1:
            raise ValueError(f"limits: expected positive numbers, found {limits}")
        self.max_sequence_tokens = min(limits.max_sequence_tokens, capacity)
        # One token per running sequence must fit into a step, or the youngest would never decode.
        self.max_running = min(limits.max_running, limits.step_tokens)
        self._limits = limits
        self._pages = pages
        self._prefixes = Prefixes(pages, limits.page_tokens, scope_of)
        self._lanes = list(range(self.max_running - 1, -1, -1))
        self._waiting = ArrivalOrder()
        self._running: dict[str, Sequence] = {}
        self._arrivals = 0

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._running) or len(self._waiting) > 0

    @property
    def free_pages(self) -> int:
        return self._pages.free_count

    def submit(self, sequence: Sequence) -> None:
        """Put a sequence in line. Raises PromptTooLong when it could never fit."""
        if sequence.max_tokens > self.max_sequence_tokens:
            raise errors.PromptTooLong(
                f"sequence {sequence.sequence_id}: expected at most {self.max_sequence_tokens} tokens for prompt and "
                f"output, found {sequence.prompt_tokens} + {sequence.max_tokens - sequence.prompt_tokens}"
            )
        if sequence.sequence_id in self._running or sequence.sequence_id in self._waiting:
            raise ValueError(f"sequence {sequence.sequence_id}: expected a new id, found it in use")
        sequence.arrival = self._arrivals
        self._arrivals += 1
        self._waiting.add(sequence)

    def drop(self, sequence_id: str) -> Sequence | None:
        """End a sequence now, in whatever state, and free its pages; None when it is not here (any more)."""
        sequence = self._running.pop(sequence_id, None)
        if sequence is None:
            sequence = self._waiting.remove(sequence_id)
        else:
            self._release(sequence)
        if sequence is not None:
            self._prefixes.forget(sequence)
        return sequence

    def plan_step(self) -> StepPlan:
        """Choose the rows of the next step and give them pages. Empty only when there is no work at all."""
        plan = _Draft(self._limits.step_tokens)
        for sequence in self._running_by_need():
            if sequence.sequence_id in self._running:  # an older one may have taken its pages meanwhile
                self._plan_running(sequence, plan)
        if not plan.preempted:
            self._admit(plan)
        rows = tuple(self._row(self._running[name], count) for name, count in plan.shares.items())
        return StepPlan(rows, admitted=tuple(plan.admitted), preempted=tuple(plan.preempted))

    def apply_tokens(self, plan: StepPlan, tokens: Mapping[str, int]) -> tuple[Finished, ...]:
        """Record a computed step: `tokens` has the sampled token of every row with `samples`.

        Rows whose sequence was dropped meanwhile are ignored. Ended sequences leave and their pages are free at once.
        """
        finished = []
        for row in plan.rows:
            sequence = self._running.get(row.sequence_id)
            if sequence is None:
                continue
            before = sequence.computed
            sequence.computed += len(row.token_ids)
            self._prefixes.publish(sequence, before)
            if not row.samples:
                continue
            sequence.tokens.append(tokens[row.sequence_id])
            reason = sequence.finish_reason()
            if reason is not None:
                self.drop(row.sequence_id)
                finished.append(Finished(sequence, reason))
        return tuple(finished)

    def moved_to(self, pages: PagePool, page_tokens: int, sequence_ids: Iterable[str]) -> Scheduler:
        """A scheduler over another, empty pool with these sequences of ours; they keep their tokens and compute anew.

        Raises ValueError when the pool is too small for the sequences that this one takes.
        """
        moved = Scheduler(dataclasses.replace(self._limits, page_tokens=page_tokens), pages, self._prefixes.scope_of)
        if moved.max_sequence_tokens < self.max_sequence_tokens:
            raise ValueError(
                f"page pool: expected room for a sequence of {self.max_sequence_tokens} tokens, "
                f"found {moved.max_sequence_tokens}"
            )
        sequences = [sequence for name in sequence_ids if (sequence := self.drop(name)) is not None]
        for sequence in sorted(sequences, key=lambda sequence: sequence.arrival):
            moved.submit(sequence)
        return moved

    def check(self) -> None:
        """Assert the invariants; for tests."""
        self._pages.check()
        assert len(self._running) <= self.max_running, "more sequences run than allowed"
        assert not any(name in self._waiting for name in self._running), "a sequence runs and waits"
        assert all(not sequence.page_table for sequence in self._waiting), "a waiting sequence holds pages"
        held = [page for sequence in self._running.values() for page in sequence.page_table]
        for sequence in self._running.values():
            for page in sequence.page_table[sequence.computed // self._limits.page_tokens :]:
                assert held.count(page) == 1, "two sequences hold one unfinished page"
        assert len(set(held)) + self._pages.free_count == self._pages.page_count, "a page leaked"
        lanes = [sequence.lane for sequence in self._running.values()]
        assert sorted(lanes + self._lanes) == list(range(self.max_running)), "a lane is shared or lost"
        for sequence in self._running.values():
            assert 0 <= sequence.computed < len(sequence.tokens), "a running sequence has nothing to compute"
            assert len(sequence.page_table) >= self._pages_for(sequence.computed), "computed tokens without a page"

    def _running_by_need(self) -> list[Sequence]:
        """Decoding before prefilling, each oldest first."""
        return sorted(self._running.values(), key=lambda sequence: (sequence.missing > 1, sequence.arrival))

    def _plan_running(self, sequence: Sequence, plan: _Draft) -> None:
        share = min(sequence.missing, plan.budget)
        if share > 0 and self._make_room(sequence, sequence.computed + share, plan):
            plan.add(sequence.sequence_id, share)

    def _make_room(self, sequence: Sequence, tokens: int, plan: _Draft) -> bool:
        """Grow a page table to `tokens`, preempting the youngest while pages lack; False if that was itself."""
        lacking = self._pages_for(tokens) - len(sequence.page_table)
        while lacking > self._pages.free_count:
            victim = max(self._running.values(), key=lambda candidate: candidate.arrival)
            self._preempt(victim, plan)
            if victim is sequence:
                return False
        if lacking > 0:
            sequence.page_table += self._pages.allocate(lacking, sequence.tenant)
        return True

    def _preempt(self, victim: Sequence, plan: _Draft) -> None:
        del self._running[victim.sequence_id]
        self._release(victim)
        victim.preemptions += 1
        self._waiting.add(victim)
        plan.remove(victim.sequence_id)
        plan.preempted.append(victim.sequence_id)

    def _admit(self, plan: _Draft) -> None:
        """Let waiting sequences in while budget, places and pages last. The line is never overtaken."""
        while plan.budget > 0 and len(self._running) < self.max_running:
            candidate = self._waiting.peek()
            if candidate is None or not self._has_pages_for(candidate):
                return
            self._waiting.remove(candidate.sequence_id)
            self._running[candidate.sequence_id] = candidate
            candidate.lane = self._lanes.pop()
            self._prefixes.begin(candidate)
            plan.admitted.append(candidate.sequence_id)
            self._plan_running(candidate, plan)

    def _has_pages_for(self, candidate: Sequence) -> bool:
        """Whether a newcomer fits beside what the running ones are sure to need.

        The page kept per running sequence lets each cross its next page border; without it a newcomer would be
        preempted soon after, its prefill wasted.
        """
        if not self._running:
            return True
        promised = sum(
            max(0, self._pages_for(len(sequence.tokens)) - len(sequence.page_table))
            for sequence in self._running.values()
        )
        kept = promised + len(self._running)
        return self._pages_for(len(candidate.tokens) + 1) + kept <= self._pages.free_count

    def _row(self, sequence: Sequence, count: int) -> PlannedRow:
        end = sequence.computed + count
        return PlannedRow(
            sequence_id=sequence.sequence_id,
            token_ids=tuple(sequence.tokens[sequence.computed : end]),
            start=sequence.computed,
            page_table=sequence.page_table,
            lane=sequence.lane,
            cached_tokens=sequence.cached_tokens,
            samples=end == len(sequence.tokens),
        )

    def _release(self, sequence: Sequence) -> None:
        self._pages.release(sequence.page_table)
        sequence.page_table = ()
        sequence.computed = 0
        self._lanes.append(sequence.lane)
        sequence.lane = -1

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self._limits.page_tokens)


class _Draft:
    """A plan in the making: tokens per sequence, within the budget."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.shares: dict[str, int] = {}
        self.admitted: list[str] = []
        self.preempted: list[str] = []

    def add(self, sequence_id: str, tokens: int) -> None:
        self.shares[sequence_id] = tokens
        self.budget -= tokens

    def remove(self, sequence_id: str) -> None:
        self.budget += self.shares.pop(sequence_id, 0)
