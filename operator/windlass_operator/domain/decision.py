"""The words a plan carries: choices with reasons, and refusals with the next step."""

from __future__ import annotations

from dataclasses import dataclass

from windlass_operator.api.v1alpha1.inference_service import Decision

__all__ = ["Decision", "Refusal", "decide"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an object must not be carried out as it stands, and what would change that."""

    reason: str
    """CamelCase word for machines; the reason of the `Admitted` condition."""
    message: str
    """What was expected and what was found, with numbers."""
    next_step: str
    """What the reader can do, as an order."""
    passing: bool = False
    """True: it ends by itself, so the object is on its way, not stuck."""

    def __str__(self) -> str:
        return f"{self.message}. {self.next_step}."


def decide(topic: str, choice: str, reason: str) -> Decision:
    """Build a decision that fits the bounds of the status schema."""
    return Decision(topic=topic, choice=_clip(choice, 256), reason=_clip(reason, 1024))


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
