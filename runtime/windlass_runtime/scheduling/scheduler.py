"""Decide what the next engine step computes: iteration-level batching, chunked prefill, fairness between tenants.

Called by `loop` in turns of `plan_step`, compute, `apply_tokens`. Pure: no clock, no tensors.

Each step has a budget of tokens. Decoding sequences get one token each first, so running streams never stall behind a
long prompt. What is left goes to prompts, in rounds of `fair_share`: of the tenants that are due, first the one whose
next prompt has most in the cache, then the one served least; within a tenant by priority, deadline and arrival. Its
line is never overtaken. A due tenant whose next sequence finds no room keeps those out that have had their share.

`room` says who gives way when places or pages run out. The tokens of a preempted sequence are kept and what is lost of
their pages recomputed. No sequence may need more pages than there are, so somebody always advances.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from windlass_runtime import errors
from windlass_runtime.kv.pages import PagePool
from windlass_runtime.scheduling import fair_share
from windlass_runtime.scheduling.plan import Draft, Finished, PlannedRow, StepPlan
from windlass_runtime.scheduling.prefixes import Prefixes
from windlass_runtime.scheduling.room import Room
from windlass_runtime.scheduling.roster import Roster, Tenant
from windlass_runtime.scheduling.sequence import Rank, Sequence
from windlass_runtime.scheduling.view import SchedulerView, describe

_ROUND_STEPS = 64
"""Full steps in a quantum. A tenant that asks seldom may have so much at once before it shares with those that ask
always; less would let its bursts wait behind a flood, more would let a burst hold up the others for longer."""
_SERVED_SHARE = 4
"""While a due tenant has more to compute than fits, the others decode with this part of the budget at most."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one engine step and of one sequence."""

    step_tokens: int
    """Most tokens computed in one step, over all rows."""
    max_running: int
    """Most sequences that compute at once."""
    page_tokens: int
    max_sequence_tokens: int
    """Prompt plus output; at most what the page pool holds."""
    assumed_output_tokens: int = 128
    """Length of an answer of a tenant of which none has ended yet."""
    quantum_tokens: int = 0
    """Work that a round of fair sharing grants a tenant of weight 1, in prompt tokens; 0 means that of 64 steps."""
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Shares of tenants relative to each other; 1 for those not named."""
    prompts_only: bool = False
    """Whether only pages of prompts may be shared; see `Prefixes`."""


class Scheduler:
    """Owns the page pool and every sequence between `submit` and its end."""

    def __init__(self, limits: Limits, pages: PagePool, scope_of: Callable[[str], bytes] | None = None) -> None:
        """scope_of: see `Prefixes`."""
        capacity = pages.page_count * limits.page_tokens
        if limits.max_running < 1 or limits.step_tokens < 1 or limits.page_tokens < 1:
            raise ValueError(f"limits: expected positive numbers, found {limits}")
        self.max_sequence_tokens = min(limits.max_sequence_tokens, capacity)
        # One token per running sequence must fit into a step, or the last of them would never decode.
        self.max_running = min(limits.max_running, limits.step_tokens)
        self._limits = limits
        quantum = limits.quantum_tokens or _ROUND_STEPS * limits.step_tokens
        self._shares = fair_share.FairShare(quantum, limits.weights)
        self._prefixes = Prefixes(pages, limits.page_tokens, scope_of, limits.prompts_only)
        self.roster = Roster(
            pages,
            limits.page_tokens,
            self._shares,
            places=self.max_running,
            prefixes=self._prefixes,
            assumed_output_tokens=limits.assumed_output_tokens,
        )
        self._room = Room(self.roster, self.max_running)

    @property
    def running_count(self) -> int:
        return len(self.roster.running)

    @property
    def waiting_count(self) -> int:
        return self.roster.waiting_count

    @property
    def has_work(self) -> bool:
        return bool(self.roster.tenants)

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds."""
        return self.roster.pool.free_count

    def submit(self, sequence: Sequence) -> None:
        """Put a sequence in line. Raises PromptTooLong when it could never fit."""
        if sequence.max_tokens > self.max_sequence_tokens:
            raise errors.PromptTooLong(
                f"sequence {sequence.sequence_id}: expected at most {self.max_sequence_tokens} tokens for prompt and "
                f"output, found {sequence.prompt_tokens} + {sequence.max_tokens - sequence.prompt_tokens}"
            )
        if sequence.sequence_id in self.roster:
            raise ValueError(f"sequence {sequence.sequence_id}: expected a new id, found it in use")
        self.roster.enter(sequence)

    def drop(self, sequence_id: str) -> Sequence | None:
        """End a sequence now, in whatever state, and free its pages; None when it is not here (any more)."""
        return self.roster.remove(sequence_id)

    def plan_step(self) -> StepPlan:
        """Choose the rows of the next step and give them pages. Empty only when there is no work at all."""
        draft = Draft(self._limits.step_tokens)
        self._room.begin_plan()
        self._plan_decoding(draft)
        self._plan_prompts(draft)
        running = self.roster.running
        rows = tuple([_build_row(running[name], count) for name, count in draft.shares.items()])
        return StepPlan(rows, tuple(draft.admitted), tuple(draft.preempted))

    def apply_tokens(self, plan: StepPlan, tokens: Mapping[str, int]) -> tuple[Finished, ...]:
        """Record a computed step: `tokens` has the sampled token of every row with `samples`.

        Rows whose sequence was dropped meanwhile are ignored. Ended sequences leave and their pages are free at once.
        """
        finished = []
        running, tenants = self.roster.running, self.roster.tenants
        for row in plan.rows:
            sequence = running.get(row.sequence_id)
            if sequence is None:
                continue
            before = sequence.computed
            sequence.computed += len(row.token_ids)
            self._prefixes.publish(sequence, before)
            if not row.samples:
                continue
            sequence.tokens.append(tokens[row.sequence_id])
            tenant = tenants[sequence.tenant]
            tenant.account.charge(fair_share.GENERATED_TOKEN)
            reason = sequence.finish_reason()
            if reason is not None:
                tenant.forecast.record(len(sequence.tokens) - sequence.prompt_tokens)
                self.roster.remove(row.sequence_id)
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
        for sequence in sorted(sequences, key=lambda sequence: sequence.rank[-1]):
            moved.submit(sequence)
        return moved

    def describe(self) -> SchedulerView:
        """What operators may see of the present state."""
        return describe(self.roster, self._shares)

    def check(self) -> None:
        """Assert the invariants; for tests."""
        self.roster.check()
        assert len(self.roster.running) <= self.max_running, "more sequences run than allowed"

    def _plan_decoding(self, draft: Draft) -> None:
        """One token for every sequence that needs no more."""
        page_tokens, running = self._limits.page_tokens, self.roster.running
        decoding = []
        for sequence in running.values():
            if len(sequence.tokens) - sequence.computed == 1:
                decoding.append(sequence)
            else:
                draft.open.setdefault(sequence.tenant, []).append(sequence)
        if len(self.roster.tenants) > 1:
            decoding = self._hold_back(decoding, draft)
        for sequence in decoding:
            if sequence.sequence_id not in running:
                continue  # parked a moment ago to make room for another
            tokens = len(sequence.tokens)
            if len(sequence.page_table) * page_tokens >= tokens or self._grow(sequence, tokens, draft):
                draft.add(sequence, 1)
        for prompts in draft.open.values():
            prompts.sort(key=_rank, reverse=True)

    def _hold_back(self, decoding: list[Sequence], draft: Draft) -> list[Sequence]:
        """Let those that have had their share decode a part only, while a tenant that is due has prompts to compute.

        Who has had more than its share by a whole step decodes nothing meanwhile.
        """
        over = {
            tenant.name: tenant.account.served - self._shares.line
            for tenant in self.roster.tenants.values()
            if not self._shares.is_due(tenant.account)
        }
        if not any(
            len(tenant.waiting) or tenant.name in draft.open
            for tenant in self.roster.tenants.values()
            if tenant.name not in over
        ):
            return decoding
        allowed = self._limits.step_tokens // _SERVED_SHARE
        chosen = []
        for sequence in decoding:
            if sequence.tenant in over:
                if allowed == 0 or over[sequence.tenant] > self._limits.step_tokens:
                    draft.open.setdefault(sequence.tenant, []).append(sequence)
                    continue
                allowed -= 1
            chosen.append(sequence)
        return chosen

    def _plan_prompts(self, draft: Draft) -> None:
        """Spend the rest of the budget on prompts, tenant by tenant, in rounds."""
        wanting = [
            tenant for tenant in self.roster.tenants.values() if len(tenant.waiting) or tenant.name in draft.open
        ]
        blocked = False
        while draft.budget > 0 and wanting:
            due = [tenant for tenant in wanting if self._shares.is_due(tenant.account)]
            if not due and not blocked:
                self._shares.next_round([tenant.account for tenant in wanting])
                continue
            tenant = due[0] if len(due) == 1 else min(due or wanting, key=lambda tenant: self._turn(tenant, draft))
            # Alone it may take all at once; among others a grant ends with its share of the round.
            most = draft.budget if len(wanting) == 1 or not due else self._tokens_left(tenant)
            if self._continue_prompt(tenant, most, draft):
                continue
            # Where one that is due finds no room, those whose turn would only come after it are kept out.
            if draft.squeezed or (blocked and not due) or not self._admit(tenant, draft):
                blocked = blocked or len(tenant.waiting) > 0
                wanting.remove(tenant)

    def _turn(self, tenant: Tenant, draft: Draft) -> tuple[float, ...]:
        """Order among tenants: the least served first, by whole steps; within one, who has most in the cache."""
        served = tenant.account.served
        if begun := draft.open.get(tenant.name):
            found = begun[-1].cached_tokens // self._limits.page_tokens
        else:
            head = tenant.waiting.peek()
            found = 0 if head is None or head.page_table else self._prefixes.found_pages(head)
        return served // self._limits.step_tokens, -found, served

    def _admit(self, tenant: Tenant, draft: Draft) -> bool:
        """Start the first of the tenant's line; False when nobody waits or there is no room."""
        head = tenant.waiting.peek()
        parked = None if head is None else self._room.admit(head)
        if head is None or parked is None:
            return False
        draft.forget(parked)
        draft.admitted.append(head.sequence_id)
        draft.open.setdefault(tenant.name, []).append(head)
        return True

    def _tokens_left(self, tenant: Tenant) -> int:
        """Prompt tokens until the tenant has had its share of the round."""
        left = (self._shares.line - tenant.account.served) * tenant.account.weight / fair_share.PROMPT_TOKEN
        return max(1, int(left))

    def _continue_prompt(self, tenant: Tenant, most: int, draft: Draft) -> bool:
        """Give up to `most` tokens of the budget to the tenant's first prompt that runs; False when there is none."""
        prompts = draft.open.get(tenant.name)
        if not prompts:
            return False
        sequence = prompts[-1]
        share = min(draft.left(sequence), most, draft.budget)
        end = sequence.computed + draft.shares.get(sequence.sequence_id, 0) + share
        if self._grow(sequence, end, draft):
            draft.add(sequence, share)
            self._charge_prompt(tenant, sequence, end)
            if draft.left(sequence) == 0:
                prompts.pop()
        return True

    def _charge_prompt(self, tenant: Tenant, sequence: Sequence, end: int) -> None:
        new = min(end, sequence.prompt_tokens) - sequence.charged
        if new > 0:
            sequence.charged += new
            tenant.account.charge(new * fair_share.PROMPT_TOKEN)

    def _grow(self, sequence: Sequence, tokens: int, draft: Draft) -> bool:
        grown, preempted = self._room.grow(sequence, tokens)
        if preempted:
            draft.squeezed = True
            draft.forget(preempted)
        return grown


def _rank(sequence: Sequence) -> Rank:
    return sequence.rank


def _build_row(sequence: Sequence, count: int) -> PlannedRow:
    start, end = sequence.computed, sequence.computed + count
    return PlannedRow(
        sequence.sequence_id,
        tuple(sequence.tokens[start:end]),
        start,
        sequence.page_table,
        sequence.lane,
        sequence.cached_tokens,
        end == len(sequence.tokens),
    )
