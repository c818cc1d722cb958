"""Find stop strings in text that arrives in pieces, and hold back what may become one.

The client never sees a stop string, nor the first half of one that a later token completes.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(slots=True)
class StopStrings:
    """Feed pieces in order; `pending` is text read but not yet given out."""

    stops: tuple[str, ...]
    pending: str = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """Text that is safe to show, and whether a stop string was met.

        The stop string that is complete first wins, so the result does not depend on how the text was cut.
        """
        text = self.pending + piece
        matches = [(start + len(stop), start) for stop in self.stops if (start := text.find(stop)) >= 0]
        if matches:
            self.pending = ""
            _, start = min(matches)
            return text[:start], True
        keep = self._held_length(text)
        self.pending = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back, at the end of a sequence that met no stop string."""
        text, self.pending = self.pending, ""
        return text

    def _held_length(self, text: str) -> int:
        """Length of the longest tail of `text` that begins some stop string."""
        longest = min(len(text), max((len(stop) - 1 for stop in self.stops), default=0))
        for length in range(longest, 0, -1):
            tail = text[len(text) - length :]
            if any(stop.startswith(tail) for stop in self.stops):
                return length
        return 0
