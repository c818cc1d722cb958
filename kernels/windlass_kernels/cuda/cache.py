"""Ops on the 4-bit key/value cache: write to a tail, quantise a full tail, attend, merge. Bytes: `page_format`.

Dimensions: R sequences with one new token each, T tokens, Q query heads, H key/value heads, D head size, A tails,
P pages of a pool, B pages a sequence may have, Z bytes of a head page, L positions and C pairs of the rotary tables,
S pieces. A layer's pool is [P, H, Z], its tails are [A, H, 64, D] float16 for keys (turned by their place in the page)
and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from windlass_kernels.cuda.schema import Argument, Array, Launch, Limit, Op, Sizes, divide_up
from windlass_kernels.page_format import PAGE_TOKENS, PageFormat, dequantize_page, quantize_page

WIDTHS = (64, 128)
"""Head sizes that the attention kernel is compiled for."""
HEADS_PER_PART = 8
_WARPS = 4


def turn(x: Array, angles_cos: Array, angles_sin: Array, interleaved: int) -> Array:
    """Rotate the first 2C of the last axis by [C] angles (broadcast over the rest), float64."""
    half = angles_cos.shape[-1]
    wide, cos, sin = x.astype(np.float64), angles_cos.astype(np.float64), angles_sin.astype(np.float64)
    turned = wide.copy()
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(half), slice(half, 2 * half))
    )
    turned[..., first] = wide[..., first] * cos - wide[..., second] * sin
    turned[..., second] = wide[..., first] * sin + wide[..., second] * cos
    return turned


def _kv_write(
    keys: Array,
    values: Array,
    cosines: Array,
    sines: Array,
    tails: Array,
    offsets: Array,
    key_tails: Array,
    value_tails: Array,
    *,
    interleaved: int,
) -> tuple[Array, ...]:
    new_keys, new_values = key_tails.copy(), value_tails.copy()
    for token, (tail, offset) in enumerate(zip(tails, offsets, strict=True)):
        if tail >= 0:
            new_keys[tail, :, offset] = turn(keys[token], cosines[offset], sines[offset], interleaved)
            new_values[tail, :, offset] = values[token]
    return new_keys, new_values


def _kv_quantize(key_tails: Array, value_tails: Array, tails: Array, pages: Array, pool: Array) -> tuple[Array, ...]:
    result = pool.copy()
    page_format = PageFormat(4, key_tails.shape[-1])
    for tail, page in zip(tails, pages, strict=True):
        for head in range(pool.shape[1]):
            if tail >= 0:
                result[page, head] = quantize_page(key_tails[tail, head], value_tails[tail, head], page_format)
    return (result,)


def _attend_page(query: Array, keys: Array, values: Array) -> tuple[Array, Array, Array]:
    """[G, D] against [n, D]: output not divided [G, D], largest score [G] in log2 units, total [G]."""
    scores = query @ keys.T
    largest = scores.max(axis=1)
    weights = np.exp2(scores - largest[:, None])
    return weights @ values, largest, weights.sum(axis=1)


def _join(outputs: Array, largest: Array, totals: Array) -> tuple[Array, Array, Array]:
    """Parts along the first axis to one: [n, G, D], [n, G], [n, G]."""
    most = largest.max(axis=0)
    factors = np.where(np.isneginf(largest), 0, np.exp2(largest - np.where(np.isneginf(most), 0, most)))
    return (outputs * factors[..., None]).sum(axis=0), most, (totals * factors).sum(axis=0)


def _paged_attention(
    queries: Array,
    pool: Array,
    page_table: Array,
    page_bases: Array,
    key_tails: Array,
    value_tails: Array,
    tails: Array,
    positions: Array,
    cosines: Array,
    sines: Array,
    scale: Array,
    *,
    interleaved: int,
    pages_per_piece: int,
) -> tuple[Array, ...]:
    """Partials of pieces that hold no page are NaN: nothing is written there."""
    rows, heads, width = queries.shape
    kv_heads = pool.shape[1]
    group, page_format = heads // kv_heads, PageFormat(4, width)
    pieces = -(-page_table.shape[1] // pages_per_piece)
    partials = np.full((rows, heads, pieces, width), np.nan)
    summaries = np.zeros((rows, heads, pieces, 2))
    summaries[..., 0] = -np.inf
    for row, kv_head, piece in np.ndindex(rows, kv_heads, pieces):
        position = int(positions[row])
        whole = position // PAGE_TOKENS
        own = slice(kv_head * group, (kv_head + 1) * group)
        parts = []
        for index in range(piece * pages_per_piece, min((piece + 1) * pages_per_piece, whole + 1)):
            delta = position - int(page_bases[row, index])
            query = turn(queries[row, own], cosines[delta], sines[delta], interleaved) * float(scale[0]) * np.log2(np.e)
            if index < whole:
                page = pool[page_table[row, index], kv_head]
                keys, values = (part.astype(np.float64) for part in dequantize_page(page, page_format))
            else:
                seen = position % PAGE_TOKENS + 1
                keys = key_tails[tails[row], kv_head, :seen].astype(np.float64)
                values = value_tails[tails[row], kv_head, :seen].astype(np.float64)
            parts.append(_attend_page(query, keys, values))
        if parts:
            joined = _join(*(np.stack(column) for column in zip(*parts, strict=True)))
            partials[row, own, piece] = joined[0]
            summaries[row, own, piece] = np.stack(joined[1:], axis=-1)
    return partials, summaries


def _attention_merge(partials: Array, summaries: Array) -> tuple[Array, ...]:
    wide = np.where(np.isneginf(summaries[..., :1]), 0, partials).astype(np.float64)
    joined, _, total = _join(*(np.moveaxis(part, 2, 0) for part in (wide, summaries[..., 0], summaries[..., 1])))
    return (np.divide(joined, total[..., None], out=np.zeros_like(joined), where=total[..., None] > 0),)


def _write_launch(sizes: Mapping[str, Any]) -> Launch:
    return Launch((sizes["T"], sizes["H"], 1), 128, 0)


def _quantize_launch(sizes: Mapping[str, Any]) -> Launch:
    """Shared memory: a tail, and what a row is rounded with (12 bytes), of channels or of tokens and groups."""
    return Launch((sizes["T"], sizes["H"], 1), 256, PAGE_TOKENS * sizes["D"] * 2 + 12 * (sizes["D"] + PAGE_TOKENS))


def _attention_launch(sizes: Mapping[str, Any]) -> Launch:
    parts = divide_up(sizes["Q"] // sizes["H"], HEADS_PER_PART)
    shared = _WARPS * HEADS_PER_PART * (sizes["D"] + 2) * 4
    return Launch((sizes["S"], sizes["H"] * parts, sizes["R"]), 128, shared)


def _merge_launch(sizes: Mapping[str, Any]) -> Launch:
    return Launch((sizes["R"] * sizes["Q"], 1, 1), 256, 0)


def _page_size(sizes: Sizes) -> bool:
    return sizes["Z"] == PageFormat(4, sizes["D"]).size


_WHOLE_PAGES = Limit("head pages of the size that the head size (D) gives (Z)", _page_size)
_TURNED_PAIRS = Limit("at most D pairs to turn (2 C), C even", lambda s: 2 * s["C"] <= s["D"] and s["C"] % 2 == 0)
_TAILS = (
    Argument("key_tails", "float16", ("A", "H", "64", "D"), tolerance=2**-10),
    Argument("value_tails", "float16", ("A", "H", "64", "D")),
)
# Turned queries times key scales, and weights of tokens times value scales, are rounded to float16 once.
_PIECES = (
    Argument("partials", "float32", ("R", "Q", "S", "D"), tolerance=2**-8),
    Argument("summaries", "float32", ("R", "Q", "S", "2"), tolerance=2**-9),
)
_TABLES = (Argument("cosines", "float32", ("L", "C")), Argument("sines", "float32", ("L", "C")))

KV_WRITE = Op(
    name="kv_write",
    source="kv_page.cu",
    summary="new keys, turned by their place, and values into the tails of their sequences; tail -1 stores nothing",
    inputs=(
        Argument("keys", "float16", ("T", "H", "D")),
        Argument("values", "float16", ("T", "H", "D")),
        *_TABLES,
        Argument("tails", "int32", ("T",)),
        Argument("offsets", "int32", ("T",)),
        *_TAILS,
    ),
    integers=("H", "D", "C", "interleaved"),
    outputs=_TAILS,
    kernel=lambda _: "windlass_kv_write",
    launch=_write_launch,
    reference=_kv_write,
    traffic=lambda s: 8 * s["T"] * s["H"] * s["D"],
    attributes=("interleaved",),
    limits=(_TURNED_PAIRS, Limit("angles for 64 places (L)", lambda s: s["L"] >= PAGE_TOKENS)),
    in_place=("key_tails", "value_tails"),
)

KV_QUANTIZE = Op(
    name="kv_quantize",
    source="kv_page.cu",
    summary="full tails into 4-bit pages of a pool; tail -1 writes nothing",
    inputs=(
        *_TAILS,
        Argument("tails", "int32", ("T",)),
        Argument("pages", "int32", ("T",)),
        Argument("pool", "uint8", ("P", "H", "Z")),
    ),
    integers=("H", "D", "Z"),
    outputs=(Argument("pool", "uint8", ("P", "H", "Z")),),
    kernel=lambda _: "windlass_kv_quantize",
    launch=_quantize_launch,
    reference=_kv_quantize,
    traffic=lambda s: s["T"] * s["H"] * (4 * PAGE_TOKENS * s["D"] + s["Z"]),
    limits=(_WHOLE_PAGES, Limit("a head size (D) that is a multiple of 16, up to 256", lambda s: s["D"] <= 256)),
    in_place=("pool",),
)

PAGED_ATTENTION = Op(
    name="paged_attention",
    source="paged_attention.cu",
    summary="one token a sequence against its 4-bit pages and its tail, in pieces",
    inputs=(
        Argument("queries", "float16", ("R", "Q", "D")),
        Argument("pool", "uint8", ("P", "H", "Z")),
        Argument("page_table", "int32", ("R", "B")),
        Argument("page_bases", "int32", ("R", "B")),
        *_TAILS,
        Argument("tails", "int32", ("R",)),
        Argument("positions", "int32", ("R",)),
        *_TABLES,
        Argument("scale", "float32", ("1",)),
    ),
    integers=("Q", "H", "Z", "B", "C", "interleaved", "pages_per_piece", "S"),
    outputs=_PIECES,
    kernel=lambda sizes: f"windlass_paged_attention_d{sizes['D']}",
    launch=_attention_launch,
    reference=_paged_attention,
    traffic=lambda s: s["R"] * s["B"] * s["H"] * s["Z"],
    attributes=("interleaved", "pages_per_piece"),
    derived={"S": lambda s: divide_up(s["B"], max(1, s["pages_per_piece"]))},
    limits=(
        _WHOLE_PAGES,
        _TURNED_PAIRS,
        Limit("a head size (D) of 64 or 128", lambda s: s["D"] in WIDTHS),
        Limit("query heads (Q) that are a multiple of key/value heads (H)", lambda s: s["Q"] % s["H"] == 0),
        Limit("one page a piece or more", lambda s: s["pages_per_piece"] >= 1),
    ),
)

ATTENTION_MERGE = Op(
    name="attention_merge",
    source="paged_attention.cu",
    summary="the pieces of paged_attention to its result",
    inputs=_PIECES,
    integers=("S", "D"),
    outputs=(Argument("result", "float16", ("R", "Q", "D"), tolerance=2**-10),),
    kernel=lambda _: "windlass_attention_merge",
    launch=_merge_launch,
    reference=_attention_merge,
    traffic=lambda s: s["R"] * s["Q"] * (s["S"] * (4 * s["D"] + 8) + 2 * s["D"]),
)

OPS = (KV_WRITE, KV_QUANTIZE, PAGED_ATTENTION, ATTENTION_MERGE)
