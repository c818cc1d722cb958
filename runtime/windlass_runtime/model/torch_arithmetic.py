"""Plain torch on any device, in the number format of the weights.

Every sequence is attended by itself from its own pages. On a GPU, sequences that decode one token share calls instead:
launches cost more there than padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch.nn import functional

from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.kv.store import PAGE_TOKENS, LayerPages
from windlass_runtime.model.ragged import RaggedStep, Span
from windlass_runtime.model.rope import inverse_frequencies, rotate_, turns_of
from windlass_runtime.model.weights import LayerWeights, Projection

_GATHER_ELEMENTS: Final = 2**28
"""Most key elements that one batched call may gather; bounds the temporary copy."""


class TorchArithmetic:
    """`Arithmetic` by torch's own ops."""

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        self._spec = spec
        self._frequencies = inverse_frequencies(spec.rope).to(device)

    def begin(self, step: RaggedStep) -> TorchAttention:
        return TorchAttention(self._spec, step, turns_of(step.positions, self._frequencies))

    def embed(self, token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return functional.embedding(token_ids, table)

    def project(self, inputs: torch.Tensor, projection: Projection) -> torch.Tensor:
        return functional.linear(inputs, projection.weight, projection.bias)

    def norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, weight.shape, weight, self._spec.norm_epsilon)

    def add_norm(self, residual: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.norm(residual.add_(delta), weight)

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)


class TorchAttention:
    """`Attention` by torch's own ops."""

    def __init__(self, spec: ModelSpec, step: RaggedStep, turns: torch.Tensor) -> None:
        self._spec = spec
        self._step = step
        self._turns = turns
        self._page_ids = torch.div(step.slots, PAGE_TOKENS, rounding_mode="floor")
        self._offsets = step.slots % PAGE_TOKENS

    def attend(
        self, query_key_value: torch.Tensor, weights: LayerWeights, pages: LayerPages, window: int | None
    ) -> torch.Tensor:
        spec = self._spec
        heads = query_key_value.view(len(query_key_value), -1, spec.head_size)
        query, key, value = torch.split(heads, [spec.query_heads, spec.key_value_heads, spec.key_value_heads], dim=1)
        for part, weight in ((query, weights.query_norm), (key, weights.key_norm)):
            if weight is not None:
                part.copy_(functional.rms_norm(part, weight.shape, weight, spec.norm_epsilon))
        rotate_(heads[:, : spec.query_heads + spec.key_value_heads], self._turns)
        pages.write(self._page_ids, self._offsets, key, value)
        return self._attend(query, pages, window).flatten(1)

    def _attend(self, query: torch.Tensor, pages: LayerPages, window: int | None) -> torch.Tensor:
        """[T, Hq, D] to [T, Hq, D]."""
        result = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        rows: Sequence[int] = range(len(self._step.spans))
        if query.device.type == "cuda":
            decoding = [row for row in rows if self._step.spans[row].count == 1]
            for group in self._group_by_length(decoding, pages):
                self._attend_decoding(group, query, pages, window, result)
            rows = [row for row in rows if self._step.spans[row].count > 1]
        for row in rows:
            span, table = self._step.spans[row], self._step.page_tables[row]
            _attend_span(span, table[: span.pages], query, pages, window, result)
        return result

    def _group_by_length(self, rows: list[int], pages: LayerPages) -> list[list[int]]:
        """Split decoding sequences into groups of like length whose padded gather stays within bounds."""
        page_elements = pages.keys[0].numel()
        groups: list[list[int]] = []
        for row in sorted(rows, key=lambda row: self._step.spans[row].end):
            padded = self._step.spans[row].pages * page_elements
            if groups and (len(groups[-1]) + 1) * padded <= _GATHER_ELEMENTS:
                groups[-1].append(row)
            else:
                groups.append([row])
        return groups

    def _attend_decoding(
        self, rows: list[int], query: torch.Tensor, pages: LayerPages, window: int | None, result: torch.Tensor
    ) -> None:
        """One call for B sequences with one new token each; short page tables are padded with page 0 and masked."""
        spans = [self._step.spans[row] for row in rows]
        indices = torch.tensor([rows, [span.first for span in spans]], device=query.device)
        tables = self._step.page_tables[indices[0], : max(span.pages for span in spans)]
        tokens = indices[1]
        sees = _visible(
            self._step.positions[tokens], torch.arange(tables.shape[1] * PAGE_TOKENS, device=query.device), window
        )
        keys, values = (part[tables].transpose(1, 2).flatten(2, 3) for part in (pages.keys, pages.values))
        grouped = query[tokens].view(len(rows), self._spec.key_value_heads, -1, self._spec.head_size)
        attended = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=sees[:, None, None])
        result[tokens] = attended.reshape(len(rows), -1, self._spec.head_size)


def _attend_span(
    span: Span, table: torch.Tensor, query: torch.Tensor, pages: LayerPages, window: int | None, result: torch.Tensor
) -> None:
    """One sequence, decoding or with a chunk of its prompt."""
    first_page = 0 if window is None else max(0, span.start - window + 1) // PAGE_TOKENS
    base = first_page * PAGE_TOKENS
    keys, values = (part[:, : span.end - base] for part in pages.gather(table[first_page:]))
    key_value_heads, _, head_size = keys.shape
    # Query heads that share a key/value head are consecutive: [T, Hq, D] -> [H, G, T, D].
    grouped = query[span.first : span.stop].view(span.count, key_value_heads, -1, head_size).permute(1, 2, 0, 3)
    if span.count == 1:
        oldest = 0 if window is None else max(0, span.end - window) - base
        attended = functional.scaled_dot_product_attention(
            grouped.transpose(1, 2), keys[:, None, oldest:], values[:, None, oldest:]
        ).transpose(1, 2)
    else:
        attended = _attend_chunk(span, grouped, keys, values, window, base)
    result[span.first : span.stop].view(span.count, key_value_heads, -1, head_size).copy_(attended.permute(2, 0, 1, 3))


def _attend_chunk(
    span: Span, grouped: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None, base: int
) -> torch.Tensor:
    """[H, G, T, D] queries over [H, L, D] keys whose first position is `base`."""
    heads = grouped.shape[:2]
    keys, values = keys[:, None].expand(*heads, -1, -1), values[:, None].expand(*heads, -1, -1)
    if span.start == 0 and (window is None or window >= span.end):
        return functional.scaled_dot_product_attention(grouped, keys, values, is_causal=True)
    queries, seen = (torch.arange(first, span.end, device=keys.device) for first in (span.start, base))
    return functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=_visible(queries, seen, window))


def _visible(queries: torch.Tensor, keys: torch.Tensor, window: int | None) -> torch.Tensor:
    """[Q, K] bool: whether the query at a position sees the key at a position."""
    distance = queries[:, None] - keys
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)
