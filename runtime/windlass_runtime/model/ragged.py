"""One step's tokens as flat tensors: the tokens of all sequences one behind the other, no padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from windlass_runtime.kv.store import PAGE_TOKENS, sequence_pages


class SequenceChunk(Protocol):
    """What must be known of a sequence: its new tokens, how many precede them in the cache, and its pages."""

    @property
    def token_ids(self) -> tuple[int, ...]: ...
    @property
    def start(self) -> int: ...
    @property
    def page_table(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Span:
    """Where one sequence lies in the flat tensors."""

    first: int
    """Index of its first token."""
    count: int
    """Tokens computed now."""
    start: int
    """Position of its first token, equal to the tokens before it in the cache."""

    @property
    def stop(self) -> int:
        return self.first + self.count

    @property
    def end(self) -> int:
        """Positions in the cache once this step's tokens are written."""
        return self.start + self.count

    @property
    def pages(self) -> int:
        """Pages in use once this step's tokens are written."""
        return sequence_pages(self.end)


@dataclass(frozen=True, slots=True)
class RaggedStep:
    """T tokens of R sequences. All tensors are int32, dense, on one device."""

    token_ids: torch.Tensor
    """[T]"""
    positions: torch.Tensor
    """[T]"""
    slots: torch.Tensor
    """[T]: page * PAGE_TOKENS + offset that takes each token's key and value."""
    row_of: torch.Tensor
    """[T]: index of each token's sequence."""
    page_tables: torch.Tensor
    """[R, B]: page ids of each sequence, oldest first, padded with 0."""
    spans: tuple[Span, ...]
    """R, in order of `first`."""

    def on(self, device: torch.device) -> RaggedStep:
        """The same step on another device."""
        names = ("token_ids", "positions", "slots", "row_of", "page_tables")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def lay_out(chunks: Sequence[SequenceChunk], device: torch.device) -> RaggedStep:
    """Flatten a step; one transfer to the device."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    row_of: list[int] = []
    tables: list[int] = []
    spans: list[Span] = []
    width = max((sequence_pages(chunk.start + len(chunk.token_ids)) for chunk in chunks), default=0)
    for row, chunk in enumerate(chunks):
        span = Span(len(tokens), len(chunk.token_ids), chunk.start)
        tokens += chunk.token_ids
        positions += range(span.start, span.end)
        slots += [
            chunk.page_table[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
            for position in range(span.start, span.end)
        ]
        row_of += [row] * span.count
        tables += [*chunk.page_table[: span.pages], *[0] * (width - span.pages)]
        spans.append(span)
    flat = torch.tensor(tokens + positions + slots + row_of + tables, dtype=torch.int32).to(device, non_blocking=True)
    count = len(tokens)
    token_ids, position_ids, slot_ids, rows = flat[: 4 * count].view(4, count).unbind()
    return RaggedStep(token_ids, position_ids, slot_ids, rows, flat[4 * count :].view(len(spans), width), tuple(spans))
