"""Quantise one product of the decoder: choose factors and format, round, judge. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from windlass_runtime.quant import equalize, rounding
from windlass_runtime.quant.equalize import InputStatistics
from windlass_runtime.quant.formats import Format, climb
from windlass_runtime.quant.recipe import TensorRecipe
from windlass_runtime.quant.rounding import Floats, Rounded


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What became of the matrices of one unit."""

    entry: TensorRecipe
    rounded: tuple[Rounded, ...]
    """One a matrix; empty when they stay in floats."""


def choose_factors(matrix: Floats, inputs: InputStatistics, entry: TensorRecipe, static_inputs: bool) -> Floats:
    """Channel factors [K] for a matrix whose inputs can be divided for free; all ones where none help."""
    if static_inputs and not equalize.has_massive_inputs(inputs):
        return equalize.choose_input_factors(matrix, inputs, _PlainRounding(entry))
    if entry.format is Format.INT4:
        return equalize.choose_weight_factors(matrix, inputs, _PlainRounding(entry))
    return np.ones(matrix.shape[1], np.float32)


def divide(inputs: InputStatistics, factors: Floats) -> InputStatistics:
    """The statistics of inputs divided by `factors`."""
    moments = None if inputs.moments is None else inputs.moments / np.outer(factors, factors)
    return InputStatistics(
        mean_square=(inputs.mean_square / np.square(factors)).astype(np.float32),
        mean_magnitude=inputs.mean_magnitude / factors,
        largest=inputs.largest / factors,
        sample=inputs.sample / factors,
        moments=moments,
    )


def quantize_unit(
    matrices: Sequence[Floats],
    inputs: InputStatistics,
    entry: TensorRecipe,
    *,
    stored: Format,
    floors_db: Mapping[Format, float],
    static_inputs: bool,
) -> UnitResult:
    """Round matrices of the same inputs to the planned format, or to the first better one that keeps the floor.

    floors_db  least signal-to-noise ratio of the outputs, by format; a format without one is always good enough
    """
    chosen, tried = entry, list[str]()
    while chosen.format.is_integer:
        rounded = tuple(_round(matrix, inputs, chosen) for matrix in matrices)
        snr_db = round(rounding.signal_to_noise_db(matrices, rounded, inputs.sample), 2)
        if snr_db >= floors_db.get(chosen.format, -np.inf):
            scale = _input_scale(inputs, static_inputs)
            reason = f"{', '.join(tried)}: below the floor" if tried else chosen.reason
            return UnitResult(replace(chosen, snr_db=snr_db, input_scale=scale, reason=reason), rounded)
        tried.append(f"{snr_db:g} dB as {chosen.format}")
        chosen = TensorRecipe(climb(chosen.format, stored))
    return UnitResult(replace(chosen, reason=f"{', '.join(tried)}: below the floor"), ())


def _round(matrix: Floats, inputs: InputStatistics, entry: TensorRecipe) -> Rounded:
    if entry.format is Format.INT4 and inputs.moments is not None:
        return rounding.round_with_feedback(matrix, entry.group, inputs.moments)
    if entry.format is Format.INT4:
        return rounding.round_groups(matrix, entry.group, inputs.mean_square)
    return rounding.round_rows(matrix, inputs.mean_square)


def _input_scale(inputs: InputStatistics, static_inputs: bool) -> float:
    if not static_inputs or equalize.has_massive_inputs(inputs):
        return 0.0
    return equalize.choose_input_scale(inputs.sample)


@dataclass(frozen=True, slots=True)
class _PlainRounding:
    """Rounding without feedback: quick enough for a search, and it ranks candidates as feedback would."""

    entry: TensorRecipe

    def __call__(self, weight: Floats, importance: Floats) -> Floats:
        if self.entry.format is Format.INT4:
            return rounding.round_groups(weight, self.entry.group, importance).values()
        return rounding.round_rows(weight, importance).values()
