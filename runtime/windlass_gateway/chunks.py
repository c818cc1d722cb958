"""Find the ends of chunks in a body of HTTP/1.1 as its bytes arrive. Pure; holds counters and no bytes.

Only plain chunks are followed: a size in hex digits, at most LARGEST_CHUNK bytes, both line ends in place. Anything
else - the last chunk, an extension, a size that has not arrived whole - is left to a full parser, and what is no chunk
at all is an error. So bytes that were followed can be sent on as they are: whoever reads them stays in step.
"""

from __future__ import annotations

import re
from typing import Final

LARGEST_CHUNK: Final = 2**16
"""Bytes. A larger one is left to the parser, which knows back-pressure within a chunk."""
_LINE_END: Final = b"\r\n"
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,5})\r\n")


class BrokenChunkError(ValueError):
    """A chunk does not end where its size says."""


class ChunkScanner:
    """Where the reader of one body stands."""

    __slots__ = ("_left", "last_size")

    def __init__(self) -> None:
        self._left = 0
        self.last_size = 0
        """Size of the chunk that was begun last."""

    @property
    def at_boundary(self) -> bool:
        """Whether the next byte begins a chunk."""
        return self._left == 0

    def follow(self, data: bytes) -> int:
        """Go on over the next bytes; return how many of them belong to plain chunks. What remains begins at a boundary.

        Raises BrokenChunkError.
        """
        position, length = 0, len(data)
        while True:
            if self._left:
                position = self._pass(data, position)
            if position == length:
                return position
            size = _SIZE.match(data, position)
            if size is None or not 0 < (found := int(size[1], 16)) <= LARGEST_CHUNK:
                return position
            self.last_size = found
            self._left = found + len(_LINE_END)
            position = size.end()

    def _pass(self, data: bytes, position: int) -> int:
        """Go over the rest of a chunk, as far as it is there, and check its line end."""
        end = position + min(self._left, len(data) - position)
        begin = max(position, position + self._left - len(_LINE_END))
        if begin < end:
            seen = len(_LINE_END) - min(len(_LINE_END), self._left)
            if data[begin:end] != _LINE_END[seen : seen + end - begin]:
                raise BrokenChunkError(f"expected a line end after a chunk of {self.last_size} bytes")
        self._left -= end - position
        return end
