"""One sequence on its way through the scheduler: its tokens, the pages it holds, how far it is computed."""

from __future__ import annotations

import dataclasses
import enum


class FinishReason(enum.StrEnum):
    """Why a sequence ended by itself; the values are those of the OpenAI API."""

    STOP = "stop"
    LENGTH = "length"


@dataclasses.dataclass(slots=True, eq=False)
class Sequence:
    """Mutable; changed by Scheduler alone once submitted.

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
    prompt_tokens: int = dataclasses.field(init=False)
    computed: int = dataclasses.field(init=False, default=0)
    """Leading tokens whose keys and values are in `page_table`."""
    cached_tokens: int = dataclasses.field(init=False, default=0)
    """Leading prompt tokens that were in the cache when the sequence first started."""
    lane: int = dataclasses.field(init=False, default=-1)
    """Place among the running; -1 while waiting."""
    page_table: tuple[int, ...] = dataclasses.field(init=False, default=())
    arrival: int = dataclasses.field(init=False, default=-1)
    """Order of submission; kept through preemption, so that an old sequence stays old."""
    preemptions: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)
        if not self.tokens:
            raise ValueError(f"sequence {self.sequence_id}: expected at least one prompt token, found none")
        if self.max_tokens <= self.prompt_tokens:
            raise ValueError(
                f"sequence {self.sequence_id}: expected room for output, found max_tokens {self.max_tokens} "
                f"for {self.prompt_tokens} prompt tokens"
            )

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
