from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from windlass_runtime.engine.shape import DECODE, PREFILL, PlanShape
from windlass_runtime.engine.steps import Call, SlotWork, plan_calls

SHAPE = PlanShape(capacity=64, decode_rows=6, prefill_rows=2, prefill_tokens=16)


def item(slot: int, count: int, start: int = 0) -> SlotWork:
    return SlotWork(slot, (7,) * count, start, row=slot)


def test_rows_that_decode_share_one_call_over_idle_slots_between_them() -> None:
    calls = plan_calls([item(3, 1, 9), item(1, 1, 5)], [0, 5, 20, 9, 0, 0], SHAPE)

    assert calls == [Call(DECODE, (item(1, 1, 5), SlotWork(2, (0,), 20, -1), item(3, 1, 9)))]


def test_an_idle_slot_that_is_full_keeps_its_write_inside() -> None:
    call = plan_calls([item(0, 1), item(2, 1)], [0, 64, 0, 0, 0, 0], SHAPE)[0]

    assert call.work[1].start == 63


def test_equal_prompts_in_neighbouring_slots_share_a_call() -> None:
    calls = plan_calls([item(0, 8), item(1, 8), item(2, 8), item(4, 8)], [0] * 6, SHAPE)

    assert [[work.slot for work in call.work] for call in calls] == [[0, 1], [2], [4]]
    assert {call.profile for call in calls} == {PREFILL}


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[SlotWork], list[int]]:
    lengths, work = [draw(st.integers(0, SHAPE.capacity)) for _ in range(SHAPE.decode_rows)], []
    for slot in draw(st.sets(st.integers(0, SHAPE.decode_rows - 1), min_size=1)):
        start = draw(st.integers(0, SHAPE.capacity - 1))
        count = draw(st.integers(1, SHAPE.capacity - start))
        work.append(SlotWork(slot, tuple(range(count)), start, row=len(work)))
    return work, lengths


@given(batches())
def test_calls_stay_within_the_plan_and_compute_every_token_once_in_order(
    batch: tuple[list[SlotWork], list[int]],
) -> None:
    work, lengths = batch

    calls = plan_calls(work, lengths, SHAPE)

    computed: dict[int, list[int]] = {wanted.row: [] for wanted in work}
    for call in calls:
        rows, tokens = (SHAPE.decode_rows, 1) if call.profile == DECODE else (SHAPE.prefill_rows, SHAPE.prefill_tokens)
        assert len(call.work) <= rows
        assert 0 < call.tokens <= tokens
        assert [part.slot for part in call.work] == list(range(call.first_slot, call.first_slot + len(call.work)))
        for part in call.work:
            assert len(part.token_ids) == call.tokens, "rows of unequal length"
            assert 0 <= part.start <= SHAPE.capacity - call.tokens, "a write past the cache"
            if part.row >= 0:
                assert part.start == work[part.row].start + len(computed[part.row])
                computed[part.row] += part.token_ids
            else:
                assert part.start >= min(lengths[part.slot], SHAPE.capacity - 1), "an idle slot loses its content"
    assert all(tuple(computed[wanted.row]) == wanted.token_ids for wanted in work)
