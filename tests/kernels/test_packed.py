"""Packed weights: packing loses nothing, products agree with float64, a row's bits do not depend on its batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_kernels import native, ops, packed, reference

SHAPES = [(1, 1, 32), (1, 7, 64), (1, 768, 768), (2, 33, 96), (3, 100, 1024), (4, 64, 64), (5, 19, 160), (6, 65, 32)]
SHAPES += [(8, 50, 1024), (9, 13, 128), (16, 96, 96), (63, 37, 64), (130, 101, 192)]


def build_matrix(n: int, k: int, bits: int, group: int = 32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales; k is a multiple of the group for 4 bits."""
    generator = torch.Generator().manual_seed(seed * 7919 + n * 17 + k)
    largest = packed.LARGEST_CODE[bits]
    codes = torch.randint(-largest, largest + 1, (n, k), generator=generator).to(torch.int8)
    shape = (n,) if bits == 8 else (n, k // group)
    scales = torch.rand(shape, generator=generator) + 0.01
    return codes, scales if bits == 8 else scales.half()


def build_input(m: int, k: int, seed: int = 0) -> torch.Tensor:
    """Rows of very different size, as tokens have them."""
    generator = torch.Generator().manual_seed(seed * 31 + m * 101 + k)
    return torch.randn(m, k, generator=generator) * torch.logspace(-3, 3, m)[:, None]


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32)


@given(
    n=st.integers(1, 70),
    groups=st.integers(1, 5),
    group=st.sampled_from(packed.WEIGHT_GROUPS),
    bits=st.sampled_from([4, 8]),
    odd=st.integers(0, 7),
    seed=st.integers(0, 1000),
)
def test_packing_and_unpacking_gives_the_same_matrix(
    n: int, groups: int, group: int, bits: int, odd: int, seed: int
) -> None:
    k = groups * group + (odd if bits == 8 else 0)
    codes, scales = build_matrix(n, k, bits, group, seed)

    found_codes, found_scales = packed.unpack(packed.pack(codes, scales))

    assert torch.equal(found_codes, codes)
    assert torch.equal(found_scales, scales)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("input_scale", [0.0, 0.02], ids=["chosen scales", "one scale"])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_a_packed_product_agrees_with_float64(isa: str, m: int, n: int, k: int, bits: int, input_scale: float) -> None:
    codes, scales = build_matrix(n, k, bits)
    x, bias = build_input(m, k), torch.randn(n, generator=torch.Generator().manual_seed(1))
    weight = packed.pack(codes, scales)

    result = packed.linear(x, weight, bias, input_scale=input_scale)

    truth = reference.packed_linear(x, codes, scales, weight.group, bias, input_scale, dtype=torch.float64)
    # Sums within a group are exact integers. What rounds: one product and one addition per group, two more at the end.
    groups, wide = -(-k // weight.group), reference.dequantize(codes, scales, torch.float64).abs()
    size = reference.linear(x.abs() + input_scale, wide, bias.abs(), dtype=torch.float64)
    assert ((result.double() - truth).abs() <= (2 * groups + 4) * 2**-24 * size).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_chosen_input_scales_cost_less_than_a_hundredth_of_the_result(isa: str, bits: int) -> None:
    codes, scales = build_matrix(96, 512, bits)
    x = build_input(64, 512)

    result = packed.linear(x, packed.pack(codes, scales)).double()

    exact = reference.linear(x, reference.dequantize(codes, scales), dtype=torch.float64)
    # A step is 1/127 of the largest of 32 or 64 normal values, about 0.02 standard deviations; the error is 0.29 of it.
    assert (result - exact).norm() <= 0.01 * exact.norm()


@settings(deadline=None)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 130),
    groups=st.integers(1, 6),
    group=st.sampled_from(packed.WEIGHT_GROUPS),
    bits=st.sampled_from([4, 8]),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 1000),
)
def test_a_row_of_a_packed_product_has_the_same_bits_alone_and_in_any_batch(
    isa: str, m: int, n: int, groups: int, group: int, bits: int, threads: int, seed: int
) -> None:
    weight = packed.pack(*build_matrix(n, groups * group, bits, group, seed))
    x = build_input(m, groups * group, seed)

    ops.set_threads(threads)
    together = packed.linear(x, weight)
    ops.set_threads(1)
    alone = torch.cat([packed.linear(row[None], weight) for row in x])

    assert torch.equal(bits_of(together), bits_of(alone))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_input_makes_its_own_row_unusable_and_no_other(isa: str, bits: int, bad: float) -> None:
    weight = packed.pack(*build_matrix(40, 96, bits))
    x = build_input(5, 96)
    clean = packed.linear(x, weight)
    x[3, 70] = bad

    result = packed.linear(x, weight)

    assert result[3].isnan().all()
    others = [0, 1, 2, 4]
    assert torch.equal(result[others], clean[others])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [0.0, 1e-40], ids=["zero", "smaller than any scale"])
def test_inputs_too_small_for_a_scale_count_as_zero(isa: str, bits: int, value: float) -> None:
    weight = packed.pack(*build_matrix(40, 96, bits))

    result = packed.linear(torch.full((2, 96), value), weight)

    assert torch.equal(result, torch.zeros(2, 40))


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_a_packed_weight_are_those_of_its_matrix(isa: str, bits: int) -> None:
    weight = packed.pack(*build_matrix(77, 160, bits))
    indices = torch.tensor([0, 76, 31, 32, 0, 64], dtype=torch.int32)

    result = packed.rows(indices, weight)

    assert torch.equal(result, packed.dequantize(weight)[indices.long()])


@pytest.mark.parametrize("bits", [8, 4])
def test_without_native_kernels_the_results_are_the_same_within_rounding(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = packed.pack(*build_matrix(77, 160, bits))
    x, indices = build_input(3, 160), torch.tensor([5, 76, 40, 5], dtype=torch.int32)
    product, gathered = packed.linear(x, weight), packed.rows(indices, weight)
    monkeypatch.setattr(ops, "_library", lambda: None)

    assert torch.allclose(packed.linear(x, weight), product, rtol=1e-5, atol=1e-5 * float(product.abs().max()))
    assert torch.equal(packed.rows(indices, weight), gathered)


def test_instruction_sets_with_fused_arithmetic_give_the_same_bits() -> None:
    library = native.load().library
    if library is None or not library.choose_isa("avx512"):
        pytest.skip("needs AVX-512, to compare with AVX2")
    weight, x = packed.pack(*build_matrix(77, 160, 4)), build_input(9, 160)
    wide = packed.linear(x, weight)

    assert library.choose_isa("avx2")
    narrow = packed.linear(x, weight)

    library.choose_isa("avx512")
    assert torch.equal(bits_of(narrow), bits_of(wide))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"codes": torch.zeros(4, 64)}, r"codes must be contiguous \[4, 64\] int8", id="codes of floats"),
        pytest.param({"codes": torch.full((4, 64), -128, dtype=torch.int8)}, "within 127", id="-128"),
        pytest.param({"scales": torch.ones(3)}, r"scales must be contiguous \[4\] float32", id="too few scales"),
        pytest.param({"scales": torch.ones(4, 2)}, "float16", id="4 bits with wide scales"),
        pytest.param({"scales": torch.ones(4, 4).half()}, "groups of 32, 64, 128, found 4", id="groups of 16"),
        pytest.param(
            {"codes": torch.full((4, 64), 8, dtype=torch.int8), "scales": torch.ones(4, 2).half()},
            "within 7, found 8",
            id="a code of 8 in 4 bits",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(change: dict[str, torch.Tensor], message: str) -> None:
    given_tensors = {"codes": torch.zeros(4, 64, dtype=torch.int8), "scales": torch.ones(4)} | change

    with pytest.raises(ops.ShapeError, match=message):
        packed.pack(**given_tensors)


def test_a_product_with_the_wrong_width_is_refused() -> None:
    weight = packed.pack(*build_matrix(4, 64, 8))

    with pytest.raises(ops.ShapeError, match=r"x must be \[M, 64\] for this weight, found \[2, 32\]"):
        packed.linear(torch.zeros(2, 32), weight)


def test_a_packed_weight_takes_half_a_byte_or_one_a_value_and_its_scales() -> None:
    sizes = {bits: packed.pack(*build_matrix(64, 256, bits)).nbytes for bits in (4, 8)}

    assert sizes == {4: 64 * 256 // 2 + 64 * 8 * 2, 8: 64 * 256 + 64 * 4}
