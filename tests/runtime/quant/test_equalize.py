"""Channel factors: chosen where they help, harmless where they do not, and folded without changing the product."""

from __future__ import annotations

import numpy as np

from windlass_runtime.quant import equalize, rounding
from windlass_runtime.quant.equalize import InputStatistics
from windlass_runtime.quant.formats import Format
from windlass_runtime.quant.recipe import TensorRecipe
from windlass_runtime.quant.unit import divide, quantize_unit

INT4 = TensorRecipe(Format.INT4, 32)


def build_statistics(outlier: float = 1.0, k: int = 64) -> InputStatistics:
    """Inputs whose first channel is `outlier` times as large as the others."""
    sample = np.random.default_rng(0).standard_normal((256, k)).astype(np.float32)
    sample[:, 0] *= outlier
    return InputStatistics(
        mean_square=np.square(sample).mean(0),
        mean_magnitude=np.abs(sample).mean(0),
        largest=np.abs(sample).max(0),
        sample=sample,
        moments=sample.T @ sample / len(sample),
    )


def build_matrix(k: int = 64) -> rounding.Floats:
    return np.random.default_rng(1).standard_normal((48, k)).astype(np.float32)


def round_four(weight: rounding.Floats, importance: rounding.Floats) -> rounding.Floats:
    return rounding.round_groups(weight, 32, importance).values()


def round_eight(weight: rounding.Floats, importance: rounding.Floats) -> rounding.Floats:
    return rounding.round_rows(weight, importance).values()


def loss_with(matrix: rounding.Floats, inputs: InputStatistics, factors: rounding.Floats) -> float:
    values = round_four(matrix * factors, inputs.mean_square / np.square(factors)) / factors
    return float(np.square(inputs.sample @ (values - matrix).T).sum())


def test_a_channel_that_matters_more_gets_a_finer_grid() -> None:
    matrix, inputs = build_matrix(), build_statistics(outlier=30.0)

    factors = equalize.choose_weight_factors(matrix, inputs, round_four)

    assert factors[0] > 2.0 * np.median(factors)
    assert loss_with(matrix, inputs, factors) < 0.5 * loss_with(matrix, inputs, np.ones(64, np.float32))


def test_chosen_factors_are_never_worse_than_none() -> None:
    for seed in range(5):
        matrix = np.random.default_rng(seed).standard_normal((48, 64)).astype(np.float32)
        inputs = build_statistics(outlier=float(seed))

        factors = equalize.choose_weight_factors(matrix, inputs, round_four)

        assert loss_with(matrix, inputs, factors) <= loss_with(matrix, inputs, np.ones(64, np.float32))


def test_factors_for_static_inputs_shrink_the_outlier() -> None:
    matrix, inputs = build_matrix(), build_statistics(outlier=30.0)

    factors = equalize.choose_input_factors(matrix, inputs, round_eight)

    divided = divide(inputs, factors).sample
    assert np.abs(divided[:, 0]).max() < 10.0 * np.abs(divided[:, 1:]).max()
    assert factors[0] > 3.0


def test_dividing_inputs_and_multiplying_columns_leaves_the_product_alone() -> None:
    matrix, inputs = build_matrix(), build_statistics(outlier=5.0)
    factors = np.linspace(0.5, 2.0, 64, dtype=np.float32)

    changed = divide(inputs, factors)

    assert np.allclose(changed.sample @ (matrix * factors).T, inputs.sample @ matrix.T, atol=1e-3)
    assert changed.moments is not None
    assert np.allclose(np.diagonal(changed.moments), changed.mean_square, rtol=1e-4)


def test_a_static_scale_covers_what_it_was_shown() -> None:
    sample = build_statistics().sample

    scale = equalize.choose_input_scale(sample)

    cut = np.clip(np.rint(sample / scale), -127, 127) * scale
    assert np.square(cut - sample).sum() <= 1e-3 * np.square(sample).sum()


def test_massive_inputs_get_no_static_scale() -> None:
    inputs = build_statistics()
    inputs.largest[3] = 5000.0

    result = quantize_unit(
        [build_matrix()],
        inputs,
        TensorRecipe(Format.INT8),
        stored=Format.BF16,
        floors_db={},
        static_inputs=True,
    )

    assert equalize.has_massive_inputs(inputs)
    assert result.entry.input_scale == 0.0


def test_a_product_below_its_floor_climbs_and_says_why() -> None:
    def quantize(floors: dict[Format, float]) -> TensorRecipe:
        return quantize_unit(
            [build_matrix()], build_statistics(), INT4, stored=Format.BF16, floors_db=floors, static_inputs=False
        ).entry

    kept, eight, island = quantize({}), quantize({Format.INT4: 90.0}), quantize({Format.INT4: 90.0, Format.INT8: 90.0})

    assert (kept.format, kept.group, kept.reason) == (Format.INT4, 32, "")
    assert eight.format is Format.INT8
    assert eight.reason == f"{kept.snr_db:g} dB as INT4: below the floor"
    assert island.format is Format.BF16
    assert island.reason == f"{kept.snr_db:g} dB as INT4, {eight.snr_db:g} dB as INT8: below the floor"
