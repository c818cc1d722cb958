"""Conditions of every kind: how they are built, clipped and dated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from windlass_operator.api.meta import Condition

_MESSAGE_LENGTH: Final = 2048


@dataclass(frozen=True, slots=True)
class Finding:
    """How far a workload is."""

    ready: bool
    reason: str
    message: str
    hopeless: bool = False
    """Whether waiting has been tried for long enough: only a person can help."""


def build_condition(kind: str, holds: bool | None, reason: str, message: str) -> Condition:
    """One condition; None: nobody knows yet."""
    if len(message) > _MESSAGE_LENGTH:
        message = message[: _MESSAGE_LENGTH - 3] + "..."
    status = "Unknown" if holds is None else "True" if holds else "False"
    return Condition(type=kind, status=status, reason=reason, message=message)


def date_conditions(
    conditions: Iterable[Condition], previous: Iterable[Condition], generation: int, now: str
) -> list[Condition]:
    """Stamp conditions; the time moves only when the status of a condition does."""
    before = {condition.type: condition for condition in previous}
    dated = []
    for condition in conditions:
        old = before.get(condition.type)
        since = old.last_transition_time if old is not None and old.status == condition.status else now
        dated.append(
            condition.model_copy(update={"observed_generation": generation, "last_transition_time": since or now})
        )
    return dated
