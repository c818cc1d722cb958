"""One sequence on its way through the scheduler: its tokens, the pages it holds, how far it is computed."""

from __future__ import annotations

import dataclasses
import enum
import math

Rank = tuple[int, float, int]
"""Order among the sequences of one tenant, first to run first: priority, deadline, arrival."""


class FinishReason(enum.StrEnum):
    """Why a sequence ended by itself; the values are those of the OpenAI API."""

    STOP = "stop"
    LENGTH = "length"


@dataclasses.dataclass(slots=True, eq=False)
class Sequence:
    """Mutable; changed by the scheduling package alone once submitted.

    A sequence is decoding when exactly one of its tokens is not computed, and prefilling while more are missing.
    """

    sequence_id: str
    tokens: list[int]
    """Prompt, then generated tokens."""
    max_tokens: int
    """Ends with LENGTH when prompt and output together reach this many tokens."""
    stop_token_ids: frozenset[int] = frozenset()
    """Ends with STOP once one of these was generated; it stays the last of `tokens`."""
    tenant: str = ""
    priority: int = 0
    """Lower runs first, among the tenant's own sequences only."""
    deadline_s: float = math.inf
    """When the first token is wanted; orders sequences of one tenant and priority."""
    prompt_tokens: int = dataclasses.field(init=False)
    computed: int = dataclasses.field(init=False, default=0)
    """Leading tokens whose keys and values are in `page_table`."""
    charged: int = dataclasses.field(init=False, default=0)
    """Leading prompt tokens that the tenant has paid for; recomputing them after a preemption costs it nothing."""
    cached_tokens: int = dataclasses.field(init=False, default=0)
    """Leading prompt tokens that were in the cache when the sequence first started."""
    lane: int = dataclasses.field(init=False, default=-1)
    """Place among the running; -1 while waiting."""
    page_table: tuple[int, ...] = dataclasses.field(init=False, default=())
    rank: Rank = dataclasses.field(init=False, default=(0, math.inf, -1))
    """Kept through preemption, so that an old sequence stays old."""
    preemptions: int = dataclasses.field(init=False, default=0)
    gave_way: bool = dataclasses.field(init=False, default=False)
    """Whether another tenant's newcomer has had its pages; that happens once."""

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)
        if not self.tokens:
            raise ValueError(f"sequence {self.sequence_id}: expected at least one prompt token, found none")
        if self.max_tokens <= self.prompt_tokens:
            raise ValueError(
                f"sequence {self.sequence_id}: expected room for output, found max_tokens {self.max_tokens} "
                f"for {self.prompt_tokens} prompt tokens"
            )

    def arrive(self, number: int) -> None:
        """Take a place in the order of arrival."""
        self.rank = (self.priority, self.deadline_s, number)

    @property
    def missing(self) -> int:
        """Tokens still to compute before the next one can be sampled."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    def finish_reason(self) -> FinishReason | None:
        """Whether the sequence has ended, judged by its last token."""
        if len(self.tokens) == self.prompt_tokens:
            return None
        if self.tokens[-1] in self.stop_token_ids:
            return FinishReason.STOP
        if len(self.tokens) >= self.max_tokens:
            return FinishReason.LENGTH
        return None
