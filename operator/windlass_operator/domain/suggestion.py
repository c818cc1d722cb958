"""Values of advice: changes that would let a service run. `oracle` finds them, statuses and commands show them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from windlass_operator.domain.snapshot import Key


class Remedy(enum.StrEnum):
    """What kind of change; of equally large ones the first is preferred."""

    LIST_CLASS = "ListClass"
    CHANGE_PRECISION = "ChangePrecision"
    RAISE_BORROWING_LIMIT = "RaiseBorrowingLimit"
    LOWER_REPLICAS = "LowerReplicas"
    LOWER_NEIGHBOUR = "LowerNeighbour"
    RAISE_NOMINAL = "RaiseNominal"
    FREE_DEVICES = "FreeDevices"


BY_PLATFORM: Final = frozenset({Remedy.RAISE_BORROWING_LIMIT, Remedy.RAISE_NOMINAL, Remedy.FREE_DEVICES})
"""What the platform team does; the rest is in the hands of the service's own people."""


@dataclass(frozen=True, slots=True)
class Change:
    """An edit of one object, as `kubectl patch --type=merge` takes it."""

    key: Key
    patch: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One change that admits the service."""

    remedy: Remedy
    order: str
    """What to do, beginning with a lower-case verb."""
    devices: int
    """GPUs that change hands; 0 where none do."""
    change: Change | None = None
    """None: something outside our objects has to change."""


def next_step(suggestions: tuple[Suggestion, ...]) -> str:
    """One sentence: the smallest change for the service's own people, and the smallest for the platform team."""
    own = next((item.order for item in suggestions if item.remedy not in BY_PLATFORM), "")
    theirs = next((item.order for item in suggestions if item.remedy in BY_PLATFORM), "")
    if not theirs:
        return _sentence(own)
    asked = f"ask the platform team to {theirs}"
    return f"{_sentence(own)}, or {asked}" if own else _sentence(asked)


def _sentence(order: str) -> str:
    return order[:1].upper() + order[1:]
