# ruff: noqa: E501 - one case of a table per line reads better than wrapped
from __future__ import annotations

import pytest
import torch

from support.checkpoints import build_spec
from windlass_runtime.errors import CapacityError, UnsupportedModel
from windlass_runtime.kv.store import (
    PAGE_TOKENS,
    PageStore,
    choose_page_count,
    float_layout,
    plan_layout,
    sequence_pages,
)

SPEC = build_spec()
ONE_PAGE = 2 * 3 * 2 * 64 * 12 * 4  # keys and values, layers, heads, positions, head size, bytes


def choose(cache_bytes: int = 0, free_bytes: int = 10**9, running: int = 4, tokens: int = 512) -> int:
    layout = float_layout(SPEC, torch.float32, lanes=running)
    return choose_page_count(layout, cache_bytes=cache_bytes, free_bytes=free_bytes, max_sequence_tokens=tokens)


def test_a_page_costs_keys_and_values_of_every_layer() -> None:
    assert float_layout(SPEC, torch.float32).page_bytes == ONE_PAGE
    assert float_layout(SPEC, torch.bfloat16).page_bytes == ONE_PAGE // 2


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (64, 1), (65, 2)])
def test_a_started_page_counts_as_a_whole_one(tokens: int, pages: int) -> None:
    assert sequence_pages(tokens) == pages


@pytest.mark.parametrize(
    ("cache_bytes", "free_bytes", "pages"),
    [
        pytest.param(0, 10**9, 32, id="unstated: every running request at full length"),
        pytest.param(0, ONE_PAGE * 20, 16, id="unstated, little memory: four fifths of it"),
        pytest.param(ONE_PAGE * 10 + 5, 10**9, 10, id="stated: whole pages"),
    ],
)
def test_the_pool_is_sized_in_bytes(cache_bytes: int, free_bytes: int, pages: int) -> None:
    assert choose(cache_bytes, free_bytes) == pages


@pytest.mark.parametrize(
    ("cache_bytes", "free_bytes", "message"),
    [
        pytest.param(ONE_PAGE * 7, 10**9, f"512 tokens needs 8 pages x {ONE_PAGE} bytes = {8 * ONE_PAGE} bytes, {7 * ONE_PAGE} configured", id="stated too small"),
        pytest.param(0, ONE_PAGE * 9, "needs 8 pages .* usable of", id="machine too small"),
        pytest.param(10**9, 10**8, "need 1000000000 bytes as configured, 100000000 free", id="more than there is"),
    ],
)  # fmt: skip
def test_a_pool_that_cannot_hold_one_sequence_is_refused_with_the_arithmetic(
    cache_bytes: int, free_bytes: int, message: str
) -> None:
    with pytest.raises(CapacityError, match=message):
        choose(cache_bytes, free_bytes)


def test_what_is_written_is_gathered_in_the_order_of_the_page_table() -> None:
    layer = PageStore(float_layout(SPEC, torch.float32), 4, devices=(torch.device("cpu"),) * SPEC.layer_count).layers[1]
    layer.keys.zero_()
    keys, values = torch.randn(70, 2, 12), torch.randn(70, 2, 12)
    positions = torch.arange(70)
    table = torch.tensor([3, 1])

    layer.write(table[positions // PAGE_TOKENS], positions % PAGE_TOKENS, keys, values)
    gathered_keys, gathered_values = layer.gather(table)

    assert torch.equal(gathered_keys[:, :70], keys.transpose(0, 1))
    assert torch.equal(gathered_values[:, :70], values.transpose(0, 1))
    assert not layer.keys[[0, 2]].any()


def test_a_pool_beyond_all_memory_is_refused() -> None:
    with pytest.raises(CapacityError, match="the allocation failed"):
        PageStore(float_layout(SPEC, torch.float32), 2**40, devices=(torch.device("cpu"),) * SPEC.layer_count)


WIDE = build_spec(head_dim=64)


def test_pages_of_4_bits_take_less_than_a_third_of_float16() -> None:
    quantized = plan_layout(WIDE, 4, dtype=torch.float16, tail_dtype=torch.float16, lanes=4, step_tokens=512)

    assert float_layout(WIDE, torch.float16).page_bytes / quantized.page_bytes == pytest.approx(3.56, abs=0.01)


def test_the_pool_of_quantized_pages_pays_for_its_tails_too() -> None:
    layout = plan_layout(WIDE, 4, dtype=torch.float32, tail_dtype=torch.float16, lanes=2, step_tokens=128)

    # Two lanes in each of three layers; two whole pages and the end of a chunk per lane pass through the staging.
    assert layout.tail_pages == 2 * 3 + 4
    pages = choose_page_count(layout, cache_bytes=10**6, free_bytes=10**9, max_sequence_tokens=512)
    assert PageStore(layout, pages, devices=(torch.device("cpu"),) * 3).size_bytes in range(
        10**6 - layout.page_bytes, 10**6 + 1
    )


def test_a_pool_too_small_for_its_tails_says_what_they_take() -> None:
    layout = plan_layout(WIDE, 4, dtype=torch.float32, tail_dtype=torch.float16, lanes=2, step_tokens=128)

    with pytest.raises(CapacityError, match=r"\+ 10 unfinished pages in floats = \d+ bytes, 300000 configured"):
        choose_page_count(layout, cache_bytes=300_000, free_bytes=10**9, max_sequence_tokens=512)


def test_heads_of_odd_sizes_have_no_quantized_pages() -> None:
    with pytest.raises(UnsupportedModel, match="multiple of 16, found 12"):
        plan_layout(SPEC, 4, dtype=torch.float32, tail_dtype=torch.float16, lanes=1, step_tokens=64)
