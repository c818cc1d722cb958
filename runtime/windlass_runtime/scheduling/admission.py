"""How many sequences may be in the house, and when a refused client should come back."""

from __future__ import annotations

from windlass_runtime import errors

LONGEST_RETRY_S = 60.0


class Admission:
    """Counts sequences from acceptance to their end. Not thread-safe: the caller holds a lock."""

    def __init__(self, *, max_running: int, max_queued: int) -> None:
        self.limit = max_running + max_queued
        self.in_house = 0
        self.backlog_tokens = 0
        """Upper bound of the tokens still to compute or generate for everybody in the house."""

    def admit(self, *, sequences: int, tokens: int, tokens_per_s: float) -> None:
        """Let `sequences` in, which may need `tokens` in all.

        Raises QueueFull, and then nothing is counted; RequestError when so many could never come in together.

        tokens_per_s is the recent speed of the engine, 0 when unknown; it only feeds the retry estimate.
        """
        if sequences > self.limit:
            raise errors.RequestError(f"n: expected at most {self.limit} sequences at once, found {sequences}", "n")
        if self.in_house + sequences > self.limit:
            raise errors.QueueFull(
                f"queue full: {self.in_house} sequences in the replica, {sequences} more asked for, limit {self.limit}",
                retry_after_s=self.estimate_wait_s(tokens_per_s),
            )
        self.in_house += sequences
        self.backlog_tokens += tokens

    def leave(self, *, sequences: int, tokens: int) -> None:
        """Reverse of `admit`, once per admitted request."""
        self.in_house -= sequences
        self.backlog_tokens -= tokens
        assert self.in_house >= 0, "more sequences left than were admitted"

    def estimate_wait_s(self, tokens_per_s: float) -> float:
        """Seconds until one place is free: the average work per sequence at the present speed, within 1 .. 60 s."""
        if tokens_per_s <= 0 or self.in_house == 0:
            return 1.0
        average_tokens = self.backlog_tokens / self.in_house
        return min(LONGEST_RETRY_S, max(1.0, average_tokens / tokens_per_s))
