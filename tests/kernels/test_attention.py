"""Paged attention against float64, and the promise that a token's bits do not depend on what runs beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_kernels import ops, reference

PAGE_TYPES = [torch.float32, torch.bfloat16, torch.float16]
# exp within 2 ulp, dot products over at most 256 values of order 1, weights that sum to 1.
TOLERANCE = 5e-6


@dataclass(frozen=True)
class Scene:
    """Pages of a few sequences, and tokens that look at them. Everything outside the sequences is NaN."""

    query: torch.Tensor
    key_pages: torch.Tensor
    value_pages: torch.Tensor
    page_table: torch.Tensor
    row_of: torch.Tensor
    positions: torch.Tensor
    window: int = 0

    def attend(self, tokens: slice = slice(None), window: int | None = None) -> torch.Tensor:
        return ops.paged_attention(
            self.query[tokens].contiguous(),
            self.key_pages,
            self.value_pages,
            self.page_table,
            self.row_of[tokens].contiguous(),
            self.positions[tokens].contiguous(),
            self.query.shape[-1] ** -0.5,
            self.window if window is None else window,
        )

    def truth(self) -> torch.Tensor:
        return reference.paged_attention(
            self.query,
            self.key_pages,
            self.value_pages,
            self.page_table,
            self.row_of,
            self.positions,
            self.query.shape[-1] ** -0.5,
            self.window,
            dtype=torch.float64,
        )


def build_scene(
    lengths: list[int],
    chunks: list[int],
    heads: int = 6,
    kv_heads: int = 2,
    width: int = 64,
    dtype: torch.dtype = torch.float32,
    window: int = 0,
    seed: int = 0,
) -> Scene:
    """Row r has lengths[r] tokens cached, of which the last chunks[r] ask."""
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-length // ops.PAGE_TOKENS) for length in lengths]
    pages = torch.randperm(sum(counts) + 2, generator=generator).int()
    table = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    keys, values = (torch.full((len(pages), kv_heads, ops.PAGE_TOKENS, width), math.nan, dtype=dtype) for _ in range(2))
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table[row, :count] = pages[sum(counts[:row]) : sum(counts[: row + 1])]
        for position in range(length):
            where = int(table[row, position // ops.PAGE_TOKENS]), slice(None), position % ops.PAGE_TOKENS
            keys[where] = torch.randn(kv_heads, width, generator=generator).to(dtype)
            values[where] = torch.randn(kv_heads, width, generator=generator).to(dtype)
    row_of = [row for row, chunk in enumerate(chunks) for _ in range(chunk)]
    positions = [lengths[row] - chunk + i for row, chunk in enumerate(chunks) for i in range(chunk)]
    query = torch.randn(len(row_of), heads, width, generator=generator)
    as_index = [torch.tensor(index, dtype=torch.int32) for index in (row_of, positions)]
    return Scene(query, keys, values, table, *as_index, window)


@pytest.mark.parametrize(
    "scene",
    [
        pytest.param(build_scene([1], [1]), id="first token"),
        pytest.param(build_scene([64, 65, 63], [1, 1, 1]), id="decode at page boundaries"),
        pytest.param(build_scene([130], [130]), id="whole prompt"),
        pytest.param(build_scene([200, 7, 129], [60, 7, 1]), id="chunk, prompt and decode together"),
        pytest.param(build_scene([150], [40], heads=4, kv_heads=4), id="as many kv heads as heads"),
        pytest.param(build_scene([150], [40], heads=7, kv_heads=1), id="one kv head"),
        pytest.param(build_scene([300], [9], heads=48, kv_heads=1, width=32), id="group larger than a run"),
        pytest.param(build_scene([140], [70], width=80), id="width 80"),
        pytest.param(build_scene([140], [70], width=8), id="width 8"),
        pytest.param(build_scene([100], [33], width=21), id="odd width"),
        pytest.param(build_scene([140], [70], width=256), id="width 256"),
        pytest.param(build_scene([140, 90], [70, 1], dtype=torch.bfloat16), id="bfloat16 pages"),
        pytest.param(build_scene([140, 90], [70, 1], width=100, dtype=torch.float16), id="float16 pages"),
        pytest.param(build_scene([200, 100], [150, 1], window=10), id="window inside a page"),
        pytest.param(build_scene([300, 100], [150, 1], window=64), id="window of one page"),
        pytest.param(build_scene([300], [300], window=1), id="window of one token"),
        pytest.param(build_scene([70], [70], window=1000), id="window beyond the start"),
    ],
)
def test_attention_agrees_with_float64_and_never_looks_outside_the_sequence(isa: str, scene: Scene) -> None:
    result = scene.attend()

    assert (result.double() - scene.truth()).abs().max() < TOLERANCE


@settings(deadline=None)  # machines share their cores
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    width=st.sampled_from([8, 20, 64]),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)]),
    window=st.sampled_from([0, 1, 50, 64, 100]),
    dtype=st.sampled_from(PAGE_TYPES),
    threads=st.sampled_from([1, 2, 3]),
    data=st.data(),
)
def test_a_token_has_the_same_bits_alone_in_a_chunk_and_in_any_batch(
    isa: str,
    lengths: list[int],
    width: int,
    heads: tuple[int, int],
    window: int,
    dtype: torch.dtype,
    threads: int,
    data: st.DataObject,
) -> None:
    chunks = [data.draw(st.integers(1, min(length, 40))) for length in lengths]
    scene = build_scene(lengths, chunks, *heads, width, dtype, window)
    split = data.draw(st.integers(0, sum(chunks)))

    ops.set_threads(threads)
    together = scene.attend()
    parts = torch.cat([scene.attend(slice(None, split)), scene.attend(slice(split, None))])
    ops.set_threads(1)
    alone = torch.cat([scene.attend(slice(t, t + 1)) for t in range(sum(chunks))])

    assert torch.equal(together, alone)
    assert torch.equal(parts, alone)


def test_scores_far_apart_neither_overflow_nor_vanish(isa: str) -> None:
    scene = build_scene([200], [3])
    scene.query.mul_(200)

    result = scene.attend()

    assert result.isfinite().all()
    # Scores of the order of 1,600 in float32 carry an absolute error of some 1e-4, which the exponential passes on.
    assert (result.double() - scene.truth()).abs().max() < 5e-3


def test_a_nan_value_reaches_only_the_tokens_that_see_it(isa: str) -> None:
    scene = build_scene([100], [100], heads=2, kv_heads=2)
    clean = scene.attend()
    scene.value_pages[scene.page_table[0, 0], 1, 60] = math.nan

    result = scene.attend()

    assert torch.equal(result[:60], clean[:60])
    assert torch.equal(result[:, 0], clean[:, 0])
    assert result[60:, 1].isnan().all()


def test_no_tokens_give_no_results() -> None:
    scene = build_scene([10], [2])

    assert scene.attend(slice(0, 0)).shape == (0, 6, 64)


def test_heads_that_do_not_fit_the_pages_are_refused() -> None:
    scene = build_scene([10], [2], heads=3, kv_heads=3)
    query = torch.zeros(2, 4, 64)

    with pytest.raises(ops.ShapeError, match=r"query must be \[T, a multiple of 3, 64\].*found \[2, 4, 64\]"):
        ops.paged_attention(
            query, scene.key_pages, scene.value_pages, scene.page_table, scene.row_of, scene.positions, 1.0
        )
