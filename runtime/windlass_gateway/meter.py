"""Learn from an answer, while it passes, how many tokens it cost. Holds a few pieces and never a whole answer."""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Final

_KEPT_PIECES: Final = 8
_KEPT_BYTES: Final = 4096
"""Of each kept piece. Replies and streams alike end with their usage."""
_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
"""Never matches inside generated text: there every quote follows a backslash."""
_FRAME: Final = re.compile(rb"\r\n[0-9A-Fa-f]{1,5}\r\n")
"""What stands between two chunks that were passed on as they came. JSON has no line ends within."""
_PROMPT: Final = re.compile(rb'"prompt_tokens"\s*:\s*(\d{1,12})\b')
_COMPLETION: Final = re.compile(rb'"completion_tokens"\s*:\s*(\d{1,12})\b')


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class TokenMeter:
    """Reads one answer on its way to the client."""

    __slots__ = ("_pieces", "events")

    def __init__(self) -> None:
        self._pieces: collections.deque[bytes] = collections.deque(maxlen=_KEPT_PIECES)
        self.events = 0
        """Server-sent events so far; each carries about one token."""

    def note(self, piece: bytes) -> None:
        """Look at the next piece."""
        self.events += piece.count(b"\n\n")
        self._pieces.append(piece[-_KEPT_BYTES:])

    def reported(self) -> Usage | None:
        """What the replica says the answer cost; None until it has."""
        return parse_usage(_FRAME.sub(b"", b"".join(self._pieces)))


def parse_usage(text: bytes) -> Usage | None:
    """Find the last usage object in the end of a reply or stream."""
    start = max((found.end() for found in _USAGE.finditer(text)), default=None)
    if start is None:
        return None
    prompt, completion = _PROMPT.search(text, start), _COMPLETION.search(text, start)
    if prompt is None:
        return None
    return Usage(int(prompt[1]), int(completion[1]) if completion is not None else 0)
