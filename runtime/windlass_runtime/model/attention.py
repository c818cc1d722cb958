"""Attention of a ragged step over paged keys and values in plain torch: the path where no kernel exists.

Every sequence is computed by itself from its own pages, so its result cannot depend on its neighbours in the batch;
on a GPU, sequences that decode one token share calls instead, where launches cost more than the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch.nn import functional

from windlass_runtime.kv.store import PAGE_TOKENS, LayerPages
from windlass_runtime.model.ragged import RaggedStep, Span

_GATHER_ELEMENTS: Final = 2**28
"""Most key elements that one batched call may gather; bounds the temporary copy."""


def attend(step: RaggedStep, query: torch.Tensor, pages: LayerPages, window: int | None) -> torch.Tensor:
    """Attend each token to its sequence up to and including itself.

    query    [T, Hq, D]   T tokens of the step, whose keys and values are already in `pages`
    window   latest positions a token sees, itself included; None for all
    returns  [T, Hq, D]   newly allocated
    """
    result = torch.empty_like(query)
    spans = step.spans
    if query.device.type == "cuda":
        decoding = [span for span in spans if span.count == 1]
        for group in _group_by_size(decoding, pages):
            _attend_decoding(group, query, pages, window, result)
        spans = tuple(span for span in spans if span.count > 1)
    for span in spans:
        _attend_span(span, query, pages, window, result)
    return result


def _attend_span(span: Span, query: torch.Tensor, pages: LayerPages, window: int | None, result: torch.Tensor) -> None:
    first_page = 0 if window is None else max(0, span.start - window + 1) // PAGE_TOKENS
    base = first_page * PAGE_TOKENS
    keys, values = pages.gather(span.pages[first_page:])
    keys, values = keys[:, : span.end - base], values[:, : span.end - base]
    key_value_heads, head_size = keys.shape[0], keys.shape[2]
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
    heads = grouped.shape[:2]
    keys, values = keys[:, None].expand(*heads, -1, -1), values[:, None].expand(*heads, -1, -1)
    if span.start == 0 and (window is None or window >= span.end):
        return functional.scaled_dot_product_attention(grouped, keys, values, is_causal=True)
    mask = _visible(
        torch.arange(span.start, span.end, device=keys.device), torch.arange(base, span.end, device=keys.device), window
    )
    return functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)


def _visible(queries: torch.Tensor, keys: torch.Tensor, window: int | None) -> torch.Tensor:
    """[Q, K] bool: whether the query at a position sees the key at a position."""
    distance = queries[:, None] - keys
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _group_by_size(spans: Sequence[Span], pages: LayerPages) -> list[list[Span]]:
    """Split decoding sequences into groups of like length whose padded gather stays within bounds."""
    page_elements = pages.keys[0].numel()
    groups: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: len(span.pages)):
        if groups and (len(groups[-1]) + 1) * len(span.pages) * page_elements <= _GATHER_ELEMENTS:
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _attend_decoding(
    spans: list[Span], query: torch.Tensor, pages: LayerPages, window: int | None, result: torch.Tensor
) -> None:
    """One call for B sequences with one new token each; short page tables are padded with page 0 and masked."""
    device, (_, key_value_heads, _, head_size) = query.device, pages.keys.shape
    tables = torch.nn.utils.rnn.pad_sequence([span.pages for span in spans], batch_first=True)
    rows = torch.tensor([span.first for span in spans], device=device)
    latest = torch.tensor([span.start for span in spans], device=device)
    mask = _visible(latest, torch.arange(tables.shape[1] * PAGE_TOKENS, device=device), window)
    keys, values = (part[tables].transpose(1, 2).flatten(2, 3) for part in (pages.keys, pages.values))
    grouped = query[rows].view(len(spans), key_value_heads, -1, head_size)
    attended = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask[:, None, None])
    result[rows] = attended.reshape(len(spans), -1, head_size)
