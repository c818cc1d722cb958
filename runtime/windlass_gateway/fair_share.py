"""Share a space of fixed size among tenants, so that nobody fills it alone. Pure.

A tenant may hold as much as it leaves free. Alone it gets half of the space; n tenants that want everything settle at
1/(n+1) each, as what they hold comes back; and a newcomer always finds room: half of what is free. No shares have to be
stated, and nothing is kept for those who are idle.
"""

from __future__ import annotations

from collections import Counter


class SharedSpace:
    """Who holds how much. Used from one event loop only."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: Counter[str] = Counter()
        self.held = 0
        """Sum over all tenants."""

    def take(self, tenant: str, amount: int) -> bool:
        """Give a tenant room, all of it or none; return whether it got it."""
        if self._held[tenant] + amount > self._size - self.held - amount:
            return False
        self._held[tenant] += amount
        self.held += amount
        return True

    def give_back(self, tenant: str, amount: int) -> None:
        """Return room that was taken."""
        self.held -= amount
        self._held[tenant] -= amount
        if not self._held[tenant]:
            del self._held[tenant]

    def held_by(self, tenant: str) -> int:
        """What one tenant holds."""
        return self._held[tenant]

    def check(self) -> None:
        """Assert the invariants; for tests."""
        assert all(amount > 0 for amount in self._held.values())
        assert sum(self._held.values()) == self.held <= self._size
