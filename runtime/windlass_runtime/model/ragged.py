"""One step's tokens as flat tensors: the tokens of all sequences one behind the other, no padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from windlass_runtime.kv.store import PAGE_TOKENS


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
    pages: torch.Tensor
    """[n] int64, oldest first; covers positions 0 .. start + count - 1."""

    @property
    def stop(self) -> int:
        return self.first + self.count

    @property
    def end(self) -> int:
        """Positions in the cache once this step's tokens are written."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class RaggedStep:
    """T tokens of S sequences."""

    token_ids: torch.Tensor
    """[T] int64"""
    positions: torch.Tensor
    """[T] int64"""
    page_ids: torch.Tensor
    """[T] int64: page that takes each token's key and value."""
    offsets: torch.Tensor
    """[T] int64: position within that page."""
    spans: tuple[Span, ...]
    """In order of `first`."""


def lay_out(chunks: Sequence[SequenceChunk], device: torch.device) -> RaggedStep:
    """Flatten a step; one transfer to the device."""
    tokens: list[int] = []
    positions: list[int] = []
    pages: list[int] = []
    tables: list[int] = []
    for chunk in chunks:
        end = chunk.start + len(chunk.token_ids)
        tokens += chunk.token_ids
        positions += range(chunk.start, end)
        pages += [chunk.page_table[position // PAGE_TOKENS] for position in range(chunk.start, end)]
        tables += chunk.page_table[: -(-end // PAGE_TOKENS)]
    flat = torch.tensor(tokens + positions + pages + tables, dtype=torch.int64).to(device, non_blocking=True)
    count = len(tokens)
    token_ids, position_ids, page_ids = flat[:count], flat[count : 2 * count], flat[2 * count : 3 * count]
    return RaggedStep(token_ids, position_ids, page_ids, position_ids % PAGE_TOKENS, _spans(chunks, flat[3 * count :]))


def _spans(chunks: Sequence[SequenceChunk], tables: torch.Tensor) -> tuple[Span, ...]:
    spans: list[Span] = []
    first = page = 0
    for chunk in chunks:
        count = len(chunk.token_ids)
        pages = -(-(chunk.start + count) // PAGE_TOKENS)
        spans.append(Span(first, count, chunk.start, tables[page : page + pages]))
        first, page = first + count, page + pages
    return tuple(spans)
