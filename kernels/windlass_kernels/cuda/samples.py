"""Random inputs for every device op: small ones that the emulator takes, and those of a layer of a model of 7 billion.

Values are such that results are of order one, so that one relative tolerance fits all. Used by tests, by the check on a
GPU, and by the resource report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from windlass_kernels.cuda import cache, products, rowwise
from windlass_kernels.cuda.schema import Array, Op
from windlass_kernels.page_format import PAGE_TOKENS, PageFormat, quantize_page

ROTARY_BASE = 10000.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One call."""

    label: str
    op: Op
    inputs: Mapping[str, Array]
    attributes: Mapping[str, int] = field(default_factory=dict)


class Maker:
    """Random arrays from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def halves(self, *shape: int, scale: float = 1.0) -> Array:
        return (self._random.standard_normal(shape, np.float32) * scale).astype(np.float16)

    def int8(self, rows: int, columns: int) -> tuple[Array, Array]:
        codes = self._random.integers(-127, 128, (rows, columns), np.int8)
        return codes, (self._random.uniform(0.5, 1.5, rows) / 73 / columns**0.5).astype(np.float32)

    def int4(self, rows: int, columns: int, group: int) -> tuple[Array, Array]:
        codes = self._random.integers(0, 256, (rows, columns // 2), np.uint8)
        scales = self._random.uniform(0.5, 1.5, (rows, columns // group)) / 4.6 / columns**0.5
        return codes, scales.astype(np.float16)

    def blocks(self, count: int, chosen: int) -> dict[str, Array]:
        active = np.full(count, -1, np.int32)
        active[:chosen] = np.sort(self._random.choice(count, chosen, replace=False))
        return {"active": active, "count": np.array([chosen], np.int32)}

    def integers(self, low: int, high: int, *shape: int) -> Array:
        return self._random.integers(low, high, shape, np.int32)

    def uniform(self, *shape: int) -> Array:
        return self._random.uniform(size=shape).astype(np.float32)


def rotary_tables(length: int, pairs: int) -> dict[str, Array]:
    angles = np.arange(length)[:, None] * ROTARY_BASE ** (-np.arange(pairs) / pairs)
    return {"cosines": np.cos(angles).astype(np.float32), "sines": np.sin(angles).astype(np.float32)}


def gemv(make: Maker, tokens: int, rows: int, columns: int, group: int | None = None) -> Sample:
    """`group` None: 8 bits."""
    x = make.halves(tokens, columns)
    codes, scales = make.int8(rows, columns) if group is None else make.int4(rows, columns, group)
    op = products.GEMV_INT8 if group is None else products.GEMV_INT4
    label = f"{rows} x {columns}, {tokens} tokens" + ("" if group is None else f", groups of {group}")
    return Sample(label, op, {"x": x, "codes": codes, "scales": scales})


def sparse_gate_up(
    make: Maker, tokens: int, neurons: int, hidden: int, chosen: int, group: int | None = None
) -> Sample:
    weights = [make.int8(neurons, hidden) if group is None else make.int4(neurons, hidden, group) for _ in range(2)]
    op = products.SPARSE_GATE_UP_INT8 if group is None else products.SPARSE_GATE_UP_INT4
    (gate, gate_scales), (up, up_scales) = weights
    inputs = {"x": make.halves(tokens, hidden), **make.blocks(neurons // 64, chosen)}
    inputs |= {"gate": gate, "gate_scales": gate_scales, "up": up, "up_scales": up_scales}
    label = f"{neurons} neurons, {chosen} of {neurons // 64} blocks, {tokens} tokens"
    return Sample(label if group is None else f"{label}, groups of {group}", op, inputs)


def sparse_down(make: Maker, tokens: int, hidden: int, neurons: int, chosen: int, group: int | None = None) -> Sample:
    blocks = neurons // 64
    inputs = {"a": make.halves(tokens, neurons), **make.blocks(blocks, chosen)}
    label = f"{neurons} neurons, {chosen} of {blocks} blocks, {tokens} tokens"
    if group is None:
        codes, scales = make.int8(hidden, neurons)
        inputs |= {"codes": products.block_major(codes), "scales": scales}
        return Sample(label, products.SPARSE_DOWN_INT8, inputs)
    codes, scales = make.int4(blocks * hidden, 64, group)
    scales = (scales / blocks**0.5).reshape(blocks, hidden, -1).astype(np.float16)
    inputs |= {"codes": codes.reshape(blocks, hidden, 32), "scales": scales}
    return Sample(f"{label}, groups of {group}", products.SPARSE_DOWN_INT4, inputs)


def gate_predictor(make: Maker, tokens: int, hidden: int, features: int, blocks: int, *, dense_above: int) -> Sample:
    """Cuts lie in gaps between scores, where rounding cannot move a block across."""
    x, (narrow, scales) = make.halves(tokens, hidden), make.int8(features, hidden)
    wide = make.halves(blocks, features, scale=features**-0.5)
    scores = np.sort(products.predict_scores(x, narrow, scales, wide), axis=0)
    edges = np.concatenate([scores[:1] - 1, scores, scores[-1:] + 1])
    # A gap at random, for each block its own: some blocks are wanted by no token, some by all.
    widest = np.argmax(np.diff(edges, axis=0) * make.uniform(tokens + 1, blocks), axis=0)
    columns = np.arange(blocks)
    cuts = ((edges[widest, columns] + edges[widest + 1, columns]) / 2).astype(np.float32)
    inputs = {"x": x, "narrow": narrow, "narrow_scales": scales, "wide": wide, "cuts": cuts}
    label = f"{blocks} blocks, {features} features, {tokens} tokens"
    return Sample(label, products.GATE_PREDICTOR, inputs, {"dense_above": dense_above})


def rms_norm_quantize(make: Maker, tokens: int, columns: int) -> Sample:
    inputs = {"residual": make.halves(tokens, columns), "delta": make.halves(tokens, columns)}
    inputs |= {"gain": make.halves(columns), "epsilon": np.array([1e-5], np.float32)}
    return Sample(f"{tokens} x {columns}", rowwise.RMS_NORM_QUANTIZE, inputs)


def swiglu_quantize(make: Maker, tokens: int, columns: int) -> Sample:
    return Sample(f"{tokens} x {columns}", rowwise.SWIGLU_QUANTIZE, {"gate_up": make.halves(tokens, 2 * columns)})


def _tails(make: Maker, count: int, heads: int, width: int) -> dict[str, Array]:
    shape = (count, heads, PAGE_TOKENS, width)
    return {"key_tails": make.halves(*shape), "value_tails": make.halves(*shape)}


def kv_write(make: Maker, tokens: int, heads: int, width: int, pairs: int, *, interleaved: int) -> Sample:
    """The last token stores nothing."""
    inputs = {"keys": make.halves(tokens, heads, width), "values": make.halves(tokens, heads, width)}
    inputs |= rotary_tables(PAGE_TOKENS, pairs)
    inputs |= {"tails": np.r_[np.arange(tokens - 1), -1].astype(np.int32), "offsets": make.integers(0, 64, tokens)}
    inputs |= _tails(make, tokens, heads, width)
    label = f"{tokens} tokens, {heads} heads of {width}, {pairs} pairs" + (", interleaved" if interleaved else "")
    return Sample(label, cache.KV_WRITE, inputs, {"interleaved": interleaved})


def kv_quantize(make: Maker, tails: int, heads: int, width: int) -> Sample:
    """Pages in reverse; the second tail writes nothing."""
    inputs = _tails(make, tails, heads, width)
    inputs["tails"] = np.r_[0, -1, np.arange(2, tails)].astype(np.int32)
    inputs["pages"] = np.arange(tails)[::-1].astype(np.int32)
    inputs["pool"] = np.zeros((tails, heads, PageFormat(4, width).size), np.uint8)
    return Sample(f"{tails} tails, {heads} heads of {width}", cache.KV_QUANTIZE, inputs)


def paged_attention(
    make: Maker,
    lengths: tuple[int, ...],
    query_heads: int,
    heads: int,
    width: int,
    *,
    pages_per_piece: int,
    pairs: int | None = None,
    interleaved: int = 0,
) -> Sample:
    """Sequences whose newest tokens have the positions `lengths`. A page is one of 32 random ones."""
    rows, page_format = len(lengths), PageFormat(4, width)
    pages = max(lengths) // PAGE_TOKENS + 1
    models = [
        quantize_page(make.halves(64, width) + make.halves(width), make.halves(64, width), page_format)
        for _ in range(32)
    ]
    count = rows * pages + 3
    pool = np.stack(models)[make.integers(0, len(models), count, heads)]
    table = np.arange(count)[::-1][: rows * pages].reshape(rows, pages).astype(np.int32)
    inputs = {
        "queries": make.halves(rows, query_heads, width),
        "pool": pool,
        "page_table": table,
        "page_bases": np.tile(np.arange(pages, dtype=np.int32) * PAGE_TOKENS, (rows, 1)),
        **_tails(make, rows + 1, heads, width),
        "tails": np.arange(rows, 0, -1, dtype=np.int32),
        "positions": np.array(lengths, np.int32),
        **rotary_tables(max(lengths) + 1, width // 2 if pairs is None else pairs),
        "scale": np.array([width**-0.5], np.float32),
    }
    where = ", ".join(map(str, lengths)) if len(set(lengths)) == len(lengths) else f"{rows} x {lengths[0]}"
    label = f"positions {where}; {query_heads} over {heads} heads of {width}"
    attributes = {"interleaved": interleaved, "pages_per_piece": pages_per_piece}
    return Sample(label, cache.PAGED_ATTENTION, inputs, attributes)


def attention_merge(make: Maker, rows: int, heads: int, pieces: int, width: int) -> Sample:
    """The last piece of the first head is empty."""
    summaries = np.stack([make.uniform(rows, heads, pieces) * 8, make.uniform(rows, heads, pieces) + 1], axis=-1)
    summaries[0, 0, -1] = (-np.inf, 0)
    partials = make.halves(rows, heads, pieces, width).astype(np.float32)
    partials[0, 0, -1] = np.nan
    label = f"{rows} x {heads} heads of {width}, {pieces} pieces"
    return Sample(label, cache.ATTENTION_MERGE, {"partials": partials, "summaries": summaries})


def build_small(seed: int) -> list[Sample]:
    """Every kernel at least once, with sizes that meet edges: rows beyond a strip, empty lists, lone pages."""
    make = Maker(seed)
    return [
        gemv(make, 1, 40, 128),
        gemv(make, 8, 16, 320),
        gemv(make, 3, 24, 2112),
        *(gemv(make, tokens, 40, 256, group) for tokens, group in ((1, 32), (5, 64), (8, 128))),
        sparse_gate_up(make, 2, 256, 128, 3),
        *(sparse_gate_up(make, 1, 192, 192, chosen, group) for chosen, group in ((2, 32), (3, 64), (0, 64))),
        sparse_down(make, 2, 40, 256, 3),
        *(sparse_down(make, 3, 24, 192, chosen, group) for chosen, group in ((2, 32), (3, 64), (0, 32))),
        gate_predictor(make, 1, 128, 16, 200, dense_above=200),
        gate_predictor(make, 4, 256, 48, 33, dense_above=33),
        gate_predictor(make, 8, 64, 64, 20, dense_above=5),
        rms_norm_quantize(make, 3, 2056),
        swiglu_quantize(make, 3, 4104),
        kv_write(make, 4, 2, 64, 32, interleaved=0),
        kv_write(make, 3, 1, 80, 16, interleaved=1),
        kv_quantize(make, 3, 2, 64),
        kv_quantize(make, 3, 1, 80),
        kv_quantize(make, 2, 1, 256),
        paged_attention(make, (337, 63, 0), 6, 2, 64, pages_per_piece=3),
        paged_attention(make, (200,), 8, 1, 128, pages_per_piece=2, pairs=32, interleaved=1),
        paged_attention(make, (130, 128), 20, 2, 128, pages_per_piece=8),
        attention_merge(make, 2, 3, 4, 64),
    ]
