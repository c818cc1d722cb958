"""The bytes of quantised pages: size, order, rounding, and what happens to values that are no numbers."""

from __future__ import annotations

import numpy as np
import pytest

from windlass_kernels.page_format import CODE_BITS, PAGE_TOKENS, PageFormat, dequantize_page, quantize, quantize_page

WIDTHS = [16, 64, 80, 128, 256]


def build_page(width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    offsets = generator.normal(size=width) * 5
    return generator.normal(size=(PAGE_TOKENS, width)) + offsets, generator.normal(size=(PAGE_TOKENS, width))


@pytest.mark.parametrize(("bits", "expected"), [(4, 4.5), (8, 8.5)])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_a_page_takes_half_a_bit_per_element_beside_its_codes(bits, expected, width):
    page_format = PageFormat(bits, width)

    assert page_format.size * 8 / (2 * PAGE_TOKENS * width) == expected


@pytest.mark.parametrize("width", range(16, 272, 16))
@pytest.mark.parametrize("bits", CODE_BITS)
def test_head_pages_start_on_cache_lines(bits, width):
    assert PageFormat(bits, width).size % 64 == 0


@pytest.mark.parametrize(("bits", "width"), [(5, 64), (4, 24), (4, 0)])
def test_a_format_nobody_executes_is_refused(bits, width):
    with pytest.raises(ValueError, match=f"found {bits if bits == 5 else width}"):
        PageFormat(bits, width)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("bits", CODE_BITS)
def test_an_element_comes_back_within_half_a_step_of_its_row(bits, width):
    keys, values = build_page(width)

    got_keys, got_values = dequantize_page(
        quantize_page(keys, values, PageFormat(bits, width)), PageFormat(bits, width)
    )

    # A range is cut in 2 ** bits - 1 steps; its ends are float16, which move a code by a little more than half a step.
    def most_error(part: np.ndarray, axis: int) -> np.ndarray:
        return (part.max(axis, keepdims=True) - part.min(axis, keepdims=True)) / (2**bits - 1) * 0.5 + np.abs(
            part
        ).max() * 2**-10

    assert (np.abs(got_keys - keys) <= most_error(keys, 0)).all()
    assert (np.abs(got_values - values) <= most_error(values, 1)).all()


def test_the_bytes_lie_where_the_layout_says():
    width = 16
    keys, values = np.zeros((PAGE_TOKENS, width)), np.zeros((PAGE_TOKENS, width))
    keys[:, 4] = np.tile([0.0, 15.0], 32)  # even channel: low half; the code is the value
    keys[:, 5] = np.repeat([30.0, 0.0], 32)
    values[6, 3], values[7, 2] = 15.0, 15.0

    page_format = PageFormat(4, width)
    page = quantize_page(keys, values, page_format)

    row = page[2 * 64 : 3 * 64]
    assert row[0] == 0xF0
    assert row[1] == 0xFF
    assert row[63] == 0x0F
    assert page[page_format.key_scale :].view(np.float16)[4:6].tolist() == [1.0, 2.0]
    assert page[page_format.value_codes + 3 * width + 3] == 0x0F
    assert page[page_format.value_codes + 3 * width + 2] == 0xF0
    assert page[page_format.value_scale :].view(np.float16)[6:8].tolist() == [1.0, 1.0]


def test_values_of_wide_heads_have_a_scale_per_64_channels():
    values = np.ones((PAGE_TOKENS, 128))
    values[:, 64:] *= 1000
    values[:, 0] = 0
    values[:, 64] = 0

    _, got = dequantize_page(quantize_page(np.zeros_like(values), values, PageFormat(4, 128)), PageFormat(4, 128))

    np.testing.assert_allclose(got, values, rtol=2**-10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_with_something_that_is_no_number_is_wholly_nan(bad):
    rows = np.ones((2, 64), dtype=np.float32)
    rows[1, 7] = bad

    codes, scale, minimum = quantize(rows, 4)

    assert codes[1].tolist() == [0] * 64
    assert np.isnan(minimum[1])
    assert np.isnan(scale[1])
    assert (scale[0], minimum[0]) == (0, 1)


def test_a_range_beyond_float16_turns_to_nan_instead_of_to_something_plausible():
    keys = np.zeros((PAGE_TOKENS, 16))
    keys[0, 0] = 3e6

    got, _ = dequantize_page(quantize_page(keys, keys, PageFormat(4, 16)), PageFormat(4, 16))

    assert np.isnan(got[:, 0]).all()
    assert (got[:, 1] == 0).all()
