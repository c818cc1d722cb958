from __future__ import annotations

import torch

from windlass_runtime.backends.base import Row
from windlass_runtime.model.ragged import Span, lay_out

CPU = torch.device("cpu")


def test_sequences_lie_one_behind_the_other_and_each_token_knows_its_slot() -> None:
    prompt = Row("a", (11, 12, 13), 63, (5, 2), wants_logits=True)
    decoding = Row("b", (21,), 0, (7, 8, 9), wants_logits=True)

    step = lay_out((prompt, decoding), CPU)

    assert step.token_ids.tolist() == [11, 12, 13, 21]
    assert step.positions.tolist() == [63, 64, 65, 0]
    assert step.slots.tolist() == [5 * 64 + 63, 2 * 64, 2 * 64 + 1, 7 * 64]
    assert step.row_of.tolist() == [0, 0, 0, 1]
    assert step.spans == (Span(0, 3, 63), Span(3, 1, 0))


def test_page_tables_are_padded_to_the_pages_in_use() -> None:
    step = lay_out((Row("a", (1,), 64, (5, 2, 6), True), Row("b", (1,), 3, (7, 8), True)), CPU)

    assert step.page_tables.tolist() == [[5, 2], [7, 0]]


def test_every_tensor_is_dense_int32() -> None:
    step = lay_out((Row("a", (1, 2), 0, (0,), True),), CPU)

    for tensor in (step.token_ids, step.positions, step.slots, step.row_of, step.page_tables):
        assert tensor.dtype == torch.int32
        assert tensor.is_contiguous()
