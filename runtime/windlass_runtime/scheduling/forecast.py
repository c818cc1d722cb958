"""How long a tenant's answers get: what admission expects a sequence to need before it has run."""

from __future__ import annotations

from typing import Final

_MEMORY: Final = 0.9
"""Weight of the past in the running average."""


class OutputForecast:
    """The running average over one tenant's ended sequences."""

    def __init__(self, assumed_tokens: float) -> None:
        """assumed_tokens counts until the first sequence has ended."""
        self._assumed = assumed_tokens
        self._mean: float | None = None

    @property
    def tokens(self) -> float:
        """Expected length of an answer."""
        return self._assumed if self._mean is None else self._mean

    def record(self, generated: int) -> None:
        """Learn from a sequence that ended by itself."""
        self._mean = generated if self._mean is None else _MEMORY * self._mean + (1 - _MEMORY) * generated
