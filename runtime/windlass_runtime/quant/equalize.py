"""Choose factors per input channel that make a product easier to round: AWQ for weights, SmoothQuant for both sides.

A factor multiplies a column of the weight and divides the input; it is folded into whatever makes the input, so the
product stays what it was. Pure functions of arrays; names of dimensions as in `rounding`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from windlass_runtime.quant.rounding import Floats

_EXPONENTS: Final = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
_WIDEST: Final = 1e4
"""Factors further than this apart from their mean would only move the outliers elsewhere."""
_INPUT_CLIPS: Final = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
_MASSIVE: Final = 100.0
"""A largest input this many times the 99.9th percentile has no useful static scale."""


@dataclass(frozen=True, slots=True)
class InputStatistics:
    """What calibration saw of the inputs of one projection."""

    mean_square: Floats
    """[K]"""
    mean_magnitude: Floats
    """[K]"""
    largest: Floats
    """[K]"""
    sample: Floats
    """[S, K]: some of the inputs"""
    moments: Floats | None
    """[K, K] mean of x xT; None where nothing needs it"""


def choose_weight_factors(
    weight: Floats, inputs: InputStatistics, rounded: Callable[[Floats, Floats], Floats]
) -> Floats:
    """Factors [K] under which rounding the weight alone harms the outputs least; all ones when nothing helps.

    rounded  from a weight and its importance to the values that rounding makes of them
    """
    exact = inputs.sample @ weight.T

    def error_of(factors: Floats) -> float:
        values = rounded(weight * factors, (inputs.mean_square / np.square(factors)).astype(np.float32)) / factors
        return float(np.square(inputs.sample @ values.T - exact, dtype=np.float64).sum())

    return _least(error_of, [_normalised(inputs.mean_magnitude**exponent) for exponent in _EXPONENTS])


def choose_input_factors(
    weight: Floats, inputs: InputStatistics, rounded: Callable[[Floats, Floats], Floats]
) -> Floats:
    """Factors [K] under which a weight and statically scaled 8-bit inputs together harm the outputs least."""
    exact, peaks = inputs.sample @ weight.T, np.abs(weight).max(axis=0)

    def error_of(factors: Floats) -> float:
        values = rounded(weight * factors, (inputs.mean_square / np.square(factors)).astype(np.float32))
        divided = inputs.sample / factors
        scale = choose_input_scale(divided)
        cut = np.clip(np.rint(divided / scale), -127, 127) * np.float32(scale)
        return float(np.square(cut @ values.T - exact, dtype=np.float64).sum())

    candidates = [_normalised(inputs.largest**e / np.maximum(peaks, 1e-8) ** (1 - e)) for e in _EXPONENTS[3:]]
    return _least(error_of, [np.ones_like(peaks), *candidates])


def choose_input_scale(sample: Floats) -> float:
    """Value of one step of 8-bit inputs, cut off where the mean square error over the sample is least."""
    peak = float(np.abs(sample).max()) / 127.0
    if peak <= 0.0:
        return 1.0

    def error_of(scale: float) -> float:
        error = np.clip(np.rint(sample / scale), -127, 127) * np.float32(scale) - sample
        return float(np.square(error, dtype=np.float64).sum())

    return min((peak * clip for clip in _INPUT_CLIPS), key=error_of)


def has_massive_inputs(inputs: InputStatistics) -> bool:
    """Whether a few inputs are so large that one static scale would round all others away."""
    usual = float(np.percentile(np.abs(inputs.sample), 99.9))
    return float(inputs.largest.max()) > _MASSIVE * max(usual, 1e-30)


def _least(error_of: Callable[[Floats], float], candidates: list[Floats]) -> Floats:
    errors = [error_of(factors) for factors in candidates]
    return candidates[int(np.argmin(errors))]


def _normalised(factors: Floats) -> Floats:
    """Factors with the geometric mean 1, within bounds; channels without any input get 1."""
    usable = np.isfinite(factors) & (factors > 0)
    if not usable.any():
        return np.ones_like(factors, dtype=np.float32)
    mean = np.exp(np.log(factors[usable]).mean())
    scaled = np.where(usable, factors / mean, 1.0)
    return np.clip(scaled, 1.0 / _WIDEST, _WIDEST).astype(np.float32)
