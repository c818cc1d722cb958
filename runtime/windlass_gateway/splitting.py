"""Deal the requests of a route to its stable revision and its canaries.

Requests without a session are dealt in turns, so that shares are exact and not only likely: out of any hundred requests
in a row each canary gets its weight, give or take one per canary. A session always lands on the same revision, on every
gateway; when a weight grows, sessions move to that revision only, and when it shrinks, away from it only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection

from windlass_contract.endpoints import Canary, Route

RouteKey = tuple[str, str]


class Splitter:
    """Whose turn it is, per route. One per gateway, used from its event loop only."""

    def __init__(self) -> None:
        self._credit: dict[RouteKey, dict[str, int]] = {}

    def choose(self, route: Route, session: str = "") -> Canary | None:
        """Return the canary that gets this request; None for the stable revision."""
        weighed = [canary for canary in route.canaries if canary.weight > 0]
        if not weighed:
            return None
        return choose_for_session(route, session) if session else self._take_turn(route, weighed)

    def keep_only(self, routes: Collection[RouteKey]) -> None:
        """Forget routes that left the routing table."""
        self._credit = {key: credit for key, credit in self._credit.items() if key in routes}

    def _take_turn(self, route: Route, weighed: list[Canary]) -> Canary | None:
        """Everybody earns their weight, the richest is served and pays for the round."""
        stable = 100 - sum(canary.weight for canary in weighed)
        weights = {"": stable, **{canary.name: canary.weight for canary in weighed}}
        before = self._credit.get((route.namespace, route.service), {})
        credit = {name: before.get(name, 0) + weight for name, weight in weights.items()}
        chosen = max(credit, key=credit.__getitem__)
        credit[chosen] -= sum(weights.values())
        self._credit[route.namespace, route.service] = credit
        return next((canary for canary in weighed if canary.name == chosen), None)


def choose_for_session(route: Route, session: str) -> Canary | None:
    """Return the canary that a session belongs to; None for the stable revision."""
    weighed = [canary for canary in route.canaries if canary.weight > 0]
    stable = 100 - sum(canary.weight for canary in weighed)
    shares: list[tuple[Canary | None, int]] = [(canary, canary.weight) for canary in weighed]
    if stable > 0:
        shares.append((None, stable))
    return max(shares, key=lambda share: _draw(route, share[0].name if share[0] else "", session, share[1]))[0]


def _draw(route: Route, name: str, session: str, weight: int) -> float:
    """Each revision draws a number by itself, larger for larger weights: the highest wins as often as weights say."""
    text = "\0".join((route.namespace, route.service, name, session))
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    return weight / -math.log((digest + 1) / (2**64 + 1))
