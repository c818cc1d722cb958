"""How many sequences may be in the house, and when a refused client should come back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from windlass_runtime import errors

LONGEST_RETRY_S = 60.0


class Admission:
    """Counts sequences from acceptance to their end. Not thread-safe: the caller holds a lock.

    One tenant may fill the house to its limit. Beyond that, up to twice the limit, only those get in that hold less
    than their share of it, so a flood of one tenant turns nobody else away.
    """

    def __init__(self, *, max_running: int, max_queued: int, weights: Mapping[str, float] | None = None) -> None:
        """weights are those of fair sharing; 1 for tenants not named."""
        self.limit = max_running + max_queued
        self.in_house = 0
        self.backlog_tokens = 0
        """Upper bound of the tokens still to compute or generate for everybody in the house."""
        self._held: Counter[str] = Counter()
        self._weights = dict(weights or {})

    def admit(self, tenant: str, *, sequences: int, tokens: int, tokens_per_s: float) -> None:
        """Let `sequences` in, which may need `tokens` in all.

        Raises QueueFull, and then nothing is counted; RequestError when so many could never come in together.

        tokens_per_s is the recent speed of the engine, 0 when unknown; it only feeds the retry estimate.
        """
        if sequences > self.limit:
            raise errors.RequestError(f"n: expected at most {self.limit} sequences at once, found {sequences}", "n")
        if self.in_house + sequences > self.limit and not self._has_share_left(tenant, sequences):
            raise errors.QueueFull(
                f"queue full: {self.in_house} sequences in the replica, {sequences} more asked for, limit {self.limit}",
                retry_after_s=self.estimate_wait_s(tokens_per_s),
            )
        self.in_house += sequences
        self.backlog_tokens += tokens
        self._held[tenant] += sequences

    def leave(self, tenant: str, *, sequences: int, tokens: int) -> None:
        """Reverse of `admit`, once per admitted request."""
        self.in_house -= sequences
        self.backlog_tokens -= tokens
        self._held[tenant] -= sequences
        assert self._held[tenant] >= 0, "more sequences left than were admitted"
        if not self._held[tenant]:
            del self._held[tenant]

    def estimate_wait_s(self, tokens_per_s: float) -> float:
        """Seconds until one place is free: the average work per sequence at the present speed, within 1 .. 60 s."""
        if tokens_per_s <= 0 or self.in_house == 0:
            return 1.0
        average_tokens = self.backlog_tokens / self.in_house
        return min(LONGEST_RETRY_S, max(1.0, average_tokens / tokens_per_s))

    def _has_share_left(self, tenant: str, sequences: int) -> bool:
        present = {tenant, *self._held}
        share = self.limit * self._weight(tenant) / sum(map(self._weight, present))
        return self._held[tenant] + sequences <= share and self.in_house + sequences <= 2 * self.limit

    def _weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)
