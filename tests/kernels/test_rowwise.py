"""Norms, the gate, the rotation and the store against float64 and torch; each row's bits stand alone."""

from __future__ import annotations

import math

import pytest
import torch

from windlass_kernels import ops, reference

ROWS = [0, 1, 3, 40]
WIDTHS = [1, 7, 64, 768, 2050]
# Sums of squares and exponentials within a few ulp (2^-24 each) of a result of the same size.
RELATIVE = 2e-6


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(result: torch.Tensor, truth: torch.Tensor, relative: float = RELATIVE) -> None:
    torch.testing.assert_close(result.double(), truth, rtol=relative, atol=1e-30)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_rms_norm_agrees_with_float64_row_by_row(isa: str, rows: int, width: int) -> None:
    x, weight = normal(rows, width), normal(width, seed=1)

    result = ops.rms_norm(x, weight, 1e-5)

    assert_close(result, reference.rms_norm(x, weight, 1e-5, torch.float64))
    assert all(torch.equal(result[i : i + 1], ops.rms_norm(x[i : i + 1], weight, 1e-5)) for i in range(rows))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_add_rms_norm_updates_the_residual_and_norms_it(isa: str, rows: int, width: int) -> None:
    residual, delta, weight = normal(rows, width), normal(rows, width, seed=2), normal(width, seed=1)
    summed = residual + delta

    result = ops.add_rms_norm_(residual, delta, weight, 1e-5, out=delta)

    assert result is delta
    assert torch.equal(residual, summed)
    assert torch.equal(result, ops.rms_norm(summed, weight, 1e-5))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", ROWS)
def test_silu_mul_agrees_with_float64_row_by_row(isa: str, rows: int, width: int) -> None:
    gate_up = normal(rows, 2 * width) * 8

    result = ops.silu_mul(gate_up)

    assert_close(result, reference.silu_mul(gate_up, torch.float64))
    assert all(torch.equal(result[i : i + 1], ops.silu_mul(gate_up[i : i + 1])) for i in range(rows))


def test_silu_mul_has_the_right_limits(isa: str) -> None:
    gate = torch.tensor([[0.0, -200.0, 200.0, math.inf, math.nan, -88.0, -0.0, 1e-30]])

    result = ops.silu_mul(torch.cat((gate, torch.ones_like(gate)), dim=1))

    expected = torch.nn.functional.silu(gate.double()).float()
    torch.testing.assert_close(result, expected, rtol=RELATIVE, atol=1e-37, equal_nan=True)


HALF_SPLIT, INTERLEAVED = False, True


@pytest.mark.parametrize(
    ("width", "half", "interleaved", "normed"),
    [
        pytest.param(64, 32, HALF_SPLIT, False, id="llama"),
        pytest.param(64, 16, INTERLEAVED, False, id="glm, half of the head turns"),
        pytest.param(128, 64, HALF_SPLIT, True, id="qwen3, heads normed"),
        pytest.param(10, 5, HALF_SPLIT, False, id="odd sizes"),
        pytest.param(10, 3, INTERLEAVED, True, id="odd sizes, interleaved and normed"),
        pytest.param(16, 0, HALF_SPLIT, False, id="nothing turns"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rope_and_store_agrees_with_float64(
    isa: str, width: int, half: int, interleaved: bool, normed: bool, dtype: torch.dtype
) -> None:
    heads, kv_heads, tokens = 6, 2, 9
    qkv = normal(tokens, (heads + 2 * kv_heads) * width)
    angles = normal(50, half, seed=3)
    positions = torch.tensor([0, 49, 7, 7, 3, 21, 22, 23, 24], dtype=torch.int32)
    slots = torch.tensor([0, 63, 64, 191, 100, -1, 101, 102, 17], dtype=torch.int32)
    norms = [normal(width, seed=4), normal(width, seed=5)] if normed else [None, None]
    pages = [torch.full((3, kv_heads, ops.PAGE_TOKENS, width), 7.0, dtype=dtype) for _ in range(2)]
    wide = [page.double() for page in pages]

    query = ops.rope_and_store(
        qkv,
        angles.cos(),
        angles.sin(),
        positions,
        slots,
        *pages,
        heads=heads,
        interleaved=interleaved,
        q_norm=norms[0],
        k_norm=norms[1],
    )

    tables = angles.cos().double(), angles.sin().double()
    truth = reference.rope_and_store(
        qkv, *tables, positions, slots, *wide, heads, interleaved, *norms, 1e-6, dtype=torch.float64
    )
    # A turn subtracts products of order 1; storing rounds to half an ulp of the page's type.
    torch.testing.assert_close(query.double(), truth, rtol=RELATIVE, atol=2e-6)
    for page, expected in zip(pages, wide, strict=True):
        torch.testing.assert_close(page.double(), expected, rtol=torch.finfo(dtype).eps / 2 + RELATIVE, atol=2e-6)


def test_stored_values_round_as_torch_rounds(isa: str) -> None:
    special = [0.0, -0.0, 1.0, 65504.0, 65519.996, 65520.0, 1e30, math.inf, -math.inf, math.nan, 6e-8, 2.9e-8, 3e-8]
    values = torch.cat((torch.tensor(special), normal(2035) * torch.logspace(-12, 6, 2035)))
    slots = torch.zeros(1, dtype=torch.int32)
    for dtype in (torch.bfloat16, torch.float16):
        pages = [torch.zeros(1, 1, ops.PAGE_TOKENS, 2048, dtype=dtype) for _ in range(2)]
        qkv = torch.cat((torch.zeros(2048), torch.zeros(2048), values))[None]
        ops.rope_and_store(qkv, torch.ones(1, 0), torch.ones(1, 0), slots, slots, *pages, heads=1)

        stored, expected = pages[1][0, 0, 0], values.to(dtype)
        number = ~expected.isnan()
        assert torch.equal(stored.view(torch.int16)[number], expected.view(torch.int16)[number])
        assert stored[~number].isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"slots": torch.zeros(2)}, r"slots must be contiguous \[2\] int32.*float32", id="slots type"),
        pytest.param({"cos": torch.ones(4, 9)}, r"cos must have at most D / 2 = 8 columns, found 9", id="too wide"),
        pytest.param({"heads": 5}, r"qkv must be contiguous \[2, 112\]", id="heads"),
        pytest.param({"value_pages": torch.zeros(2, 1, 64, 8)}, r"value_pages must be .*\[2, 1, 64, 16\]", id="pages"),
    ],
)
def test_rope_and_store_refuses_what_does_not_fit(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "qkv": torch.zeros(2, 4 * 16),
        "cos": torch.ones(4, 8),
        "sin": torch.ones(4, 8),
        "positions": torch.zeros(2, dtype=torch.int32),
        "slots": torch.zeros(2, dtype=torch.int32),
        "key_pages": torch.zeros(2, 1, 64, 16),
        "value_pages": torch.zeros(2, 1, 64, 16),
        "heads": 2,
    }
    with pytest.raises(ops.ShapeError, match=message):
        ops.rope_and_store(**(arguments | change))  # type: ignore[arg-type]
