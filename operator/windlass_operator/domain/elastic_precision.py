"""Let a service step down to a smaller number format instead of waiting, and return later.

Each class is taken with the first acceptable format that fits its memory, so a format is chosen with the class: where
quota has no room in the classes of the preferred format, or they have no free devices and nothing serves yet, the next
classes are those of the next one. Coming back
restarts replicas, so a service that stepped down stays there for a while, and moves only to a class with free devices:
`RETURN_AFTER_S` bounds how often it can move.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from windlass_operator.api.v1alpha1.inference_service import (
    InferenceServiceSpec,
    InferenceServiceStatus,
    PrecisionAlternative,
    PrecisionPreset,
)

CONDITION: Final = "PrecisionReduced"
"""Type of the condition that stands while a service runs in less than its preset; its time tells since when."""
RETURN_AFTER_S: Final = 600
"""How long a service stays in a smaller format at least."""


@dataclass(frozen=True, slots=True)
class Format:
    """One format a service accepts. `step` 0 is the preset, higher ones are smaller."""

    preset: PrecisionPreset
    step: int


AS_STORED: Final = Format(PrecisionPreset.AUTO, 0)


def acceptable_formats(spec: InferenceServiceSpec) -> tuple[Format, ...]:
    """Formats in order of preference, without those whose loss of quality is too large or was never measured."""
    return tuple(_formats(spec))


def _formats(spec: InferenceServiceSpec) -> Iterator[Format]:
    yield Format(spec.precision.preset, 0)
    for step, alternative in enumerate(spec.precision.alternatives, start=1):
        if alternative.preset is not spec.precision.preset and not find_quality_problem(alternative):
            yield Format(alternative.preset, step)


def find_quality_problem(alternative: PrecisionAlternative) -> str:
    """Say why an alternative must not be used; empty when it may."""
    floor, measured = alternative.max_quality_loss_percent, alternative.quality_loss_percent
    if floor is None:
        return ""
    if measured is None:
        return f"{alternative.preset.value}: its loss was never measured, at most {floor} % is acceptable"
    if Fraction(measured) > Fraction(floor):
        return f"{alternative.preset.value}: loses {measured} %, at most {floor} % is acceptable"
    return ""


def reduced_since(status: InferenceServiceStatus) -> datetime.datetime | None:
    """Since when the service runs in less than its preset, by its own status; None while it does not."""
    reduced = next((item for item in status.conditions if item.type == CONDITION and item.status == "True"), None)
    if reduced is None or not reduced.last_transition_time:
        return None
    return datetime.datetime.fromisoformat(reduced.last_transition_time)


def return_due_at(status: InferenceServiceStatus) -> datetime.datetime | None:
    """When the service may move back to a larger format; None while it runs in its preset."""
    since = reduced_since(status)
    return None if since is None else since + datetime.timedelta(seconds=RETURN_AFTER_S)


def may_return(status: InferenceServiceStatus, now: datetime.datetime | None) -> bool:
    """Whether a service that stepped down has stayed long enough."""
    due = return_due_at(status)
    return due is not None and now is not None and now >= due


def may_step_down(status: InferenceServiceStatus, now: datetime.datetime | None) -> bool:
    """Whether a service that waits for devices may look for them in another format; one that did so waits a while."""
    return reduced_since(status) is None or may_return(status, now)
