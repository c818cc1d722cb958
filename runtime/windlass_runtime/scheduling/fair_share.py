"""What each tenant has been served, and whose turn it is: deficit rounds over the tenants that want something.

Served work is counted per tenant and divided by its weight. A round ends at a line; a tenant below the line is due.
When nobody who wants something is due, the line moves up by one quantum. So two tenants that both want something all
the time are never further apart than one quantum and what a single grant overshoots. A tenant that comes back after a
pause is lifted to one quantum below the line: pauses are not saved up.

The rule is that of deficit longest-prefix-match scheduling (arXiv 2501.14312), written as counters instead of deficits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Final

PROMPT_TOKEN: Final = 1.0
"""Work of computing one prompt token."""
CACHED_TOKEN: Final = 0.1
"""Work of a prompt token found in the cache: it takes memory, but no computing."""
GENERATED_TOKEN: Final = 2.0
"""Work of generating one token."""


@dataclasses.dataclass(slots=True, eq=False)
class Account:
    """One tenant's work."""

    weight: float
    served: float
    """Work by weight, on the scale of the line."""
    total: float = 0.0
    """Work since the account was opened, for reports."""

    def charge(self, work: float) -> None:
        self.served += work / self.weight
        self.total += work


class FairShare:
    """The accounts of all tenants that have, or lately had, sequences in the house."""

    def __init__(self, quantum: float, weights: Mapping[str, float] | None = None) -> None:
        """quantum is work per round for a tenant of weight 1; tenants that `weights` does not name have weight 1."""
        if not quantum > 0:
            raise ValueError(f"quantum: expected more than 0, found {quantum}")
        self.quantum = quantum
        self.line = quantum
        self._weights = dict(weights or {})
        for tenant, weight in self._weights.items():
            if not 0 < weight < math.inf:
                raise ValueError(f"weight of tenant {tenant}: expected more than 0, found {weight}")
        self._away: dict[str, Account] = {}

    def enter(self, tenant: str) -> Account:
        """The account of a tenant whose first sequence comes in; `lift` it next."""
        return self._away.pop(tenant, None) or Account(self._weights.get(tenant, 1.0), -math.inf)

    def lift(self, account: Account, present: Collection[Account]) -> None:
        """The tenant wants something again; `present` are those that have sequences, itself perhaps included."""
        if present and not any(self.is_due(other) for other in present):
            self.next_round(present)  # what they used while nobody wanted anything is no debt
        account.served = max(account.served, self.line - self.quantum)

    def leave(self, tenant: str, account: Account) -> None:
        """The tenant's last sequence is gone. What it used of this round is remembered: leaving pays nothing."""
        if account.served > self.line - self.quantum:
            self._away[tenant] = account

    def is_due(self, account: Account) -> bool:
        return account.served < self.line

    def next_round(self, wanting: Collection[Account]) -> None:
        """Move the line up, by so many rounds that somebody in `wanting` is due; it is not empty, and nobody is now."""
        least = min(account.served for account in wanting)
        self.line += max(1, math.floor((least - self.line) / self.quantum) + 1) * self.quantum
        floor = self.line - self.quantum
        for tenant in [tenant for tenant, account in self._away.items() if account.served <= floor]:
            del self._away[tenant]  # coming back, it would be lifted as a stranger is
