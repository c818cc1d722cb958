"""Attention over pages of 4 and 8 bits in plain torch, one sequence at a time: the path of devices without a kernel for
them. Pages are expanded for each call, so it is right everywhere and fast nowhere.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from windlass_kernels import quantized_pages
from windlass_runtime.kv.store import PAGE_TOKENS, QuantizedLayer
from windlass_runtime.model.ragged import RaggedStep
from windlass_runtime.model.rope import rotate_, turns_of


def attend_quantized_span(
    step: RaggedStep,
    row: int,
    query: torch.Tensor,
    layer: QuantizedLayer,
    places: torch.Tensor,
    frequencies: torch.Tensor,
    window: int | None,
    result: torch.Tensor,
) -> None:
    """One sequence: each token sees the pages before its own as stored, and its own page in floats.

    query        [T, Hq, D]  all tokens of the step, turned by their positions; those of the row are read
    places       [T] int32   float page of each token's page
    frequencies  [C] float32
    result       [T, Hq, D]  those of the row are written
    """
    span = step.spans[row]
    first, last = span.start // PAGE_TOKENS, (span.end - 1) // PAGE_TOKENS
    oldest = 0 if window is None else min(first, max(0, span.start - window + 1) // PAGE_TOKENS)
    # One float page for each page that the chunk touches, found by one of its tokens.
    begins = [max(span.start, page * PAGE_TOKENS) - span.start + span.first for page in range(first, last + 1)]
    own = places[begins]
    stored = quantized_pages.dequantize(
        layer.pages[step.page_tables[row, oldest:last]], layer.page_format, layer.tails.keys.dtype
    )
    index = torch.cat([torch.arange(oldest, last), torch.arange(first, last + 1)]).to(query.device)
    keys, values = (
        torch.cat((old, new[own])) for old, new in zip(stored, (layer.tails.keys, layer.tails.values), strict=True)
    )
    rotate_(keys, turns_of(index.int() * PAGE_TOKENS, frequencies)[:, :, None])
    keys, values = (part.transpose(0, 1).flatten(1, 2).to(query.dtype) for part in (keys, values))
    mask = _sees(span.start, span.end, index, last - oldest, window)
    # What no token may see is left out of the product too, for a float page's unwritten end may hold anything.
    values = values.masked_fill(~mask.any(0)[None, :, None], 0.0)
    shape = (span.count, keys.shape[0], -1, keys.shape[2])
    grouped = query[span.first : span.stop].view(shape).permute(1, 2, 0, 3)
    keys, values = (part[:, None].expand(-1, grouped.shape[1], -1, -1) for part in (keys, values))
    attended = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
    result[span.first : span.stop].view(shape).copy_(attended.permute(2, 0, 1, 3))


def _sees(start: int, end: int, index: torch.Tensor, stored: int, window: int | None) -> torch.Tensor:
    """[T, n * PAGE_TOKENS] bool: which of n pages' positions each token sees.

    index   [n]  where each page lies in its sequence
    stored  how many of them, from the first, are as stored; the others are in floats
    """
    positions = torch.arange(start, end, device=index.device)[:, None]
    offsets = torch.arange(PAGE_TOKENS, device=index.device)
    keys = (index[:, None] * PAGE_TOKENS + offsets).flatten()
    pages = index.repeat_interleave(PAGE_TOKENS)
    in_floats = torch.arange(len(pages), device=index.device) >= stored * PAGE_TOKENS
    is_own = pages == positions // PAGE_TOKENS
    seen = torch.where(in_floats, is_own, pages < positions // PAGE_TOKENS) & (keys <= positions)
    return seen if window is None else seen & (positions - keys < window)
