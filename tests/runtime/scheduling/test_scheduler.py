import dataclasses
from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_runtime.backends.base import Batch, Row
from windlass_runtime.errors import PromptTooLong
from windlass_runtime.kv.pages import PagePool
from windlass_runtime.scheduling.plan import StepPlan
from windlass_runtime.scheduling.scheduler import Limits, Scheduler
from windlass_runtime.scheduling.sequence import FinishReason, Sequence
from windlass_runtime.testing import FakeBackend, continuation

VOCABULARY = 50


def build_scheduler(
    *,
    step_tokens: int = 16,
    max_running: int = 4,
    page_tokens: int = 4,
    page_count: int = 32,
    longest: int = 64,
    assumed_output: int = 1,
) -> Scheduler:
    limits = Limits(step_tokens, max_running, page_tokens, longest, assumed_output_tokens=assumed_output)
    return Scheduler(limits, PagePool(page_count))


def build_sequence(
    name: str, prompt: int = 4, output: int = 8, stop: frozenset[int] = frozenset(), **changes: Any
) -> Sequence:
    return Sequence(name, list(range(1, prompt + 1)), prompt + output, stop, **changes)


def shares(plan: StepPlan) -> dict[str, int]:
    return {row.sequence_id: len(row.token_ids) for row in plan.rows}


def step(scheduler: Scheduler, token: int = 7) -> StepPlan:
    plan = scheduler.plan_step()
    scheduler.apply_tokens(plan, {row.sequence_id: token for row in plan.rows if row.samples})
    scheduler.check()
    return plan


def step_until(scheduler: Scheduler, done: Callable[[StepPlan], bool]) -> StepPlan:
    """The first plan for which `done` holds."""
    return next(plan for plan in (step(scheduler) for _ in range(200)) if done(plan))


def test_a_long_prompt_is_computed_in_chunks_of_the_step_budget_and_sampled_after_the_last() -> None:
    scheduler = build_scheduler(step_tokens=16)
    scheduler.submit(build_sequence("long", prompt=40))

    plans = [step(scheduler) for _ in range(4)]

    assert [(row.start, len(row.token_ids), row.samples) for plan in plans for row in plan.rows] == [
        (0, 16, False),
        (16, 16, False),
        (32, 8, True),
        (40, 1, True),
    ]


def test_decoding_sequences_advance_while_a_long_prompt_is_computed() -> None:
    scheduler = build_scheduler(step_tokens=16)
    scheduler.submit(build_sequence("stream"))
    step(scheduler)
    scheduler.submit(build_sequence("long", prompt=40))

    assert [shares(step(scheduler)) for _ in range(3)] == [
        {"stream": 1, "long": 15},
        {"stream": 1, "long": 15},
        {"stream": 1, "long": 10},
    ]


def test_several_prompts_share_one_step_in_order_of_arrival() -> None:
    scheduler = build_scheduler(step_tokens=10)
    for name in ("first", "second", "third"):
        scheduler.submit(build_sequence(name, prompt=4))

    assert shares(step(scheduler)) == {"first": 4, "second": 4, "third": 2}


def test_no_more_than_max_running_sequences_hold_pages() -> None:
    scheduler = build_scheduler(max_running=2)
    for name in ("a", "b", "c"):
        scheduler.submit(build_sequence(name))

    step(scheduler)

    assert (scheduler.running_count, scheduler.waiting_count) == (2, 1)


def test_fewer_sequences_run_than_allowed_when_a_step_has_no_token_for_each() -> None:
    scheduler = build_scheduler(step_tokens=2, max_running=8)

    assert scheduler.max_running == 2


def test_the_youngest_gives_its_pages_back_when_pages_run_out() -> None:
    scheduler = build_scheduler(page_tokens=4, page_count=8, max_running=2, longest=32)
    scheduler.submit(build_sequence("old", prompt=8, output=24))
    scheduler.submit(build_sequence("young", prompt=8, output=24))

    plan = step_until(scheduler, lambda plan: bool(plan.preempted))

    assert plan.preempted == ("young",)
    assert (scheduler.running_count, scheduler.waiting_count) == (1, 1)


def build_preempted() -> tuple[Scheduler, Sequence]:
    """A scheduler whose sequence "old" has just taken a place in the pages of "young"."""
    scheduler = build_scheduler(page_tokens=4, page_count=8, max_running=2, longest=32)
    young = build_sequence("young", prompt=8, output=24)
    scheduler.submit(build_sequence("old", prompt=8, output=24))
    scheduler.submit(young)
    step_until(scheduler, lambda plan: bool(plan.preempted))
    return scheduler, young


def test_a_preempted_sequence_keeps_its_full_pages_and_recomputes_only_the_rest() -> None:
    scheduler, young = build_preempted()
    assert (len(young.page_table), young.computed) == (3, 12), "four pages were full, and the old one took the last"
    had = list(young.tokens)

    scheduler.drop("old")
    (row,) = step(scheduler).rows

    assert (row.sequence_id, row.start, list(row.token_ids)) == ("young", 12, had[12:])
    assert young.preemptions == 1


def test_pages_of_a_preempted_sequence_go_to_running_ones_from_the_end_as_they_need_them() -> None:
    scheduler, young = build_preempted()

    kept = []
    while "old" in shares(step(scheduler)):
        kept.append(len(young.page_table))

    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == 0
    assert young.computed == 16, "it has begun anew once the old one has ended"


def test_a_newcomer_waits_when_it_would_take_pages_that_running_sequences_are_sure_to_need() -> None:
    scheduler = build_scheduler(page_tokens=4, page_count=4, longest=16)
    scheduler.submit(build_sequence("running", prompt=8, output=8))
    step(scheduler)
    scheduler.submit(build_sequence("newcomer", prompt=4, output=4))

    plan = step(scheduler)

    assert plan.admitted == ()
    assert scheduler.waiting_count == 1


def test_nobody_overtakes_the_line_even_when_a_later_prompt_would_fit() -> None:
    scheduler = build_scheduler(page_tokens=4, page_count=8, longest=32)
    scheduler.submit(build_sequence("running", prompt=8, output=8))
    step(scheduler)
    scheduler.submit(build_sequence("big", prompt=28, output=4))
    scheduler.submit(build_sequence("small", prompt=1, output=1))

    assert step(scheduler).admitted == ()


def test_a_newcomer_waits_while_running_answers_are_expected_to_take_the_pages() -> None:
    scheduler = build_scheduler(page_tokens=4, page_count=12, longest=32, assumed_output=16)
    scheduler.submit(build_sequence("running", prompt=8, output=24))
    step(scheduler)
    scheduler.submit(build_sequence("newcomer", prompt=16, output=16))

    assert step(scheduler).admitted == ()


def test_answers_that_turn_out_short_let_more_sequences_in() -> None:
    scheduler = build_scheduler(page_tokens=4, page_count=12, longest=32, assumed_output=16)
    scheduler.submit(build_sequence("short", output=20, stop=frozenset({7})))
    step(scheduler, token=7)
    scheduler.submit(build_sequence("running", prompt=8, output=24))
    step(scheduler)
    scheduler.submit(build_sequence("newcomer", prompt=16, output=16))

    assert step(scheduler).admitted == ("newcomer",)


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_a_dropped_sequence_frees_its_pages_at_once_in_any_state(state: str) -> None:
    scheduler = build_scheduler()
    scheduler.submit(build_sequence("gone"))
    if state == "running":
        step(scheduler)
        assert scheduler.free_pages < 32

    dropped = scheduler.drop("gone")

    assert dropped is not None
    assert scheduler.free_pages == 32
    assert not scheduler.has_work
    assert scheduler.drop("gone") is None


def test_tokens_of_a_sequence_dropped_during_the_step_are_ignored() -> None:
    scheduler = build_scheduler()
    scheduler.submit(build_sequence("gone"))
    plan = scheduler.plan_step()
    scheduler.drop("gone")

    assert scheduler.apply_tokens(plan, {"gone": 3}) == ()
    scheduler.check()


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        pytest.param(frozenset({7}), FinishReason.STOP, id="stop token"),
        pytest.param(frozenset({8}), FinishReason.LENGTH, id="length"),
    ],
)
def test_a_sequence_ends_by_stop_token_or_length_and_leaves_no_pages_behind(
    stop: frozenset[int], expected: FinishReason
) -> None:
    scheduler = build_scheduler()
    scheduler.submit(build_sequence("short", output=1, stop=stop))
    plan = scheduler.plan_step()

    (finished,) = scheduler.apply_tokens(plan, {"short": 7})

    assert finished.reason is expected
    assert finished.sequence.generated == [7]
    assert scheduler.free_pages == 32


def test_a_sequence_that_can_never_fit_is_refused_with_the_figures() -> None:
    scheduler = build_scheduler(page_tokens=4, page_count=4, longest=64)

    with pytest.raises(PromptTooLong, match=r"at most 16 tokens .* found 10 \+ 7"):
        scheduler.submit(build_sequence("big", prompt=10, output=7))


def test_an_idle_scheduler_plans_an_empty_step() -> None:
    assert build_scheduler().plan_step() == StepPlan(())


@dataclasses.dataclass(frozen=True)
class Arrival:
    at_step: int
    prompt: tuple[int, ...]
    output: int
    cancelled_after: int | None
    tenant: str
    priority: int


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        at_step=st.integers(0, 20),
        prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20).map(tuple),
        output=st.integers(1, 12),
        cancelled_after=st.none() | st.integers(0, 10),
        tenant=st.sampled_from(["a", "b", "c"]),
        priority=st.integers(0, 2),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=150, deadline=None)
@given(
    arrivals=ARRIVALS,
    step_tokens=st.integers(1, 24),
    max_running=st.integers(1, 6),
    page_tokens=st.integers(1, 5),
    spare_pages=st.integers(0, 12),
    quantum=st.integers(0, 40),
    assumed_output=st.integers(1, 12),
)
def test_whatever_arrives_everybody_ends_with_the_tokens_it_gets_alone_and_no_page_leaks(
    arrivals: AbstractSequence[Arrival],
    step_tokens: int,
    max_running: int,
    page_tokens: int,
    spare_pages: int,
    quantum: int,
    assumed_output: int,
) -> None:
    page_count = -(-32 // page_tokens) + spare_pages
    backend = FakeBackend(
        vocabulary_size=VOCABULARY, page_tokens=page_tokens, page_count=page_count, max_sequence_tokens=32
    )
    stop = frozenset({3})
    limits = Limits(step_tokens, max_running, page_tokens, 32, assumed_output, quantum, {"b": 2.5})
    scheduler = Scheduler(limits, PagePool(page_count))
    sequences = {
        f"s{index}": Sequence(
            f"s{index}",
            list(arrival.prompt),
            len(arrival.prompt) + arrival.output,
            stop,
            tenant=arrival.tenant,
            priority=arrival.priority,
        )
        for index, arrival in enumerate(arrivals)
    }
    finished: set[str] = set()
    cancelled: set[str] = set()
    for now in range(3000):
        for name, arrival in zip(sequences, arrivals, strict=True):
            if arrival.at_step == now:
                scheduler.submit(sequences[name])
            cancel_now = arrival.cancelled_after is not None and arrival.at_step + arrival.cancelled_after == now
            if cancel_now and scheduler.drop(name) is not None:
                cancelled.add(name)
        if now > 30 and not scheduler.has_work:
            break
        plan = scheduler.plan_step()
        assert bool(plan.rows) == scheduler.has_work
        if not plan.rows:
            continue
        assert plan.token_count <= step_tokens
        assert len(plan.rows) <= max_running
        logits = backend.step(
            Batch(tuple(Row(r.sequence_id, r.token_ids, r.start, r.page_table, r.samples, r.lane) for r in plan.rows))
        )
        sampled = [row.sequence_id for row in plan.rows if row.samples]
        ended = scheduler.apply_tokens(plan, dict(zip(sampled, logits.argmax(dim=-1).tolist(), strict=True)))
        finished |= {end.sequence.sequence_id for end in ended}
        scheduler.check()

    assert not scheduler.has_work
    assert scheduler.free_pages == page_count
    assert finished | cancelled == set(sequences)
    for name in finished:
        sequence = sequences[name]
        alone = continuation(sequence.tokens[: sequence.prompt_tokens], 32, VOCABULARY, stop)
        assert sequence.generated == alone[: sequence.max_tokens - sequence.prompt_tokens]
