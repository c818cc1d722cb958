"""Rounding to 8 and 4 bits: bounds that always hold, and the two ways in which knowing the inputs helps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_runtime.quant import rounding


def build_matrix(n: int, k: int, seed: int = 0) -> rounding.Floats:
    random = np.random.default_rng(seed)
    sizes = 10.0 ** random.uniform(-3, 1, (n, 1))
    return (random.standard_normal((n, k)) * sizes).astype(np.float32)


def build_inputs(samples: int, k: int, seed: int = 1) -> rounding.Floats:
    """Inputs that depend on each other, as those of a layer do."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((samples, k // 4)) @ random.standard_normal((k // 4, k))
    return (mixed + 0.1 * random.standard_normal((samples, k))).astype(np.float32)


def alike(k: int) -> rounding.Floats:
    return np.ones(k, np.float32)


@given(n=st.integers(1, 9), k=st.integers(1, 50), seed=st.integers(0, 1000))
def test_rows_of_eight_bits_lose_at_most_what_the_scale_allows(n: int, k: int, seed: int) -> None:
    matrix = build_matrix(n, k, seed)

    rounded = rounding.round_rows(matrix, alike(k))

    peaks = np.abs(matrix).max(axis=1)
    assert np.abs(rounded.codes.astype(int)).max() <= 127
    # Half a step inside the range; clipping may take up to a fifth of the largest value.
    assert (np.abs(matrix - rounded.values()).max(axis=1) <= 0.2 * peaks + 0.5 * rounded.scales + 1e-30).all()
    plain = np.rint(matrix / (peaks / 127)[:, None]) * (peaks / 127)[:, None]
    assert (np.square(matrix - rounded.values()).sum(1) <= np.square(matrix - plain).sum(1) * 1.001 + 1e-30).all()


@given(n=st.integers(1, 9), groups=st.integers(1, 4), group=st.sampled_from([32, 64, 128]), seed=st.integers(0, 1000))
def test_groups_of_four_bits_keep_their_own_scales(n: int, groups: int, group: int, seed: int) -> None:
    matrix = build_matrix(n, groups * group, seed)

    rounded = rounding.round_groups(matrix, group, alike(groups * group))

    assert np.abs(rounded.codes.astype(int)).max() <= 7
    assert (rounded.scales.shape, rounded.scales.dtype) == ((n, groups), np.float16)
    lost = np.square(matrix - rounded.values()).sum()
    assert lost <= 0.04 * np.square(matrix).sum()  # about 20 dB for normal values; one unlucky group has 15


def test_a_row_of_zeros_stays_zero() -> None:
    matrix = np.zeros((3, 64), np.float32)

    assert (rounding.round_rows(matrix, alike(64)).values() == 0).all()
    assert (rounding.round_groups(matrix, 32, alike(64)).values() == 0).all()
    assert (rounding.round_with_feedback(matrix, 32, np.zeros((64, 64), np.float32)).values() == 0).all()


def test_importance_moves_the_error_to_columns_that_matter_less() -> None:
    matrix, importance = build_matrix(64, 128), alike(128)
    matrix[:, 0] *= 4.0
    importance[1:] = 1e4  # the large column hardly matters: cutting it off refines the others

    careful = rounding.round_rows(matrix, importance).values()
    careless = rounding.round_rows(matrix, alike(128)).values()

    def loss(values: rounding.Floats) -> float:
        return float((np.square(matrix - values) * importance).sum())

    assert loss(careful) < loss(careless)


def test_error_feedback_beats_plain_rounding_on_the_inputs_it_knows() -> None:
    matrix, inputs = build_matrix(96, 128), build_inputs(512, 128)
    moments = inputs.T @ inputs / len(inputs)

    fed_back = rounding.round_with_feedback(matrix, 32, moments)
    plain = rounding.round_groups(matrix, 32, np.diagonal(moments).copy())

    better, worse = (rounding.signal_to_noise_db([matrix], [rounded], inputs) for rounded in (fed_back, plain))
    assert better > worse + 3.0


def test_error_feedback_without_any_correlation_is_plain_rounding() -> None:
    matrix = build_matrix(16, 64)

    fed_back = rounding.round_with_feedback(matrix, 32, np.eye(64, dtype=np.float32))

    assert np.array_equal(fed_back.codes, rounding.round_groups(matrix, 32, alike(64)).codes)


def test_an_input_never_seen_does_not_spoil_the_others() -> None:
    matrix, inputs = build_matrix(16, 64), build_inputs(512, 64)
    inputs[:, 5] = 0.0
    moments = inputs.T @ inputs / len(inputs)

    rounded = rounding.round_with_feedback(matrix, 32, moments)

    assert np.isfinite(rounded.values()).all()
    assert rounding.signal_to_noise_db([matrix], [rounded], inputs) > 15.0


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [pytest.param(100.0, 1.0, 20.0, id="ratio"), pytest.param(1.0, 0.0, 200.0, id="no noise")],
)
def test_ratios_are_decibels_within_bounds(signal: float, noise: float, expected: float) -> None:
    assert rounding.ratio_db(signal, noise) == expected
