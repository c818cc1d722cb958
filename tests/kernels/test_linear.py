"""Matrix products against float64, and the promise that a row's bits do not depend on its batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_kernels import ops, reference

WEIGHT_TYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1, 1), (1, 7, 5), (1, 768, 768), (2, 33, 17), (3, 100, 1025), (4, 64, 64), (5, 19, 2049), (6, 23, 40)]
SHAPES += [(7, 65, 31), (8, 50, 1024), (9, 13, 129), (16, 96, 100), (63, 37, 70), (64, 192, 1100), (130, 101, 33)]


def build_product(m: int, n: int, k: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed * 7919 + m * 31 + n * 17 + k)
    return torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator).to(dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32)


@pytest.mark.parametrize("dtype", WEIGHT_TYPES, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_linear_agrees_with_float64(isa: str, m: int, n: int, k: int, dtype: torch.dtype) -> None:
    x, weight = build_product(m, n, k, dtype)
    bias = torch.randn(n, generator=torch.Generator().manual_seed(1)).to(dtype)

    result = ops.linear(x, weight, bias)

    truth = reference.linear(x, weight, bias, dtype=torch.float64)
    # A chain is at most k / 4 rounded additions long (four lanes), each wrong by half an ulp of a partial sum.
    allowed = (k / 4 + 8) * 2**-24 * (x.abs().double() @ weight.abs().double().T + bias.abs().double())
    assert ((result.double() - truth).abs() <= allowed).all()


@settings(deadline=None)  # machines share their cores
@given(
    m=st.integers(1, 80),
    n=st.integers(1, 70),
    k=st.sampled_from([1, 5, 16, 37, 64, 129, 1024, 1031, 2050]),
    dtype=st.sampled_from(WEIGHT_TYPES),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 1000),
)
def test_a_row_has_the_same_bits_alone_in_any_batch_and_with_any_thread_count(
    isa: str, m: int, n: int, k: int, dtype: torch.dtype, threads: int, seed: int
) -> None:
    x, weight = build_product(m, n, k, dtype, seed)
    some = x[torch.randperm(m, generator=torch.Generator().manual_seed(seed))[: max(1, m // 3)]].contiguous()

    ops.set_threads(threads)
    together, apart = ops.linear(x, weight), ops.linear(some, weight)
    ops.set_threads(1)
    alone = torch.cat([ops.linear(row[None], weight) for row in some])

    assert torch.equal(bits(apart), bits(alone))
    rows = [(x == row).all(dim=1).nonzero()[0, 0] for row in some]
    assert torch.equal(bits(together[torch.stack(rows)]), bits(alone))


@pytest.mark.parametrize("m", [1, 4, 9, 70])
def test_infinity_and_nan_stay_in_their_row_and_column(isa: str, m: int) -> None:
    x, weight = build_product(m, 20, 77, torch.float32)
    x[m - 1, 76] = math.nan
    weight[3, 76] = math.inf

    result = ops.linear(x, weight)

    assert result[m - 1].isnan().all()
    assert result[: m - 1, 3].isinf().all()
    untouched = [column for column in range(20) if column != 3]
    assert result[: m - 1, untouched].isfinite().all()


def test_values_beyond_the_last_column_are_never_read(isa: str) -> None:
    # The rows around the view hold NaN: one of them leaking into a tail would show.
    storage = torch.full((5, 77), math.nan)
    storage[1:4] = 1.0
    for m in (1, 3):
        assert torch.equal(ops.linear(torch.ones(m, 77), storage[1:4]), torch.full((m, 3), 77.0))


def test_no_rows_give_no_rows() -> None:
    assert ops.linear(torch.empty(0, 8), torch.ones(3, 8)).shape == (0, 3)


def test_out_is_written_and_returned() -> None:
    x, weight = build_product(3, 5, 8, torch.float32)
    out = torch.empty(3, 5)

    assert ops.linear(x, weight, out=out) is out
    assert torch.equal(out, ops.linear(x, weight))


X, WEIGHT = torch.ones(2, 3), torch.ones(4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((X, torch.ones(4, 5)), r"weight must be contiguous \[4, 3\].*found \[4, 5\]", id="inner sizes"),
        pytest.param((torch.ones(3), WEIGHT), r"x must be \[M, K\], found \[3\]", id="a vector"),
        pytest.param((X.double(), WEIGHT), r"x must be .* float32 .*found \[2, 3\] float64", id="float64"),
        pytest.param((X, WEIGHT.int()), r"weight must be .*bfloat16.*found \[4, 3\] int32", id="integers"),
        pytest.param((torch.ones(3, 2).T, WEIGHT), r"found \[2, 3\] float32 on cpu, not contiguous", id="transposed"),
        pytest.param((X, WEIGHT, torch.ones(3)), r"bias must be contiguous \[4\]", id="bias size"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_with_what_was_expected(
    arguments: tuple[torch.Tensor, ...], message: str
) -> None:
    with pytest.raises(ops.ShapeError, match=message):
        ops.linear(*arguments)


def test_tensors_of_another_device_run_on_the_reference() -> None:
    result = ops.linear(torch.ones(2, 3, device="meta"), torch.ones(4, 3, device="meta"))

    assert result.device.type == "meta"
