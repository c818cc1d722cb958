"""Ops that end in 8-bit codes with a scale per token: a norm or an activation fused with the rounding that follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from windlass_kernels.cuda.products import silu
from windlass_kernels.cuda.schema import Argument, Array, Launch, Limit, Op

LARGEST_CODE = 127
_VECTOR = 8
_REDUCTION_BYTES = 32 * 4


def quantize_rows(values: Array) -> tuple[Array, Array]:
    """[M, F] to codes [M, F] int8 and scales [M] float32; a row with an infinity or a NaN has scale NaN and codes 0."""
    largest = np.abs(values).max(axis=1)
    usable = np.isfinite(largest)
    inverse = np.divide(LARGEST_CODE, largest, out=np.zeros_like(largest), where=usable & (largest > 0))
    codes = np.rint(np.where(usable[:, None], values, 0) * inverse[:, None]).astype(np.int8)
    return codes, np.where(usable, largest / LARGEST_CODE, np.nan).astype(np.float32)


def _rms_norm_quantize(residual: Array, delta: Array, gain: Array, epsilon: Array) -> tuple[Array, ...]:
    summed = (residual.astype(np.float32) + delta.astype(np.float32)).astype(np.float16)
    wide = summed.astype(np.float64)
    root = np.sqrt((wide**2).mean(axis=1, keepdims=True) + float(epsilon[0]))
    return summed, *quantize_rows(wide / root * gain.astype(np.float64))


def _swiglu_quantize(gate_up: Array) -> tuple[Array, ...]:
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=1)
    return quantize_rows(silu(gate) * up)


def _row_launch(threads: int) -> Callable[[Mapping[str, Any]], Launch]:
    def launch(sizes: Mapping[str, Any]) -> Launch:
        return Launch((sizes["M"], 1, 1), threads, _REDUCTION_BYTES)

    return launch


def _columns_limit(most: int) -> Limit:
    return Limit(
        f"columns (F) that are a multiple of 8, up to {most}", lambda s: s["F"] % 8 == 0 and 0 < s["F"] <= most
    )


# A value in the middle between two codes may fall to either side.
_CODES = (
    Argument("codes", "int8", ("M", "F"), tolerance=1 / LARGEST_CODE),
    Argument("scales", "float32", ("M",), tolerance=1e-5),
)

RMS_NORM_QUANTIZE = Op(
    name="rms_norm_quantize",
    source="quantize.cu",
    summary="residual + delta, its RMS norm, and that in 8 bits",
    inputs=(
        Argument("residual", "float16", ("M", "F")),
        Argument("delta", "float16", ("M", "F")),
        Argument("gain", "float16", ("F",)),
        Argument("epsilon", "float32", ("1",)),
    ),
    integers=("F",),
    outputs=(Argument("sum", "float16", ("M", "F"), tolerance=2**-11), *_CODES),
    kernel=lambda _: "windlass_rms_norm_quantize",
    launch=_row_launch(256),
    reference=_rms_norm_quantize,
    traffic=lambda s: 7 * s["M"] * s["F"],
    limits=(_columns_limit(256 * 8 * _VECTOR),),
)

SWIGLU_QUANTIZE = Op(
    name="swiglu_quantize",
    source="quantize.cu",
    summary="silu(gate) * up, and that in 8 bits",
    inputs=(Argument("gate_up", "float16", ("M", "W")),),
    integers=("F",),
    outputs=_CODES,
    kernel=lambda _: "windlass_swiglu_quantize",
    launch=_row_launch(512),
    reference=_swiglu_quantize,
    traffic=lambda s: 5 * s["M"] * s["F"],
    derived={"F": lambda s: s["W"] // 2},
    limits=(Limit("gates and ups of one width (W even)", lambda s: s["W"] % 2 == 0), _columns_limit(512 * 8 * _VECTOR)),
)

OPS = (RMS_NORM_QUANTIZE, SWIGLU_QUANTIZE)
