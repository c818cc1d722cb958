"""Key/value pages of 4 and 8 bits: filling them and attending to them. `page_format` defines their bytes.

A sequence's unfinished page lies in a float page of its own, the tail. `ops.rope_and_store` writes tokens there, keys
turned by their place in the page; a full page is quantised, and the tail is free for the next. Both ops are batch
invariant as those of `ops` are. CPU tensors run on the native kernels; other devices, and machines without a compiler,
on torch, which computes the same numbers up to rounding.

Dimensions: T tokens of all rows, H heads, G key/value heads, D head width, P pages, F float pages, S bytes of a head
page, R sequences, B pages per sequence, C rotated pairs, N pages to fill.
"""

from __future__ import annotations

import torch
from torch import Tensor

from windlass_kernels import ops, reference
from windlass_kernels.checks import (
    FLOAT,
    INDEX,
    PAGE_TOKENS,
    STORED,
    WEIGHT_CODES,
    ShapeError,
    require,
    require_dimensions,
)
from windlass_kernels.page_format import GROUP_CHANNELS, PageFormat

_BYTES = (torch.uint8,)


def fill(
    pages: Tensor, page_ids: Tensor, tail_keys: Tensor, tail_values: Tensor, tails: Tensor, page_format: PageFormat
) -> None:
    """Quantise full float pages.

    pages       [P, G, S]      uint8                       written at `page_ids`
    page_ids    [N]            int32
    tail_keys, tail_values [F, G, 64, D] float32, bfloat16 or float16, read at `tails`
    tails       [N]            int32
    """
    op, device = "fill", pages.device
    kv_heads = _require_pools(op, pages, tail_keys, tail_values, page_format)
    (count,) = require_dimensions(op, "page_ids", page_ids, "N")
    require(op, "page_ids", page_ids, (count,), INDEX, device)
    require(op, "tails", tails, (count,), INDEX, device)
    if count == 0:  # most steps finish no page
        return
    library = ops.library_for(device)
    if library is None:
        at = tails.long()
        pages[page_ids.long()] = quantize(tail_keys[at], tail_values[at], page_format)
        return
    library.quantize_pages(
        tail_keys.data_ptr(),
        tail_values.data_ptr(),
        tails.data_ptr(),
        page_ids.data_ptr(),
        pages.data_ptr(),
        count,
        kv_heads,
        page_format.width,
        page_format.bits,
        WEIGHT_CODES[tail_keys.dtype],
    )


def attention(
    query: Tensor,
    pages: Tensor,
    tail_keys: Tensor,
    tail_values: Tensor,
    page_table: Tensor,
    tail_of: Tensor,
    row_of: Tensor,
    positions: Tensor,
    base_cos: Tensor,
    base_sin: Tensor,
    scale: float,
    page_format: PageFormat,
    window: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """Causal attention of ragged tokens: to the pages before a token's own as stored, to its own page in the tail.

    query        [T, H, D]  float32  turned by its position, neighbours being pairs; H is a multiple of G
    pages        [P, G, S]  uint8
    tail_keys, tail_values [F, G, 64, D] float32, bfloat16 or float16
    page_table   [R, B]     int32    page ids of each sequence, oldest first; those before a token's own are read
    tail_of      [T]        int32    the float page that holds the token's own page
    row_of       [T]        int32    sequence of each token
    positions    [T]        int32    a token sees its own row up to here; the last `window` only, if window > 0
    base_cos, base_sin [B, C] float32 angles of position 64 * b, by page index b
    returns      [T, H, D]  float32
    """
    op, device = "attention", query.device
    kv_heads = _require_pools(op, pages, tail_keys, tail_values, page_format)
    tokens, heads, width = require_dimensions(op, "query", query, "T H D")
    if width != page_format.width or heads % kv_heads:
        raise ShapeError(
            f"{op}: query must be [T, a multiple of {kv_heads}, {page_format.width}] for these pages, "
            f"found {list(query.shape)}"
        )
    rows, table_width = require_dimensions(op, "page_table", page_table, "R B")
    _, half = require_dimensions(op, "base_cos", base_cos, "B C")
    require(op, "query", query, (tokens, heads, width), FLOAT, device)
    require(op, "page_table", page_table, (rows, table_width), INDEX, device)
    for name, index in (("tail_of", tail_of), ("row_of", row_of), ("positions", positions)):
        require(op, name, index, (tokens,), INDEX, device)
    require(op, "base_cos", base_cos, (table_width, half), FLOAT, device)
    require(op, "base_sin", base_sin, (table_width, half), FLOAT, device)
    if out is not None:
        require(op, "out", out, (tokens, heads, width), FLOAT, device)
    y = torch.empty_like(query) if out is None else out
    library = ops.library_for(device)
    if library is None:
        tails = (tail_keys, tail_values)
        tables = (page_table, tail_of, row_of, positions)
        return y.copy_(attend_slowly(query, pages, tails, tables, (base_cos, base_sin), scale, page_format, window))
    library.stored_attention(
        query.data_ptr(),
        pages.data_ptr(),
        tail_keys.data_ptr(),
        tail_values.data_ptr(),
        page_table.data_ptr(),
        tail_of.data_ptr(),
        row_of.data_ptr(),
        positions.data_ptr(),
        base_cos.data_ptr(),
        base_sin.data_ptr(),
        y.data_ptr(),
        tokens,
        heads,
        kv_heads,
        width,
        half,
        table_width,
        window,
        scale,
        page_format.bits,
        WEIGHT_CODES[tail_keys.dtype],
    )
    return y


def quantize(keys: Tensor, values: Tensor, page_format: PageFormat) -> Tensor:
    """`page_format.quantize_page` of many head pages in torch, bit for bit: two [..., 64, D] to [..., S] uint8."""
    key_parts = _quantize_rows(keys.transpose(-1, -2), page_format.bits)
    groups = [_quantize_rows(group, page_format.bits) for group in torch.split(values, GROUP_CHANNELS, dim=-1)]
    codes = torch.cat([codes for codes, _, _ in groups], dim=-1)
    scales, minima = (torch.stack([group[part] for group in groups], dim=-2) for part in (1, 2))
    parts = [_pack(key_parts[0], page_format.bits), *key_parts[1:], _pack(codes, page_format.bits), scales, minima]
    lead = keys.shape[:-2]
    return torch.cat([part.contiguous().reshape(*lead, -1).view(torch.uint8) for part in parts], dim=-1)


def dequantize(pages: Tensor, page_format: PageFormat, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """`page_format.dequantize_page` of many head pages in torch: [..., S] uint8 to keys and values [..., 64, D]."""
    f, lead = page_format, pages.shape[:-1]

    def halves(start: int, stop: int) -> Tensor:
        return pages[..., start:stop].contiguous().view(torch.float16).to(dtype)

    key_codes = _unpack(pages[..., : f.key_scale].reshape(*lead, f.width * f.bits // 8, PAGE_TOKENS), f.bits).to(dtype)
    keys = halves(f.key_minimum, f.value_codes)[..., None] + key_codes * halves(f.key_scale, f.key_minimum)[..., None]
    value_codes = _unpack(
        pages[..., f.value_codes : f.value_scale].reshape(*lead, PAGE_TOKENS * f.bits // 8, f.width), f.bits
    ).to(dtype)
    scales, minima = (
        part.reshape(*lead, f.groups, PAGE_TOKENS)
        .transpose(-1, -2)
        .repeat_interleave(GROUP_CHANNELS, -1)[..., : f.width]
        for part in (halves(f.value_scale, f.value_minimum), halves(f.value_minimum, f.size))
    )
    return keys.transpose(-1, -2), minima + value_codes * scales


def attend_slowly(
    query: Tensor,
    pages: Tensor,
    tails: tuple[Tensor, Tensor],
    tables: tuple[Tensor, Tensor, Tensor, Tensor],
    base: tuple[Tensor, Tensor],
    scale: float,
    page_format: PageFormat,
    window: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """See `attention`; keys are turned forward here instead of queries backward. One token at a time."""
    page_table, tail_of, row_of, positions = tables
    group = query.shape[1] // pages.shape[1]
    result = torch.empty(query.shape, dtype=dtype, device=query.device)
    for token, (row, position, tail) in enumerate(
        zip(row_of.tolist(), positions.tolist(), tail_of.tolist(), strict=True)
    ):
        own, first = position // PAGE_TOKENS, max(0, position + 1 - window) if window > 0 else 0
        stored = dequantize(pages[page_table[row, :own].long()], page_format, dtype)
        parts = [torch.cat((old, new[tail : tail + 1].to(dtype))) for old, new in zip(stored, tails, strict=True)]
        # Turning expects [tokens, heads, D]; the first axis of the angles is the page here.
        turned = reference.rotate(
            parts[0].flatten(1, 2), base[0][: own + 1].to(dtype), base[1][: own + 1].to(dtype), interleaved=True
        ).view(parts[0].shape)
        keys, values = (
            part.transpose(1, 2).flatten(0, 1)[first : position + 1].repeat_interleave(group, dim=1)
            for part in (turned, parts[1])
        )
        scores = torch.einsum("hd,shd->hs", query[token].to(dtype), keys) * scale
        result[token] = torch.einsum("hs,shd->hd", scores.softmax(-1), values)
    return result


def _quantize_rows(rows: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    wide, largest = rows.float(), 2.0**bits - 1
    sound = wide.isfinite().all(-1)
    minimum = torch.where(sound, wide.amin(-1) + 0.0, torch.nan).half()
    low = minimum.float()
    scale = ((wide.amax(-1) - low) / largest).half()
    inverse = torch.where(scale > 0, 1.0 / scale.float(), 0.0)
    codes = ((wide - low[..., None]) * inverse[..., None]).round().nan_to_num(0.0).clamp(0, largest)
    return codes.to(torch.uint8), scale, minimum


def _pack(codes: Tensor, bits: int) -> Tensor:
    return codes if bits == 8 else codes[..., 0::2, :] | codes[..., 1::2, :] << 4


def _unpack(packed: Tensor, bits: int) -> Tensor:
    return packed if bits == 8 else torch.stack((packed & 15, packed >> 4), dim=-2).flatten(-3, -2)


def _require_pools(op: str, pages: Tensor, tail_keys: Tensor, tail_values: Tensor, page_format: PageFormat) -> int:
    """G of the pools."""
    count, kv_heads, _ = require_dimensions(op, "pages", pages, "P G S")
    floats = require_dimensions(op, "tail_keys", tail_keys, "F G 64 D")
    shape = (floats[0], kv_heads, PAGE_TOKENS, page_format.width)
    require(op, "pages", pages, (count, kv_heads, page_format.size), _BYTES, pages.device)
    require(op, "tail_keys", tail_keys, shape, STORED, pages.device)
    require(op, "tail_values", tail_values, shape, (tail_keys.dtype,), pages.device)
    return kv_heads
