"""Quantised pages on the kernels: the bytes of the definition, attention against float64, bits no batch changes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_kernels import ops, page_format, quantized_pages
from windlass_kernels.page_format import PAGE_TOKENS, PageFormat

STORED = [torch.float32, torch.bfloat16, torch.float16]
# Codes and scales are exact; what is left are float32 sums over at most 256 values of order 1 and their rotations.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Scene:
    """Rows with stored pages and a tail each; the last tokens of each row ask."""

    query: torch.Tensor
    pages: torch.Tensor
    tails: tuple[torch.Tensor, torch.Tensor]
    page_table: torch.Tensor
    tail_of: torch.Tensor
    row_of: torch.Tensor
    positions: torch.Tensor
    base: tuple[torch.Tensor, torch.Tensor]
    format: PageFormat
    window: int = 0

    def attend(self) -> torch.Tensor:
        tables = (self.page_table, self.tail_of, self.row_of, self.positions)
        return quantized_pages.attention(
            self.query, self.pages, *self.tails, *tables, *self.base, 0.125, self.format, self.window
        )

    def truth(self) -> torch.Tensor:
        tables = (self.page_table, self.tail_of, self.row_of, self.positions)
        return quantized_pages.attend_slowly(
            self.query, self.pages, self.tails, tables, self.base, 0.125, self.format, self.window, torch.float64
        )

    def only(self, tokens: slice) -> Scene:
        parts = ("query", "tail_of", "row_of", "positions")
        return replace(self, **{name: getattr(self, name)[tokens].contiguous() for name in parts})


def build_scene(
    lengths: list[int],
    chunks: list[int],
    *,
    bits: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    width: int = 64,
    dtype: torch.dtype = torch.float16,
    window: int = 0,
    seed: int = 0,
) -> Scene:
    """Row r has lengths[r] tokens, of which the last chunks[r] ask; a chunk stays within its own page."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    counts = [(length - 1) // PAGE_TOKENS for length in lengths]
    total, layout = sum(counts) + 1, PageFormat(bits, width)
    order = torch.randperm(total, generator=generator).int()
    table = torch.full((len(lengths), max(counts) + 1), -1, dtype=torch.int32)
    for row, count in enumerate(counts):
        table[row, :count] = order[sum(counts[:row]) : sum(counts[: row + 1])]
    bias = draw(kv_heads, 1, width) * 2
    stored = quantized_pages.quantize(
        draw(total, kv_heads, PAGE_TOKENS, width) + bias, draw(total, kv_heads, PAGE_TOKENS, width), layout
    )
    tails = [torch.full((len(lengths), kv_heads, PAGE_TOKENS, width), torch.nan) for _ in range(2)]
    for row, length in enumerate(lengths):
        for tail in tails:
            tail[row, :, : (length - 1) % PAGE_TOKENS + 1] = draw(kv_heads, (length - 1) % PAGE_TOKENS + 1, width)
    row_of = [row for row, chunk in enumerate(chunks) for _ in range(chunk)]
    positions = [at for length, chunk in zip(lengths, chunks, strict=True) for at in range(length - chunk, length)]
    angles = torch.arange(table.shape[1])[:, None] * PAGE_TOKENS * 10000.0 ** -torch.linspace(0, 1, width // 2 - 2)
    rows = torch.tensor(row_of, dtype=torch.int32)
    return Scene(
        draw(len(row_of), heads, width),
        stored,
        (tails[0].to(dtype), tails[1].to(dtype)),
        table,
        rows.clone(),
        rows,
        torch.tensor(positions, dtype=torch.int32),
        (angles.cos(), angles.sin()),
        layout,
        window,
    )


@pytest.mark.parametrize("width", [16, 64, 80, 128])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_filled_pages_have_the_bytes_of_the_definition(isa: str, dtype: torch.dtype, bits: int, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    keys, values = (torch.randn(3, 2, PAGE_TOKENS, width, generator=generator).to(dtype) for _ in range(2))
    keys[0, 0, 5, 3], keys[1, 1, 2, 2], values[0, 1, 7, 1] = torch.nan, torch.inf, -torch.inf
    keys[2, 0, :, 4], values[2, 1, 9] = -0.0, 3.0
    layout = PageFormat(bits, width)
    pages = torch.zeros(4, 2, layout.size, dtype=torch.uint8)
    page_ids, tails = torch.tensor([3, 0, 2], dtype=torch.int32), torch.tensor([2, 1, 0], dtype=torch.int32)

    quantized_pages.fill(pages, page_ids, keys, values, tails, layout)

    for page, tail in zip(page_ids.tolist(), tails.tolist(), strict=True):
        for head in range(2):
            parts = (part[tail, head].float().numpy() for part in (keys, values))
            expected = page_format.quantize_page(*parts, layout)
            assert_same_numbers(pages[page, head].numpy(), expected, layout)
    assert not pages[1].any()


def assert_same_numbers(found: np.ndarray, expected: np.ndarray, layout: PageFormat) -> None:
    """Bytes are equal, but any NaN is as good as another."""
    np.testing.assert_array_equal(found[: layout.key_scale], expected[: layout.key_scale])
    for start, stop in ((layout.key_scale, layout.value_codes), (layout.value_scale, layout.size)):
        np.testing.assert_array_equal(found[start:stop].view(np.float16), expected[start:stop].view(np.float16))
    values = slice(layout.value_codes, layout.value_scale)
    np.testing.assert_array_equal(found[values], expected[values])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [16, 80, 128])
def test_torch_reads_and_writes_what_numpy_does(bits: int, width: int) -> None:
    keys, values = torch.randn(2, PAGE_TOKENS, width), torch.randn(2, PAGE_TOKENS, width)
    layout = PageFormat(bits, width)

    pages = quantized_pages.quantize(keys, values, layout)
    back = quantized_pages.dequantize(pages, layout)

    for index in range(2):
        expected = page_format.quantize_page(keys[index].numpy(), values[index].numpy(), layout)
        np.testing.assert_array_equal(pages[index].numpy(), expected)
        for got, wanted in zip(back, page_format.dequantize_page(expected, layout), strict=True):
            np.testing.assert_array_equal(got[index].numpy(), wanted)


@pytest.mark.parametrize(
    "scene",
    [
        pytest.param(build_scene([1, 64, 65, 200], [1, 1, 1, 1]), id="decoding"),
        pytest.param(build_scene([300, 130], [40, 2]), id="a chunk"),
        pytest.param(build_scene([300, 130], [40, 2], bits=8), id="8 bits"),
        pytest.param(build_scene([250], [58], heads=1, kv_heads=1, width=80), id="a narrow last group"),
        pytest.param(build_scene([150], [20], heads=6, width=128, dtype=torch.bfloat16), id="two groups"),
        pytest.param(build_scene([150, 90], [3, 1], width=16, dtype=torch.float32), id="small heads"),
        pytest.param(build_scene([440], [50], window=100), id="a window"),
        pytest.param(build_scene([220], [28], window=20), id="a window of less than a page"),
    ],
)  # fmt: skip
def test_attention_agrees_with_float64(isa: str, scene: Scene) -> None:
    torch.testing.assert_close(scene.attend().double(), scene.truth(), rtol=0, atol=TOLERANCE)


@pytest.mark.skipif(not ops.available(), reason="torch's own attention is not batch invariant")
@settings(max_examples=25, deadline=None)
@given(data=st.data(), bits=st.sampled_from([4, 8]), window=st.sampled_from([0, 70]), threads=st.integers(1, 2))
def test_a_token_has_the_same_bits_alone_and_in_any_run(
    data: st.DataObject, bits: int, window: int, threads: int
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 260), min_size=1, max_size=3))
    chunks = [data.draw(st.integers(1, (length - 1) % PAGE_TOKENS + 1)) for length in lengths]
    scene = build_scene(lengths, chunks, bits=bits, window=window, heads=6)
    ops.set_threads(threads)

    together = scene.attend()

    chosen = data.draw(st.integers(0, len(together) - 1))
    assert torch.equal(scene.only(slice(chosen, chosen + 1)).attend()[0], together[chosen])
    stop = data.draw(st.integers(chosen + 1, len(together)))
    assert torch.equal(scene.only(slice(chosen, stop)).attend(), together[chosen:stop])


def test_filling_nothing_changes_nothing() -> None:
    layout, none = PageFormat(4, 16), torch.zeros(0, dtype=torch.int32)
    pages = torch.ones(1, 1, layout.size, dtype=torch.uint8)

    quantized_pages.fill(pages, none, *(torch.zeros(1, 1, PAGE_TOKENS, 16) for _ in range(2)), none, layout)

    assert bool((pages == 1).all())


def test_keys_may_turn_by_other_angles_than_queries(isa: str) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 3 * 16, generator=generator)
    angles = torch.randn(5, 8, generator=generator)
    at, keys_at = torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([4, 3, 2], dtype=torch.int32)
    pages = [torch.zeros(1, 1, PAGE_TOKENS, 16) for _ in range(4)]

    both = {"heads": 1, "interleaved": True}
    query = ops.rope_and_store(qkv, angles.cos(), angles.sin(), at, at, *pages[:2], key_angles=keys_at, **both)
    by_position = ops.rope_and_store(qkv, angles.cos(), angles.sin(), at, at, *pages[2:], **both)

    assert torch.equal(query, by_position)
    assert torch.equal(pages[0][:, :, 2], pages[2][:, :, 2])
    assert not torch.equal(pages[0][:, :, 0], pages[2][:, :, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pages": torch.zeros(4, 2, 10, dtype=torch.uint8)}, r"pages must be contiguous \[4, 2, 4608\] uint8"),
        ({"query": torch.zeros(1, 3, 64)}, r"a multiple of 2, 64\] for these pages, found \[1, 3, 64\]"),
        ({"base": (torch.zeros(1, 4), torch.zeros(1, 4))}, r"base_cos must be contiguous \[4, 4\]"),
    ],
    ids=["another format", "heads", "too few bases"],
)
def test_attention_refuses_what_does_not_fit(change: dict[str, object], message: str) -> None:
    scene = replace(build_scene([200], [1]), **change)

    with pytest.raises(ops.ShapeError, match=message):
        scene.attend()
