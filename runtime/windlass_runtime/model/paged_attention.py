"""Attention over paged keys and values in plain torch: one sequence at a time, or many that decode one token each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch
from torch.nn import functional

from windlass_runtime.kv.store import PAGE_TOKENS, LayerPages
from windlass_runtime.model.ragged import RaggedStep, Span

_GATHER_ELEMENTS: Final = 2**28
"""Most key elements that one batched call may gather; bounds the temporary copy."""


@dataclass(frozen=True, slots=True)
class DecodingGroup:
    """B sequences of like length with one new token each."""

    tokens: torch.Tensor
    """[B] int64: index of each sequence's token in the step."""
    latest: torch.Tensor
    """[B] int32: position of that token."""
    page_tables: torch.Tensor
    """[B, n] int32: padded with page 0."""
    _visible: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def visible(self, window: int | None) -> torch.Tensor:
        """[B, n * PAGE_TOKENS] bool: the positions each token sees; the same for all layers with this window."""
        if window not in self._visible:
            positions = torch.arange(self.page_tables.shape[1] * PAGE_TOKENS, device=self.latest.device)
            self._visible[window] = _sees(self.latest, positions, window)
        return self._visible[window]


def group_decoding(step: RaggedStep, page_elements: int) -> list[DecodingGroup]:
    """Split the sequences that decode into groups of like length, so that each padded gather stays within bounds.

    page_elements  key elements of one page of one layer
    """
    groups: list[list[int]] = []
    decoding = [row for row, span in enumerate(step.spans) if span.count == 1]
    for row in sorted(decoding, key=lambda row: step.spans[row].end):
        if groups and (len(groups[-1]) + 1) * step.spans[row].pages * page_elements <= _GATHER_ELEMENTS:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [_prepare(step, rows) for rows in groups]


def _prepare(step: RaggedStep, rows: list[int]) -> DecodingGroup:
    spans = [step.spans[row] for row in rows]
    indices = torch.tensor([rows, [span.first for span in spans]]).to(step.positions.device, non_blocking=True)
    tables = step.page_tables[indices[0], : max(span.pages for span in spans)]
    return DecodingGroup(indices[1], step.positions[indices[1]], tables)


def attend_decoding(
    group: DecodingGroup, query: torch.Tensor, pages: LayerPages, window: int | None, result: torch.Tensor
) -> None:
    """One call for the whole group.

    query   [T, Hq, D]  all tokens of the step; those of the group are read
    result  [T, Hq, D]  those of the group are written
    """
    keys, values = (part[group.page_tables].transpose(1, 2).flatten(2, 3) for part in (pages.keys, pages.values))
    grouped = query[group.tokens].view(len(keys), keys.shape[1], -1, keys.shape[3])
    mask = group.visible(window)[:, None, None]
    attended = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
    result[group.tokens] = attended.flatten(1, 2)


def attend_span(
    step: RaggedStep, row: int, query: torch.Tensor, pages: LayerPages, window: int | None, result: torch.Tensor
) -> None:
    """One sequence, decoding or with a chunk of its prompt; shapes as for `attend_decoding`."""
    span = step.spans[row]
    first_page = 0 if window is None else max(0, span.start - window + 1) // PAGE_TOKENS
    base = first_page * PAGE_TOKENS
    keys, values = (part[:, : span.end - base] for part in pages.gather(step.page_tables[row, first_page : span.pages]))
    shape = (span.count, keys.shape[0], -1, keys.shape[2])
    # Query heads that share a key/value head are consecutive: [T, Hq, D] -> [H, G, T, D].
    grouped = query[span.first : span.stop].view(shape).permute(1, 2, 0, 3)
    if span.count == 1:
        attended = _attend_token(span, grouped, keys, values, window, base)
    else:
        attended = _attend_chunk(span, grouped, keys, values, window, base)
    result[span.first : span.stop].view(shape).copy_(attended.permute(2, 0, 1, 3))


def _attend_token(
    span: Span, grouped: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None, base: int
) -> torch.Tensor:
    """[H, G, 1, D] queries over [H, L, D] keys whose first position is `base`; the group shares one product."""
    oldest = 0 if window is None else max(0, span.end - window) - base
    query = grouped.transpose(1, 2)
    attended = functional.scaled_dot_product_attention(query, keys[:, None, oldest:], values[:, None, oldest:])
    return attended.transpose(1, 2)


def _attend_chunk(
    span: Span, grouped: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None, base: int
) -> torch.Tensor:
    """[H, G, T, D] queries over [H, L, D] keys whose first position is `base`."""
    heads = grouped.shape[:2]
    keys, values = keys[:, None].expand(*heads, -1, -1), values[:, None].expand(*heads, -1, -1)
    if span.start == 0 and (window is None or window >= span.end):
        return functional.scaled_dot_product_attention(grouped, keys, values, is_causal=True)
    queries, seen = (torch.arange(first, span.end, device=keys.device) for first in (span.start, base))
    return functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=_sees(queries, seen, window))


def _sees(queries: torch.Tensor, keys: torch.Tensor, window: int | None) -> torch.Tensor:
    """[Q, K] bool: whether the query at a position sees the key at a position."""
    distance = queries[:, None] - keys
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)
