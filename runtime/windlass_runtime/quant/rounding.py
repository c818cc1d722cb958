"""Round matrices to 8 and 4 bits: the NumPy core of calibration. Pure functions of arrays.

N rows (outputs), K columns (inputs), G groups of columns, S sampled inputs. `importance` [K] weighs errors by the mean
square of each input; all ones when nothing is known of the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LARGEST_8: Final = 127
LARGEST_4: Final = 7
_CLIPS_8: Final = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8)
_CLIPS_4: Final = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)
"""Shares of the largest magnitude to try as the end of the range: cutting the largest values refines all others."""
_BLOCK_VALUES: Final = 2**16
"""Stays in a processor's cache while its clips are tried."""
_BLOCK_OUTPUTS: Final = 2**21
_SMALLEST_SCALE: Final = np.float32(2.0**-24)
"""The smallest FP16 above zero: a group of zeros needs some scale."""
_DAMPING: Final = 0.01
"""Share of the mean input energy added to every input's own: keeps rarely used inputs from blowing up the inverse."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """Codes and scales; the matrix is their product."""

    codes: NDArray[np.int8]
    """[N, K]"""
    scales: NDArray[Any]
    """[N] float32, or [N, G] float16"""

    def part(self, rows: slice) -> Rounded:
        """Some of the rows."""
        return Rounded(self.codes[rows], self.scales[rows])

    def values(self) -> Floats:
        """The matrix the codes stand for: [N, K]."""
        wide = self.scales.astype(np.float32)
        if wide.ndim == 1:
            return self.codes * wide[:, None]
        n, groups = wide.shape
        return (self.codes.reshape(n, groups, -1) * wide[:, :, None]).reshape(self.codes.shape)


def round_rows(weight: Floats, importance: Floats | None) -> Rounded:
    """8 bits, one scale per row, each cut off where the weighted error is least; without importance nothing is."""
    clips = _CLIPS_8 if importance is not None else (1.0,)
    codes, all_scales = np.empty(weight.shape, np.int8), np.empty(len(weight), np.float32)
    for rows in _blocks(weight):
        scales = _choose_scales(weight[rows], importance, LARGEST_8, clips)
        codes[rows], all_scales[rows] = _nearest(weight[rows], scales[:, None], LARGEST_8), scales
    return Rounded(codes, all_scales)


def round_groups(weight: Floats, group: int, importance: Floats) -> Rounded:
    """4 bits, one FP16 scale per row and group; K is a multiple of `group`."""
    n, k = weight.shape
    grouped, weights = weight.reshape(n, k // group, group), importance.reshape(-1, group)
    codes, all_scales = np.empty(grouped.shape, np.int8), np.empty(grouped.shape[:2], np.float16)
    for rows in _blocks(weight):
        scales = _half(_choose_scales(grouped[rows], weights, LARGEST_4, _CLIPS_4))
        codes[rows] = _nearest(grouped[rows], scales.astype(np.float32)[:, :, None], LARGEST_4)
        all_scales[rows] = scales
    return Rounded(codes.reshape(n, k), all_scales)


def round_with_feedback(weight: Floats, group: int, moments: Floats) -> Rounded:
    """4 bits, column by column; the error of each is passed on to the columns not yet rounded (GPTQ).

    moments  [K, K]  mean of x xT over the inputs x: which columns can make up for which
    """
    n, k = weight.shape
    factor, rest = _inverse_factor(moments), weight.copy()
    importance = np.ascontiguousarray(np.diagonal(moments)) + np.float32(1e-12)
    codes, scales = np.empty((n, k), np.int8), np.empty((n, k // group), np.float16)
    for start in range(0, k, group):
        stop = start + group
        block = rest[:, start:stop]
        chosen = _half(_choose_scales(block, importance[start:stop], LARGEST_4, _CLIPS_4))
        scales[:, start // group], step = chosen, chosen.astype(np.float32)
        errors = np.empty((n, group), np.float32)
        for column in range(group):
            own = factor[start + column, start + column : stop]
            codes[:, start + column] = _nearest(block[:, column], step, LARGEST_4)
            errors[:, column] = (block[:, column] - codes[:, start + column] * step) / own[0]
            block[:, column:] -= np.outer(errors[:, column], own)
        rest[:, stop:] -= errors @ factor[start:stop, stop:]
    return Rounded(codes, scales)


def signal_to_noise_db(weights: Sequence[Floats], rounded: Sequence[Rounded], sample: Floats) -> float:
    """How far the outputs for `sample` [S, K] stand above the error that rounding adds to them; at most 200."""
    signal = noise = 0.0
    for weight, codes in zip(weights, rounded, strict=True):
        for rows in _blocks(weight, _BLOCK_OUTPUTS):
            exact, wrong = weight[rows], weight[rows] - codes.part(rows).values()
            signal += float(np.square(sample @ exact.T, dtype=np.float64).sum())
            noise += float(np.square(sample @ wrong.T, dtype=np.float64).sum())
    return ratio_db(signal, noise)


def ratio_db(signal: float, noise: float) -> float:
    """Ratio of two energies in decibels, from -200 to 200."""
    if noise <= 0.0 or signal <= 0.0:
        return 200.0 if noise <= 0.0 else -200.0
    return float(np.clip(10.0 * np.log10(signal / noise), -200.0, 200.0))


def _blocks(weight: Floats, values: int = _BLOCK_VALUES) -> Iterator[slice]:
    """Rows in parts of about so many values: rows are independent, and temporaries of whole matrices add up."""
    step = max(1, values // max(1, weight.shape[1]))
    for first in range(0, len(weight), step):
        yield slice(first, first + step)


def _choose_scales(values: Floats, importance: Floats | None, largest: int, clips: tuple[float, ...]) -> Floats:
    """One scale for each line of the last axis: of all clips the one with the least weighted error."""
    peak: Floats = np.maximum(np.abs(values).max(axis=-1) / np.float32(largest), _SMALLEST_SCALE).astype(np.float32)
    if len(clips) == 1:
        return peak
    best, least = peak, np.full(peak.shape, np.inf, np.float32)
    for clip in clips:
        scales = np.maximum(peak * np.float32(clip), _SMALLEST_SCALE)
        error = values - _nearest(values, scales[..., None], largest) * scales[..., None]
        total = (np.square(error) * (1.0 if importance is None else importance)).sum(axis=-1)
        better = total < least
        best, least = np.where(better, scales, best), np.where(better, total, least)
    result: Floats = best.astype(np.float32)
    return result


def _nearest(values: Floats, scales: Floats, largest: int) -> NDArray[np.int8]:
    codes: NDArray[np.int8] = np.clip(np.rint(values / scales), -largest, largest).astype(np.int8)
    return codes


def _half(scales: Floats) -> NDArray[np.float16]:
    halves: NDArray[np.float16] = np.clip(scales, _SMALLEST_SCALE, np.float32(65504.0)).astype(np.float16)
    return halves


def _inverse_factor(moments: Floats) -> Floats:
    """Upper triangle U with UT U = inverse of the damped moments."""
    damped = moments.astype(np.float64)
    diagonal = np.diagonal(damped)
    damped[np.diag_indices_from(damped)] = diagonal + max(_DAMPING * float(diagonal.mean()), 1e-10)
    factor: Floats = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
    return factor
