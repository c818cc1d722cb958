"""Label selectors as they stand in URLs: `a=b,c!=d,e in (f,g),h,!i`. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_KEY: Final = r"[A-Za-z0-9](?:[-A-Za-z0-9_./]*[A-Za-z0-9])?"
_VALUE: Final = r"[-A-Za-z0-9_.]*"
_SET: Final = re.compile(rf"^({_KEY})\s+(in|notin)\s+\(([^()]*)\)$")
_EQUAL: Final = re.compile(rf"^({_KEY})\s*(==|=|!=)\s*({_VALUE})$")
_PRESENCE: Final = re.compile(rf"^(!?)\s*({_KEY})$")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One part of a selector."""

    key: str
    values: frozenset[str] | None
    """None where only the presence of the key matters."""
    wanted: bool
    """False: a label with one of the values, or with the key, must not be there."""

    def accepts(self, labels: Mapping[str, str]) -> bool:
        """Whether labels fulfil it. As in Kubernetes, `!=` and `notin` accept labels without the key."""
        present = self.key in labels if self.values is None else labels.get(self.key) in self.values
        return present is self.wanted


Selector = tuple[Requirement, ...]


def parse_selector(text: str) -> Selector:
    """Parse a selector; the empty one accepts everything. Raises ValueError with the part that is none."""
    # A comma inside parentheses separates values, not requirements.
    parts = [part.strip() for part in re.split(r",(?![^(]*\))", text)] if text.strip() else []
    return tuple(_parse_requirement(part) for part in parts)


def accepts(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether labels fulfil every requirement."""
    return all(requirement.accepts(labels) for requirement in selector)


def _parse_requirement(part: str) -> Requirement:
    if found := _SET.match(part):
        values = frozenset(value.strip() for value in found[3].split(","))
        if all(re.fullmatch(_VALUE, value) for value in values):
            return Requirement(found[1], values, wanted=found[2] == "in")
    elif found := _EQUAL.match(part):
        return Requirement(found[1], frozenset({found[3]}), wanted=found[2] != "!=")
    elif found := _PRESENCE.match(part):
        return Requirement(found[2], None, wanted=not found[1])
    raise ValueError(f"labelSelector: expected requirements such as a=b, a!=b, a in (b,c) or !a, found {part!r}")
