"""Ops that multiply quantised weights with a few tokens: products, the sparse gated FFN, and the gate predictor.

Codes are row-major. 8 bits: [N, K] in -127 .. 127 and a float32 scale a row. 4 bits: [N, K / 2], two's complement in
-8 .. 7, the even column in the low half of a byte, and a float16 scale for every group of columns of a row.
Inputs and results are float16, sums float32. At most 8 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from windlass_kernels.cuda.schema import Argument, Array, Launch, Limit, Op, Sizes, divide_up

TOKENS = 8
STRIP_ROWS = 16
PRODUCT_THREADS = 256
NEURON_BLOCK = 64
"""Neurons of the FFN that are computed or left out together."""
MOST_BLOCKS = 1024
_STRIP_BYTES = 8 * STRIP_ROWS * TOKENS * 4
_PREDICTOR_BYTES = 32 * STRIP_ROWS * TOKENS * 4 + TOKENS * 64 * 2 + MOST_BLOCKS * 4 + 32 * 4

_FEW_TOKENS = Limit("1 to 8 tokens (M)", lambda s: 1 <= s["M"] <= TOKENS)


def dequantize_int8(codes: Array, scales: Array) -> Array:
    """[N, K] int8 and [N] float32 to [N, K] float64."""
    return codes.astype(np.float64) * scales.astype(np.float64)[:, None]


def dequantize_int4(codes: Array, scales: Array) -> Array:
    """[..., K / 2] uint8 and [..., K / group] float16 to [..., K] float64."""
    halves = np.stack((codes & 15, codes >> 4), axis=-1).reshape(*codes.shape[:-1], -1)
    values = (halves ^ 8).astype(np.float64) - 8
    groups = values.reshape(*scales.shape, -1) * scales.astype(np.float64)[..., None]
    return groups.reshape(values.shape)


def pack_int4(values: Array) -> Array:
    """[..., K] integers in -8 .. 7 to [..., K / 2] uint8."""
    low, high = values[..., 0::2] & 15, values[..., 1::2] & 15
    return (low | high << 4).astype(np.uint8)


def block_major(down: Array) -> Array:
    """A down projection [H, F] as the sparse FFN keeps it: [F / 64, H, 64], block by block."""
    rows, neurons = down.shape
    return np.ascontiguousarray(down.reshape(rows, neurons // NEURON_BLOCK, NEURON_BLOCK).swapaxes(0, 1))


def silu(x: Array) -> Array:
    result: Array = x / (1 + np.exp(-x))
    return result


def _gemv_int8(x: Array, codes: Array, scales: Array) -> tuple[Array, ...]:
    return (x.astype(np.float64) @ dequantize_int8(codes, scales).T,)


def _gemv_int4(x: Array, codes: Array, scales: Array) -> tuple[Array, ...]:
    return (x.astype(np.float64) @ dequantize_int4(codes, scales).T,)


def _chosen(active: Array, count: Array) -> list[int]:
    return [int(block) for block in active[: int(count[0])]]


def _gate_up(gate: Array, up: Array, x: Array, active: Array, count: Array) -> tuple[Array, ...]:
    """NaN where nothing is written: the slots beyond the chosen blocks."""
    wide = x.astype(np.float64)
    result = np.full((len(x), len(gate)), np.nan)
    for slot, block in enumerate(_chosen(active, count)):
        rows = slice(block * NEURON_BLOCK, (block + 1) * NEURON_BLOCK)
        here = slice(slot * NEURON_BLOCK, (slot + 1) * NEURON_BLOCK)
        result[:, here] = silu(wide @ gate[rows].T) * (wide @ up[rows].T)
    return (result,)


def _down(blocks: Array, a: Array, active: Array, count: Array) -> tuple[Array, ...]:
    """`blocks` [F / 64, H, 64] float64."""
    result = np.zeros((len(a), blocks.shape[1]))
    for slot, block in enumerate(_chosen(active, count)):
        result += a[:, slot * NEURON_BLOCK : (slot + 1) * NEURON_BLOCK].astype(np.float64) @ blocks[block].T
    return (result,)


def _sparse_gate_up_int8(
    x: Array, active: Array, count: Array, gate: Array, gate_scales: Array, up: Array, up_scales: Array
) -> tuple[Array, ...]:
    return _gate_up(dequantize_int8(gate, gate_scales), dequantize_int8(up, up_scales), x, active, count)


def _sparse_gate_up_int4(
    x: Array, active: Array, count: Array, gate: Array, gate_scales: Array, up: Array, up_scales: Array
) -> tuple[Array, ...]:
    return _gate_up(dequantize_int4(gate, gate_scales), dequantize_int4(up, up_scales), x, active, count)


def _sparse_down_int8(a: Array, active: Array, count: Array, codes: Array, scales: Array) -> tuple[Array, ...]:
    return _down(codes.astype(np.float64) * scales.astype(np.float64)[None, :, None], a, active, count)


def _sparse_down_int4(a: Array, active: Array, count: Array, codes: Array, scales: Array) -> tuple[Array, ...]:
    return _down(dequantize_int4(codes, scales), a, active, count)


def predict_scores(x: Array, narrow: Array, narrow_scales: Array, wide: Array) -> Array:
    """[M, H] to the scores of blocks [M, B], float64."""
    features = np.maximum(x.astype(np.float64) @ dequantize_int8(narrow, narrow_scales).T, 0)
    scores: Array = features @ wide.astype(np.float64).T
    return scores


def list_blocks(wanted: Array, dense_above: int) -> tuple[Array, Array]:
    """The union of wanted blocks [M, B]: `active` [B], -1 beyond its `count` [1]; above `dense_above` of them, all."""
    blocks = wanted.shape[1]
    chosen = np.flatnonzero(wanted.any(axis=0))
    if len(chosen) > dense_above:
        chosen = np.arange(blocks)
    active = np.full(blocks, -1, np.int32)
    active[: len(chosen)] = chosen
    return active, np.array([len(chosen)], np.int32)


def _gate_predictor(
    x: Array, narrow: Array, narrow_scales: Array, wide: Array, cuts: Array, *, dense_above: int
) -> tuple[Array, ...]:
    return list_blocks(predict_scores(x, narrow, narrow_scales, wide) > cuts, dense_above)


def _arguments(*rows: tuple[str, str, str]) -> tuple[Argument, ...]:
    return tuple(Argument(name, dtype, tuple(shape.split())) for name, dtype, shape in rows)


def _result(name: str, shape: str) -> tuple[Argument, ...]:
    """Sums are float32, so rounding to float16 is what is left: 2 ** -11, and as much for the order of summing."""
    return (Argument(name, "float16", tuple(shape.split()), tolerance=2**-10),)


def _strip_launch(dimension: str) -> Callable[[Mapping[str, Any]], Launch]:
    def launch(sizes: Mapping[str, Any]) -> Launch:
        return Launch((divide_up(sizes[dimension], STRIP_ROWS), 1, 1), PRODUCT_THREADS, _STRIP_BYTES)

    return launch


def _gate_up_launch(sizes: Mapping[str, Any]) -> Launch:
    return Launch((divide_up(sizes["F"], STRIP_ROWS), 1, 1), PRODUCT_THREADS, 2 * _STRIP_BYTES)


def _int4_kernel(name: str) -> Callable[[Sizes], str]:
    return lambda sizes: f"windlass_{name}_g{sizes['group']}"


def _group_limit(columns: str, allowed: tuple[int, ...]) -> Limit:
    text = " or ".join(map(str, allowed))
    return Limit(f"groups of {text} columns", lambda s: s["group"] in allowed and s[columns] % s["group"] == 0)


_SIXTY_FOURS = Limit("a number of columns (K) that is a multiple of 64", lambda s: s["K"] % 64 == 0)
_WHOLE_BLOCKS = Limit(
    f"neurons (F) in 1 to {MOST_BLOCKS} blocks of 64", lambda s: s["F"] % 64 == 0 and 0 < s["F"] // 64 <= MOST_BLOCKS
)
_LIST = _arguments(("active", "int32", "F/64"), ("count", "int32", "1"))

GEMV_INT8 = Op(
    name="gemv_int8",
    source="gemv.cu",
    summary="x W^T for up to 8 tokens, W in 8 bits",
    inputs=_arguments(("x", "float16", "M K"), ("codes", "int8", "N K"), ("scales", "float32", "N")),
    integers=("M", "N", "K"),
    outputs=_result("y", "M N"),
    kernel=lambda _: "windlass_gemv_int8",
    launch=_strip_launch("N"),
    reference=_gemv_int8,
    traffic=lambda s: s["N"] * s["K"] + 4 * s["N"] + 2 * s["M"] * (s["N"] + s["K"]),
    limits=(_FEW_TOKENS, _SIXTY_FOURS),
    lowering="dequantize, matrix multiply",
)

GEMV_INT4 = Op(
    name="gemv_int4",
    source="gemv.cu",
    summary="x W^T for up to 8 tokens, W in 4 bits",
    inputs=_arguments(("x", "float16", "M K"), ("codes", "uint8", "N K/2"), ("scales", "float16", "N G")),
    integers=("M", "N", "K"),
    outputs=_result("y", "M N"),
    kernel=_int4_kernel("gemv_int4"),
    launch=_strip_launch("N"),
    reference=_gemv_int4,
    traffic=lambda s: s["N"] * s["K"] // 2 + 2 * s["N"] * s["G"] + 2 * s["M"] * (s["N"] + s["K"]),
    derived={"group": lambda s: s["K"] // max(1, s["G"])},
    limits=(_FEW_TOKENS, _SIXTY_FOURS, _group_limit("K", (32, 64, 128))),
    lowering="dequantize, matrix multiply",
)

SPARSE_GATE_UP_INT8 = Op(
    name="sparse_gate_up_int8",
    source="sparse_ffn.cu",
    summary="silu(x gate^T) * (x up^T) for chosen blocks of 64 neurons, in the order of the list, 8 bits",
    inputs=(
        *_arguments(("x", "float16", "M K")),
        *_LIST,
        *_arguments(("gate", "int8", "F K"), ("gate_scales", "float32", "F")),
        *_arguments(("up", "int8", "F K"), ("up_scales", "float32", "F")),
    ),
    integers=("M", "F", "K"),
    outputs=_result("a", "M F"),
    kernel=lambda _: "windlass_sparse_gate_up_int8",
    launch=_gate_up_launch,
    reference=_sparse_gate_up_int8,
    traffic=lambda s: 2 * s["F"] * (s["K"] + 4),
    limits=(_FEW_TOKENS, _SIXTY_FOURS, _WHOLE_BLOCKS),
)

SPARSE_GATE_UP_INT4 = Op(
    name="sparse_gate_up_int4",
    source="sparse_ffn.cu",
    summary="silu(x gate^T) * (x up^T) for chosen blocks of 64 neurons, in the order of the list, 4 bits",
    inputs=(
        *_arguments(("x", "float16", "M K")),
        *_LIST,
        *_arguments(("gate", "uint8", "F K/2"), ("gate_scales", "float16", "F G")),
        *_arguments(("up", "uint8", "F K/2"), ("up_scales", "float16", "F G")),
    ),
    integers=("M", "F", "K"),
    outputs=_result("a", "M F"),
    kernel=_int4_kernel("sparse_gate_up_int4"),
    launch=_gate_up_launch,
    reference=_sparse_gate_up_int4,
    traffic=lambda s: 2 * s["F"] * (s["K"] // 2 + 2 * s["G"]),
    derived={"group": lambda s: s["K"] // max(1, s["G"])},
    limits=(_FEW_TOKENS, _SIXTY_FOURS, _WHOLE_BLOCKS, _group_limit("K", (32, 64))),
)

SPARSE_DOWN_INT8 = Op(
    name="sparse_down_int8",
    source="sparse_ffn.cu",
    summary="the down projection of chosen blocks, kept block by block, 8 bits",
    inputs=(
        *_arguments(("a", "float16", "M F")),
        *_LIST,
        *_arguments(("codes", "int8", "F/64 H 64"), ("scales", "float32", "H")),
    ),
    integers=("M", "H", "F"),
    outputs=_result("y", "M H"),
    kernel=lambda _: "windlass_sparse_down_int8",
    launch=_strip_launch("H"),
    reference=_sparse_down_int8,
    traffic=lambda s: s["F"] * s["H"] + 4 * s["H"],
    limits=(_FEW_TOKENS, _WHOLE_BLOCKS),
)

SPARSE_DOWN_INT4 = Op(
    name="sparse_down_int4",
    source="sparse_ffn.cu",
    summary="the down projection of chosen blocks, kept block by block, 4 bits; a group stays within a block",
    inputs=(
        *_arguments(("a", "float16", "M F")),
        *_LIST,
        *_arguments(("codes", "uint8", "F/64 H 32"), ("scales", "float16", "F/64 H G")),
    ),
    integers=("M", "H", "F"),
    outputs=_result("y", "M H"),
    kernel=_int4_kernel("sparse_down_int4"),
    launch=_strip_launch("H"),
    reference=_sparse_down_int4,
    traffic=lambda s: s["F"] * s["H"] // 2 + 2 * s["F"] // 64 * s["H"] * s["G"],
    derived={"group": lambda s: NEURON_BLOCK // max(1, s["G"])},
    limits=(_FEW_TOKENS, _WHOLE_BLOCKS, Limit("groups of 32 or 64 neurons", lambda s: s["G"] in (1, 2))),
)

GATE_PREDICTOR = Op(
    name="gate_predictor",
    source="gate_predictor.cu",
    summary="the list of blocks that any token wants: positive part of a narrow product, a wide one, a cut per block",
    inputs=_arguments(
        ("x", "float16", "M H"),
        ("narrow", "int8", "R H"),
        ("narrow_scales", "float32", "R"),
        ("wide", "float16", "B R"),
        ("cuts", "float32", "B"),
    ),
    integers=("M", "H", "R", "B", "dense_above"),
    outputs=_arguments(("active", "int32", "B"), ("count", "int32", "1")),
    kernel=lambda _: "windlass_gate_predictor",
    launch=lambda _: Launch((1, 1, 1), 1024, _PREDICTOR_BYTES),
    reference=_gate_predictor,
    traffic=lambda s: s["R"] * s["H"] + 2 * s["B"] * s["R"],
    attributes=("dense_above",),
    limits=(
        _FEW_TOKENS,
        Limit("a hidden size (H) that is a multiple of 64", lambda s: s["H"] % 64 == 0),
        Limit("16, 32, 48 or 64 features (R)", lambda s: s["R"] in (16, 32, 48, 64)),
        Limit(f"1 to {MOST_BLOCKS} blocks (B)", lambda s: 1 <= s["B"] <= MOST_BLOCKS),
    ),
)

OPS = (
    GEMV_INT8,
    GEMV_INT4,
    SPARSE_GATE_UP_INT8,
    SPARSE_GATE_UP_INT4,
    SPARSE_DOWN_INT8,
    SPARSE_DOWN_INT4,
    GATE_PREDICTOR,
)
