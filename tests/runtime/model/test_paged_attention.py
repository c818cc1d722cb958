from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from support.checkpoints import build_spec
from windlass_runtime.kv.store import PAGE_TOKENS, PageStore, float_layout, sequence_pages
from windlass_runtime.model import paged_attention
from windlass_runtime.model.paged_attention import attend_decoding, attend_span, group_decoding
from windlass_runtime.model.ragged import RaggedStep, lay_out

CPU = torch.device("cpu")
SPEC = build_spec()
TOLERANCE = 1e-5  # FP32 sums of at most 200 terms of order 1, against FP64


@dataclass(frozen=True)
class Chunk:
    token_ids: tuple[int, ...]
    start: int
    page_table: tuple[int, ...]


def build_step(*shapes: tuple[int, int]) -> RaggedStep:
    """Sequences of (start, count), on pages nobody shares, in reverse order."""
    chunks, free = [], list(range(40))
    for start, count in shapes:
        pages = tuple(free.pop() for _ in range(sequence_pages(start + count)))
        chunks.append(Chunk((0,) * count, start, pages))
    return lay_out(chunks, CPU)


def fill_pages() -> PageStore:
    store = PageStore(float_layout(SPEC, torch.float32), 40, devices=(CPU,) * SPEC.layer_count)
    torch.manual_seed(5)
    for part in (store.layers[0].keys, store.layers[0].values):
        part.normal_()
    return store


def attend_slowly(step: RaggedStep, query: torch.Tensor, store: PageStore, window: int | None) -> torch.Tensor:
    """Token by token and head by head in float64, straight from the definition."""
    result = torch.empty(query.shape, dtype=torch.float64)
    layer, group = store.layers[0], SPEC.group_size
    for token in range(len(query)):
        position, table = int(step.positions[token]), step.page_tables[int(step.row_of[token])].tolist()
        oldest = 0 if window is None else max(0, position - window + 1)
        places = [(table[at // PAGE_TOKENS], at % PAGE_TOKENS) for at in range(oldest, position + 1)]
        for head in range(SPEC.query_heads):
            keys = torch.stack([layer.keys[page, head // group, offset] for page, offset in places]).double()
            values = torch.stack([layer.values[page, head // group, offset] for page, offset in places]).double()
            scores = keys @ query[token, head].double() / SPEC.head_size**0.5
            result[token, head] = scores.softmax(0) @ values
    return result


@pytest.mark.parametrize("window", [None, 1, 20, 64, 100])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((0, 1), id="first token"),
        pytest.param((64, 1), id="first token of a page"),
        pytest.param((150, 1), id="decoding"),
        pytest.param((0, 70), id="whole prompt"),
        pytest.param((63, 5), id="chunk over a page boundary"),
        pytest.param((130, 40), id="late chunk"),
    ],
)
def test_one_sequence_is_attended_as_the_definition_says(shape: tuple[int, int], window: int | None) -> None:
    step, store = build_step((3, 2), shape), fill_pages()
    query = torch.randn(2 + shape[1], SPEC.query_heads, SPEC.head_size)
    result = torch.full_like(query, torch.nan)

    attend_span(step, 1, query, store.layers[0], window, result)

    assert result[:2].isnan().all(), "wrote to a neighbour"
    torch.testing.assert_close(
        result[2:].double(), attend_slowly(step, query, store, window)[2:], rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("window", [None, 1, 20, 100])
@pytest.mark.parametrize("gather_elements", [2**28, 1], ids=["one group", "a group each"])
def test_sequences_that_decode_together_get_what_each_would_alone(
    window: int | None, gather_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged_attention, "_GATHER_ELEMENTS", gather_elements)
    step, store = build_step((150, 1), (4, 3), (0, 1), (63, 1), (64, 1)), fill_pages()
    query = torch.randn(7, SPEC.query_heads, SPEC.head_size)
    result = torch.full_like(query, torch.nan)

    groups = group_decoding(step, page_elements=2 * PAGE_TOKENS * 12)
    for group in groups:
        attend_decoding(group, query, store.layers[0], window, result)

    decoding = [0, 4, 5, 6]
    assert len(groups) == (1 if gather_elements > 1 else 4)
    assert result[1:4].isnan().all(), "wrote to a sequence in prefill"
    torch.testing.assert_close(
        result[decoding].double(), attend_slowly(step, query, store, window)[decoding], rtol=0, atol=TOLERANCE
    )
