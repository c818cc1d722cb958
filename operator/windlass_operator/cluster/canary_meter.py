"""The seam through which canaries are measured: what is asked, and who answers when nobody can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from windlass_operator.domain.canary import Reading
from windlass_operator.domain.snapshot import Key


@dataclass(frozen=True, slots=True)
class Subject:
    """One canary to measure against its stable revision."""

    service: Key
    canary: str
    window_s: int
    """How far to look back."""
    served_name: str
    """Value of `model` in requests."""
    prompts: tuple[str, ...] = ()
    """What to ask both revisions; empty: ask nothing."""


class Meter(Protocol):
    """Measures canaries. What cannot be measured is said in the reading, not raised."""

    async def read(self, subject: Subject) -> Reading:
        """Return what both revisions did. Bounds its own time."""
        ...

    async def close(self) -> None:
        """End what runs."""
        ...


class NoMeter:
    """Stands in where there is no source of metrics: no data is not success, so canaries wait for their deadline."""

    def __init__(self, problem: str) -> None:
        self._problem = problem

    async def read(self, subject: Subject) -> Reading:  # noqa: ARG002  (signature of the protocol)
        """Say why there is nothing."""
        return Reading(problem=self._problem)

    async def close(self) -> None:
        """Nothing to end."""
