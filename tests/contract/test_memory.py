"""The control plane adds up what a replica adds up: both against the same sums, and against the model itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.documents import ROOT
from windlass_contract import memory
from windlass_contract.launch_spec import Precision
from windlass_kernels.page_format import PageFormat
from windlass_operator.cli.shape import read_shape
from windlass_runtime.checkpoint.config import read_spec
from windlass_runtime.kv.store import choose_page_count, float_layout
from windlass_runtime.model.weights import weight_bytes
from windlass_runtime.quant.formats import PRESETS
from windlass_runtime.quant.plan import plan_formats

SNAKE = {
    "layers": "layers",
    "hiddenSize": "hidden_size",
    "feedForwardSize": "feed_forward_size",
    "queryHeads": "query_heads",
    "keyValueHeads": "key_value_heads",
    "headSize": "head_size",
    "vocabularySize": "vocabulary_size",
    "maxPositions": "max_positions",
    "tiedHead": "tied_head",
}
TINY = ROOT / "examples" / "models" / "windlass-tiny"
LLAMA_8B = memory.ModelShape(
    layers=32,
    hidden_size=4096,
    feed_forward_size=14336,
    query_heads=32,
    key_value_heads=8,
    head_size=128,
    vocabulary_size=128256,
    max_positions=131072,
)


def test_parameters_are_those_the_model_card_says():
    assert LLAMA_8B.parameters == 8_030_261_248


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        pytest.param(Precision.FP32, torch.float32, id="FP32"),
        pytest.param(Precision.FP16, torch.float16, id="FP16"),
        pytest.param(Precision.BF16, torch.bfloat16, id="BF16"),
    ],
)
def test_the_shipped_model_weighs_what_the_runtime_loads(precision, dtype):
    spec, config = read_spec(TINY), read_shape(TINY / "config.json")
    shape = memory.ModelShape(**{SNAKE[name]: value for name, value in config.items()})
    need = memory.least_memory(shape, precision)

    assert need.weights == pytest.approx(weight_bytes(spec, dtype), rel=0.001)  # biases and head norms are left out
    assert need.cache >= memory.sequence_pages(spec.max_positions) * float_layout(spec, dtype).page_bytes


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_weights_of_integers_weigh_what_the_runtime_rounds_them_to(precision):
    spec = read_spec(TINY)
    shape = memory.ModelShape(**{SNAKE[name]: value for name, value in read_shape(TINY / "config.json").items()})
    entries = plan_formats(spec, PRESETS[precision.value].formats, memory.GROUP)

    assert memory.weight_bytes(shape, precision) == pytest.approx(weight_bytes(spec, torch.float16, entries), rel=0.001)


@settings(deadline=None)
@given(st.integers(64, 4096), st.sampled_from(list(memory.ELEMENT_BYTES)))
def test_what_is_needed_at_least_is_enough_for_the_runtimes_own_check(tokens, precision):
    spec = read_spec(TINY)
    shape = memory.ModelShape(
        layers=spec.layer_count,
        hidden_size=spec.hidden_size,
        feed_forward_size=spec.feed_forward_size,
        query_heads=spec.query_heads,
        key_value_heads=spec.key_value_heads,
        head_size=spec.head_size,
        vocabulary_size=spec.vocabulary_size,
        max_positions=4096,
    )
    need = memory.least_memory(shape, precision, max_sequence_tokens=tokens)
    dtype = torch.float32 if precision is Precision.FP32 else torch.float16

    layout = float_layout(spec, dtype)
    pages = choose_page_count(layout, cache_bytes=0, free_bytes=need.cache, max_sequence_tokens=tokens)

    assert pages == memory.sequence_pages(tokens)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("head_size", [16, 64, 80, 128, 256])
def test_quantized_pages_take_what_the_kernels_lay_out(bits, head_size):
    assert memory.page_bytes(3, 2, head_size, 2, bits) == 3 * 2 * PageFormat(bits, head_size).size


def test_a_cache_of_4_bits_counts_its_unfinished_pages_in_floats():
    floats = memory.least_memory(LLAMA_8B, Precision.FP16, max_sequence_tokens=32768)
    quantized = memory.least_memory(
        LLAMA_8B, Precision.FP16, max_sequence_tokens=32768, cache_bits=4, running_requests=8
    )

    tails = memory.tail_pages(32, 8) * memory.page_bytes(1, 8, 128, 2)
    assert quantized.cache == pytest.approx(floats.cache * 4.5 / 16 + tails / memory.CACHE_SHARE, rel=1e-6)


@pytest.mark.parametrize(
    ("cache_bytes", "expected"),
    [
        pytest.param(0, 4 * 2**30 * 5 // 4, id="unstated: one sequence, and a fifth of it all stays free"),
        pytest.param(8 * 2**30, 8 * 2**30, id="stated: as stated"),
        pytest.param(2**30, 4 * 2**30, id="stated too small for one sequence: what one needs"),
    ],
)
def test_the_cache_holds_at_least_one_longest_sequence(cache_bytes, expected):
    need = memory.least_memory(LLAMA_8B, Precision.FP16, cache_bytes=cache_bytes, max_sequence_tokens=32768)

    assert need.cache == expected
