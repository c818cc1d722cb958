"""Choose whose replicas make room: the fewest, of the lowest tier, of whoever borrows most, the youngest first.

Floors come last: as long as anything else will do, no service goes below what it promises. Every choice depends on
what a tenant and a service have, not on how far an earlier choice has been carried out, so a decision that is half
done is finished, not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from windlass_operator.domain.quota import URGENCY, Request, Taking
from windlass_operator.domain.snapshot import Key

BUDGET_S: Final = 3600
"""Span over which a tenant's budget of taken replicas counts."""
UNDER_WAY_S: Final = 120
"""How long a taking may need until its Deployment asks for fewer replicas; autoscalers act in their own time."""


@dataclass(frozen=True, slots=True)
class Holding:
    """Replicas of one service that may be taken."""

    request: Request
    replicas: int
    floor: int = 0
    """Replicas among them that are promised to stay."""
    leaving: int = 0
    """Replicas among them that were told to stop already or have not begun; they go first and cost no budget."""


@dataclass(frozen=True, slots=True)
class Bound:
    """How much may be taken from one tenant."""

    devices: int
    """While fewer than these were taken, one more replica may go."""
    replicas: int | None = None
    """None: as many as the devices ask for."""


Share = Callable[[str, int], float]
"""Dominant share of a tenant after losing some devices."""


def choose_victims(
    holdings: Iterable[Holding], bounds: Mapping[str, Bound], need: int, share: Share, *, partly: bool = False
) -> dict[Key, int]:
    """Replicas to take of each service, so that `need` devices become free.

    Empty when there are not enough; with `partly`, then as many as there are. Promised floors are touched only where
    nothing else is left.
    """
    found = list(holdings)
    for with_floors in (False, True):
        choice = _Choice(found, bounds, share, with_floors)
        choice.fill(need)
        if choice.devices >= need or (partly and with_floors):
            return choice.without_surplus(need)
    return {}


class _Choice:
    """One attempt: takes replicas one by one."""

    def __init__(self, holdings: list[Holding], bounds: Mapping[str, Bound], share: Share, with_floors: bool) -> None:
        self._holdings = holdings
        self._bounds = bounds
        self._share = share
        self._with_floors = with_floors
        self._order: list[Holding] = []
        self._taken: dict[Key, int] = {}
        self._devices_of: dict[str, int] = {}
        self._charged: dict[str, int] = {}
        self.devices = 0

    def fill(self, need: int) -> None:
        while self.devices < need:
            open_to = [holding for holding in self._holdings if self._may_take(holding)]
            if not open_to:
                return
            self._take(max(open_to, key=lambda holding: self._preference(holding, need - self.devices)))

    def without_surplus(self, need: int) -> dict[Key, int]:
        """Give back what larger replicas, taken later, made superfluous."""
        surplus = self.devices - need
        for holding in self._order:
            if holding.request.devices_per_replica <= surplus:
                surplus -= holding.request.devices_per_replica
                self._taken[holding.request.key] -= 1
        return {key: count for key, count in self._taken.items() if count}

    def _may_take(self, holding: Holding) -> bool:
        request = holding.request
        taken, bound = self._taken.get(request.key, 0), self._bounds[request.tenant]
        kept = 0 if self._with_floors else holding.floor
        if taken >= holding.replicas - kept or self._devices_of.get(request.tenant, 0) >= bound.devices:
            return False
        charge = taken >= holding.leaving
        return not charge or bound.replicas is None or self._charged.get(request.tenant, 0) < bound.replicas

    def _preference(self, holding: Holding, need: int) -> tuple[object, ...]:
        request = holding.request
        at_floor = self._taken.get(request.key, 0) >= holding.replicas - holding.floor
        return (
            not at_floor,
            self._taken.get(request.key, 0) < holding.leaving,
            min(request.devices_per_replica, need),
            URGENCY[request.tier],
            self._share(request.tenant, self._devices_of.get(request.tenant, 0)),
            request.created,
            request.key,
        )

    def _take(self, holding: Holding) -> None:
        request = holding.request
        taken = self._taken.get(request.key, 0)
        self._order.append(holding)
        self._taken[request.key] = taken + 1
        self.devices += request.devices_per_replica
        self._devices_of[request.tenant] = self._devices_of.get(request.tenant, 0) + request.devices_per_replica
        if taken >= holding.leaving:
            self._charged[request.tenant] = self._charged.get(request.tenant, 0) + 1


def allowance(budget: int | None, takings: Iterable[Taking], now_s: float) -> int | None:
    """Replicas that may still be taken from a tenant; None without a budget."""
    if budget is None:
        return None
    return max(0, budget - sum(taking.replicas for taking in takings if is_recent(taking, now_s)))


def is_recent(taking: Taking, now_s: float) -> bool:
    """Whether a taking counts against the budget. One from the future (a clock went back) counts too."""
    return now_s - taking.at_s < BUDGET_S


def told(wanted: int, takings: tuple[Taking, ...], now_s: float) -> int:
    """Replicas a Deployment is told to run: what it asks for, or less while its autoscaler carries out a taking."""
    if takings and now_s - takings[-1].at_s < UNDER_WAY_S:
        return min(wanted, takings[-1].left)
    return wanted
