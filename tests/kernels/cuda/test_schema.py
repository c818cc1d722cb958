"""Binding: sizes are solved from shapes, and what does not fit is refused in words that name it."""

from __future__ import annotations

import re

import pytest

from windlass_kernels.cuda import cache, products, registry
from windlass_kernels.cuda.schema import OpError, bind
from windlass_kernels.page_format import PageFormat

GEMV = {"x": ((2, 256), "float16"), "codes": ((40, 128), "uint8"), "scales": ((40, 4), "float16")}


def test_a_call_knows_kernel_integers_outputs_and_launch() -> None:
    call = bind(products.GEMV_INT4, GEMV, {})

    assert call.kernel == "windlass_gemv_int4_g64"
    assert call.integers == (2, 40, 256)
    assert call.output_shapes == ((2, 40),)
    assert (call.launch.grid, call.launch.threads) == ((3, 1, 1), 256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"x": ((2, 256), "float32")}, "gemv_int4: expected x [M, K] float16, found [2, 256]", id="type"),
        pytest.param({"x": ((256,), "float16")}, "expected x [M, K] float16, found [256] float16", id="rank"),
        pytest.param(
            {"codes": ((40, 100), "uint8")},
            "expected codes [N, K/2] uint8 = [40, 128], found [40, 100]",
            id="shape",
        ),
        pytest.param({"x": ((9, 256), "float16")}, "expected 1 to 8 tokens (M), found", id="tokens"),
        pytest.param({"scales": ((40, 16), "float16")}, "expected groups of 32 or 64 or 128 columns", id="group"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, tuple[tuple[int, ...], str]], message: str) -> None:
    with pytest.raises(OpError, match=re.escape(message)):
        bind(products.GEMV_INT4, GEMV | change, {})


def test_names_of_inputs_and_attributes_are_checked() -> None:
    with pytest.raises(OpError, match=re.escape("expected inputs ['codes', 'scales', 'x'], found ['x']")):
        bind(products.GEMV_INT4, {"x": GEMV["x"]}, {})
    with pytest.raises(OpError, match=re.escape("expected attributes [], found ['group']")):
        bind(products.GEMV_INT4, GEMV, {"group": 64})


def test_pages_of_another_head_size_are_refused() -> None:
    size = PageFormat(4, 128).size
    arrays = {
        "key_tails": ((2, 1, 64, 64), "float16"),
        "value_tails": ((2, 1, 64, 64), "float16"),
        "tails": ((1,), "int32"),
        "pages": ((1,), "int32"),
        "pool": ((4, 1, size), "uint8"),
    }

    with pytest.raises(OpError, match="head pages of the size that the head size"):
        bind(cache.KV_QUANTIZE, arrays, {})


def test_an_unknown_op_is_named_with_those_that_exist() -> None:
    with pytest.raises(OpError, match=r"expected one of attention_merge, .*, found 'gem'"):
        registry.find("gem")


@pytest.mark.parametrize("op", registry.OPS.values(), ids=lambda op: op.name)
def test_the_integers_of_an_op_are_sizes_attributes_or_derived(op) -> None:
    names = {dimension for argument in op.inputs for dimension in argument.shape if dimension.isidentifier()}

    assert set(op.integers) <= names | set(op.attributes) | set(op.derived)


@pytest.mark.parametrize("op", registry.OPS.values(), ids=lambda op: op.name)
def test_outputs_updated_in_place_are_inputs_too(op) -> None:
    inputs = {argument.name: argument for argument in op.inputs}

    for name in op.in_place:
        assert next(argument for argument in op.outputs if argument.name == name) == inputs[name]
