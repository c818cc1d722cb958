"""Where a step's tokens pass through floats: tails and staging of layers with pages of 4 or 8 bits.

A sequence's unfinished page lies in its lane's tail, one per layer. A chunk that crosses page borders needs more float
pages while a layer computes; those come from the staging, which all layers share one after the other. After a layer has
attended, what the staging holds of an unfinished page moves into the tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from windlass_runtime.kv.store import PAGE_TOKENS, CacheLayout, LayerPages
from windlass_runtime.model.ragged import SequenceChunk


class LaneChunk(SequenceChunk, Protocol):
    """A chunk of a sequence that has a lane."""

    @property
    def lane(self) -> int: ...


@dataclass(frozen=True, slots=True)
class TailStep:
    """T tokens and N finished pages of one step; L layers of 4 or 8 bits. All tensors are int32, on one device."""

    offsets: torch.Tensor
    """[T]: place of each token in its page."""
    tail_of: torch.Tensor
    """[L, T]: float page of each token's page."""
    slots: torch.Tensor
    """[L, T]: float page * PAGE_TOKENS + offset that takes each token's key and value."""
    finished: torch.Tensor
    """[N]: pages that are full once this step's tokens are written."""
    finished_tails: torch.Tensor
    """[L, N]: the float page of each."""
    moved_from: torch.Tensor
    """[M]: staging that holds an unfinished page."""
    moved_to: torch.Tensor
    """[L, M]: the tail it moves to."""

    def move(self, tails: LayerPages, index: int) -> None:
        """Bring unfinished pages of layer `index` out of the staging, once it has attended."""
        if len(self.moved_from):
            for part in (tails.keys, tails.values):
                part[self.moved_to[index]] = part[self.moved_from]


def lay_out_tails(chunks: Sequence[LaneChunk], layout: CacheLayout, device: torch.device) -> TailStep:
    """Give every page that the step touches a float page; one transfer to the device.

    Raises ValueError for lanes or numbers of tokens beyond the layout.
    """
    draft = _Draft(layout.lanes, layout.staging)
    for chunk in chunks:
        draft.place(chunk)
    tokens, finished, moved = len(draft.offsets), len(draft.finished), len(draft.moved_from)
    flat = torch.tensor(
        draft.offsets + draft.tail_of + draft.finished + draft.finished_tails + draft.moved_from + draft.moved_to,
        dtype=torch.int32,
    ).to(device, non_blocking=True)
    offsets, tail_of, ids, tails, moved_from, moved_to = torch.split(flat, [tokens] * 2 + [finished] * 2 + [moved] * 2)
    by_layer = [_spread(part, layout) for part in (tail_of, tails, moved_to)]
    return TailStep(
        offsets=offsets,
        tail_of=by_layer[0],
        slots=by_layer[0] * PAGE_TOKENS + offsets,
        finished=ids,
        finished_tails=by_layer[1],
        moved_from=moved_from + (layout.quantized_layers - 1) * layout.lanes,
        moved_to=by_layer[2],
    )


def _spread(pages: torch.Tensor, layout: CacheLayout) -> torch.Tensor:
    """[n] float pages, lanes before staging, to their numbers in each layer: [L, n]."""
    layers = torch.arange(layout.quantized_layers, dtype=torch.int32, device=pages.device)[:, None]
    return torch.where(pages < layout.lanes, pages + layers * layout.lanes, pages + (len(layers) - 1) * layout.lanes)


class _Draft:
    """Lists in the making. Float pages are numbered lanes first, then staging."""

    def __init__(self, lanes: int, staging: int) -> None:
        self._lanes = lanes
        self._end = lanes + staging
        self._next = lanes
        self.offsets: list[int] = []
        self.tail_of: list[int] = []
        self.finished: list[int] = []
        self.finished_tails: list[int] = []
        self.moved_from: list[int] = []
        self.moved_to: list[int] = []

    def place(self, chunk: LaneChunk) -> None:
        """The first page continues in the tail if it was begun before; the last one belongs there if it stays open."""
        if not 0 <= chunk.lane < self._lanes:
            raise ValueError(f"lane: expected 0 to {self._lanes - 1}, found {chunk.lane}")
        start, end = chunk.start, chunk.start + len(chunk.token_ids)
        first, last = start // PAGE_TOKENS, (end - 1) // PAGE_TOKENS
        begun, stays_open = start % PAGE_TOKENS > 0, end % PAGE_TOKENS > 0
        for page in range(first, last + 1):
            in_tail = page == first if begun else page == last and stays_open
            place = chunk.lane if in_tail else self._stage()
            low, high = max(start, page * PAGE_TOKENS), min(end, (page + 1) * PAGE_TOKENS)
            self.offsets += range(low - page * PAGE_TOKENS, high - page * PAGE_TOKENS)
            self.tail_of += [place] * (high - low)
            if high == (page + 1) * PAGE_TOKENS:
                self.finished.append(chunk.page_table[page])
                self.finished_tails.append(place)
            elif not in_tail:
                self.moved_from.append(place)
                self.moved_to.append(chunk.lane)

    def _stage(self) -> int:
        if self._next == self._end:
            raise ValueError(f"staging: expected a step of at most {self._end - self._lanes} whole pages, found more")
        self._next += 1
        return self._next - 1
