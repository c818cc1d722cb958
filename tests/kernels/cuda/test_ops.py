"""Every device kernel, run thread by thread on this processor, against its NumPy reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from windlass_kernels.cuda import cache, emulate, products, registry, rowwise, samples
from windlass_kernels.cuda.schema import bind, describe_arrays, find_differences

SAMPLES = samples.build_small(seed=7)


def test_the_samples_reach_every_op_of_the_registry() -> None:
    assert {sample.op.name for sample in SAMPLES} == set(registry.OPS)


@pytest.mark.parametrize("order", emulate.ORDERS)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.op.name}: {sample.label}")
def test_a_kernel_agrees_with_its_reference_in_any_order_of_threads(sample: samples.Sample, order: str) -> None:
    expected = sample.op.reference(**sample.inputs, **sample.attributes)

    outputs = emulate.run(sample.op, sample.inputs, sample.attributes, order=order)

    assert find_differences(sample.op, outputs, expected) == []


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.op.name}: {sample.label}")
def test_the_comparison_notices_a_wrong_result(sample: samples.Sample) -> None:
    expected = sample.op.reference(**sample.inputs, **sample.attributes)
    wrong = tuple(np.where(np.isnan(part), part, part + 3) if part.dtype.kind == "f" else part + 3 for part in expected)
    written = [part for part in expected if part.dtype.kind != "f" or not np.isnan(part).all()]

    assert len(find_differences(sample.op, wrong, expected)) == len(written)


@pytest.mark.parametrize("group", [None, 32, 64, 128])
def test_a_token_has_the_same_product_alone_and_beside_others(group: int | None) -> None:
    sample = samples.gemv(samples.Maker(3), 8, 32, 512, group)
    (together,) = emulate.run(sample.op, sample.inputs)

    for token in (0, 5, 7):
        (alone,) = emulate.run(sample.op, {**sample.inputs, "x": sample.inputs["x"][token : token + 1].copy()})

        assert (alone[0] == together[token]).all()


def test_a_sequence_is_attended_to_the_same_alone_and_beside_others() -> None:
    sample = samples.paged_attention(samples.Maker(5), (260, 70), 4, 1, 64, pages_per_piece=2)
    rows = ("queries", "page_table", "page_bases", "tails", "positions")
    outputs, summaries = emulate.run(sample.op, sample.inputs, sample.attributes)

    alone = {**sample.inputs, **{name: sample.inputs[name][1:].copy() for name in rows}}
    own_outputs, own_summaries = emulate.run(sample.op, alone, sample.attributes)

    assert (own_summaries[0] == summaries[1]).all()
    assert (own_outputs[0, :, 0] == outputs[1, :, 0]).all()


def test_a_page_means_the_same_wherever_it_lies() -> None:
    """Positions and bases of all pages moved by the same distance leave every score as it is."""
    sample = samples.paged_attention(samples.Maker(6), (200,), 4, 1, 64, pages_per_piece=8)
    moved = {**sample.inputs, "page_bases": sample.inputs["page_bases"] - 64}
    moved |= samples.rotary_tables(1024, 32)
    there = {**moved, "page_bases": moved["page_bases"] + 64}

    results = [emulate.run(sample.op, inputs, sample.attributes) for inputs in (moved, there)]
    expected = [sample.op.reference(**inputs, **sample.attributes) for inputs in (moved, there)]

    assert find_differences(sample.op, results[0], expected[0]) == []
    assert find_differences(sample.op, results[1], expected[1]) == []
    assert not np.allclose(results[0][1], results[1][1])  # a base that is 64 lower is another distance


def test_pieces_join_to_the_attention_that_floats_give() -> None:
    sample = samples.paged_attention(samples.Maker(8), (300, 12), 6, 2, 128, pages_per_piece=2)
    (expected,) = cache.ATTENTION_MERGE.reference(*sample.op.reference(**sample.inputs, **sample.attributes))

    outputs, summaries = emulate.run(sample.op, sample.inputs, sample.attributes)
    (result,) = emulate.run(cache.ATTENTION_MERGE, {"partials": outputs, "summaries": summaries})

    assert np.abs(result - expected).max() < 2e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_holds_no_number_is_marked_in_its_scale_and_spoils_no_other(bad: float) -> None:
    sample = samples.swiglu_quantize(samples.Maker(9), 2, 64)
    sample.inputs["gate_up"][1, 70] = bad
    sample.inputs["gate_up"][1, 6] = 1

    codes, scales = emulate.run(sample.op, sample.inputs)

    assert np.isnan(scales[1])
    assert (codes[1] == 0).all()
    assert np.isfinite(scales[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_tail_that_holds_no_number_makes_the_page_that_the_definition_makes(bad: float) -> None:
    sample = samples.kv_quantize(samples.Maker(10), 2, 1, 64)
    sample.inputs["key_tails"][0, 0, 5, 9] = bad
    sample.inputs["value_tails"][0, 0, 60, 3] = bad

    (pool,) = emulate.run(sample.op, sample.inputs)

    assert (pool == sample.op.reference(**sample.inputs)[0]).all()


def test_rows_of_zeros_get_codes_and_a_scale_of_zero() -> None:
    sample = samples.rms_norm_quantize(samples.Maker(11), 1, 128)
    zeros = {name: np.zeros_like(array) for name, array in sample.inputs.items() if name != "epsilon"}

    summed, codes, scales = emulate.run(sample.op, {**sample.inputs, **zeros})

    assert not summed.any()
    assert not codes.any()
    assert scales.tolist() == [0.0]


def test_a_sparse_ffn_with_all_blocks_is_the_dense_one() -> None:
    make = samples.Maker(12)
    up = samples.sparse_gate_up(make, 2, 192, 128, 3)
    down = samples.sparse_down(make, 2, 48, 192, 3)
    gate, lift = (products.dequantize_int8(up.inputs[name], up.inputs[f"{name}_scales"]) for name in ("gate", "up"))
    wide = up.inputs["x"].astype(np.float64)
    hidden = (products.silu(wide @ gate.T) * (wide @ lift.T)).astype(np.float16).astype(np.float64)
    codes = np.swapaxes(down.inputs["codes"], 0, 1).reshape(48, 192)
    expected = hidden @ products.dequantize_int8(codes, down.inputs["scales"]).T

    (activations,) = emulate.run(up.op, up.inputs)
    (result,) = emulate.run(down.op, {**down.inputs, "a": activations})

    np.testing.assert_allclose(result, expected, rtol=2**-8, atol=2**-8)


def test_four_bit_codes_come_back_from_their_bytes() -> None:
    values = np.random.default_rng(0).integers(-8, 8, (3, 64))

    back = products.dequantize_int4(products.pack_int4(values), np.ones((3, 2), np.float16))

    assert (back == values).all()


@pytest.mark.parametrize("op", registry.OPS.values(), ids=lambda op: op.name)
def test_an_op_asks_for_at_least_the_memory_traffic_of_its_outputs(op) -> None:
    sample = next(sample for sample in SAMPLES if sample.op.name == op.name)
    call = bind(op, describe_arrays(sample.inputs), sample.attributes)

    assert op.traffic(call.sizes) > 0
    assert call.launch.threads <= 1024
    assert call.launch.shared_bytes <= 48 << 10  # more wants an attribute that plans cannot set


def test_registry_entries_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        rowwise.SWIGLU_QUANTIZE.name = "other"  # type: ignore[misc]
