"""Reuse of beginnings under random schedules: answers as without a cache, less work, and nothing for other tenants."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_runtime.backends.base import Batch, Row
from windlass_runtime.kv.fingerprints import derive_scope
from windlass_runtime.kv.pages import PagePool
from windlass_runtime.scheduling.plan import StepPlan
from windlass_runtime.scheduling.scheduler import Limits, Scheduler
from windlass_runtime.scheduling.sequence import Sequence
from windlass_runtime.testing import FakeBackend, continuation

VOCABULARY, PAGE = 50, 4


class House:
    """A scheduler and a backend whose every token depends on all tokens before it, read from the pages."""

    def __init__(
        self,
        *,
        reuse: bool = True,
        pages: int = 24,
        step_tokens: int = 9,
        running: int = 3,
        prompts_only: bool = False,
    ) -> None:
        scope_of = (lambda tenant: derive_scope(b"0123456789abcdef", tenant)) if reuse else None
        self.pool = PagePool(pages, costly_depth=4)
        self.scheduler = Scheduler(
            Limits(step_tokens, running, PAGE, 64, prompts_only=prompts_only), self.pool, scope_of
        )
        self.backend = FakeBackend(
            vocabulary_size=VOCABULARY, page_tokens=PAGE, page_count=pages, max_sequence_tokens=64
        )
        self.answers: dict[str, list[int]] = {}
        self.computed = 0

    def submit(self, name: str, prompt: list[int], output: int = 4, tenant: str = "a") -> Sequence:
        sequence = Sequence(name, list(prompt), len(prompt) + output, tenant=tenant)
        self.scheduler.submit(sequence)
        return sequence

    def step(self) -> int:
        """Tokens computed in a step; 0 when there is nothing to do."""
        plan = self.scheduler.plan_step()
        if not plan.rows:
            return 0
        rows = tuple(Row(r.sequence_id, r.token_ids, r.start, r.page_table, r.samples, r.lane) for r in plan.rows)
        logits = self.backend.step(Batch(rows))
        names = [row.sequence_id for row in plan.rows if row.samples]
        tokens = {name: int(row.argmax()) for name, row in zip(names, logits, strict=True)}
        for finished in self.scheduler.apply_tokens(plan, tokens):
            self.answers[finished.sequence.sequence_id] = finished.sequence.generated
        self.scheduler.check()
        self.computed += plan.token_count
        return plan.token_count

    def finish(self) -> int:
        """Tokens computed until nothing is left."""
        before = self.computed
        while self.step():
            pass
        return self.computed - before


PROMPT = list(range(1, 31))


def test_the_second_of_two_equal_prompts_computes_only_its_last_page() -> None:
    house = House()
    house.submit("first", PROMPT)
    house.finish()

    second = house.submit("second", PROMPT)
    computed = house.finish()

    assert house.answers["second"] == house.answers["first"] == continuation(PROMPT, 4, VOCABULARY)
    assert second.cached_tokens == 28
    assert computed == len(PROMPT) - 28 + 3


def test_a_conversation_finds_its_own_answers_again() -> None:
    house = House()
    house.submit("turn", PROMPT[:10], output=10)
    house.finish()

    following = house.submit("next", PROMPT[:10] + house.answers["turn"] + [9, 9])
    house.finish()

    assert following.cached_tokens == 16


def test_where_generated_tokens_are_computed_otherwise_only_prompts_are_found_again() -> None:
    house = House(prompts_only=True)
    house.submit("turn", PROMPT[:10], output=10)
    house.finish()

    following = house.submit("next", PROMPT[:10] + house.answers["turn"] + [9, 9])
    house.finish()

    assert following.cached_tokens == 8


def test_a_sequence_on_its_way_back_takes_no_pages_of_prompts_for_what_it_generated() -> None:
    house = House(pages=12, running=2, prompts_only=True)
    answer = continuation(PROMPT[:8], 16, VOCABULARY)
    house.submit("prompt", PROMPT[:8] + answer, output=1)
    house.finish()

    preempted = house.submit("same", PROMPT[:8], output=16)
    preempted.tokens += answer[:12]
    house.step()

    assert preempted.cached_tokens == 8


def test_without_reuse_nothing_is_found() -> None:
    house = House(reuse=False)
    house.submit("first", PROMPT)
    house.finish()

    assert house.submit("second", PROMPT).cached_tokens == 0
    assert house.finish() == len(PROMPT) + 3


def test_preemption_leaves_what_was_computed_for_the_way_back() -> None:
    house = House(pages=12, running=2)
    for name in ("old", "young"):
        house.submit(name, PROMPT[:20] if name == "old" else PROMPT[5:25], output=12)

    computed = house.finish()

    for name, prompt in (("old", PROMPT[:20]), ("young", PROMPT[5:25])):
        assert house.answers[name] == continuation(prompt, 12, VOCABULARY)
    without = House(pages=12, running=2, reuse=False)
    for name in ("old", "young"):
        without.submit(name, PROMPT[:20] if name == "old" else PROMPT[5:25], output=12)
    assert computed <= without.finish()


STEMS = [PROMPT[:start] + [40] * (24 - start) for start in (0, 4, 10, 16, 24)]


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(
        st.one_of(
            st.tuples(st.just("submit"), st.sampled_from(STEMS), st.integers(1, 24), st.sampled_from("ab")),
            st.tuples(st.just("steps"), st.integers(1, 12)),
            st.tuples(st.just("drop"), st.integers(0, 30)),
        ),
        max_size=25,
    ),
    pages=st.integers(16, 30),
    step_tokens=st.integers(3, 20),
)
def test_answers_are_those_of_a_model_without_a_cache(
    events: list[tuple[object, ...]], pages: int, step_tokens: int
) -> None:
    house = House(pages=pages, step_tokens=step_tokens)
    prompts: dict[str, list[int]] = {}
    for event in events:
        match event:
            case ("submit", list(stem), int(length), str(tenant)):
                name = f"s{len(prompts)}"
                prompts[name] = stem[:length]
                house.submit(name, stem[:length], output=6, tenant=tenant)
            case ("steps", int(count)):
                for _ in range(count):
                    house.step()
            case ("drop", int(number)):
                if house.scheduler.drop(f"s{number}") is not None:
                    prompts[f"s{number}"] = []
    house.finish()

    for name, prompt in prompts.items():
        if prompt and name in house.answers:
            assert house.answers[name] == continuation(prompt, 6, VOCABULARY)
    assert house.pool.free_count == house.pool.page_count


def auc(positive: list[int], negative: list[int]) -> float:
    """How often a positive sample is above a negative one; ties count half."""
    wins = sum((a > b) + 0.5 * (a == b) for a in positive for b in negative)
    return wins / (len(positive) * len(negative))


@pytest.mark.parametrize(
    ("prober", "low", "high"),
    [pytest.param("a", 0.97, 1.0, id="its own tenant"), pytest.param("b", 0.47, 0.53, id="another tenant")],
)
def test_how_long_a_prompt_takes_tells_only_its_own_tenant_whether_it_was_computed_before(
    prober: str, low: float, high: float
) -> None:
    """Computed tokens stand for time. Of two equal houses, tenant a has sent the guessed prompt before in one only."""
    generator = random.Random(5)
    sent, unsent = [], []
    for _ in range(40):
        guess, other = ([generator.randrange(VOCABULARY) for _ in range(32)] for _ in range(2))
        output = 1 + generator.randrange(3)
        for secret, times in ((guess, sent), (other, unsent)):
            house = House(pages=64, step_tokens=4)
            house.submit("secret", secret, tenant="a")
            house.finish()
            house.submit("probe", guess, output=output, tenant=prober)
            times.append(-house.finish())

    assert low <= auc(sent, unsent) <= high


def test_among_tenants_served_alike_the_one_with_most_in_the_cache_goes_first_and_pays_a_tenth_for_it() -> None:
    scheduler = Scheduler(Limits(8, 4, 4, 64), PagePool(64), lambda tenant: tenant.encode().ljust(32))

    def submit(tenant: str, name: str) -> None:
        scheduler.submit(Sequence(name, list(range(1, 18)), 18, tenant=tenant))

    def step() -> StepPlan:
        plan = scheduler.plan_step()
        scheduler.apply_tokens(plan, {row.sequence_id: 7 for row in plan.rows if row.samples})
        scheduler.check()
        return plan

    submit("warm", "before")
    while scheduler.has_work:
        step()
    submit("cold", "cold")
    submit("warm", "warm")
    warm, cold = (scheduler.roster.tenants[name].account for name in ("warm", "cold"))
    before, warm.served = warm.total, cold.served

    plan = step()

    assert plan.rows[0].sequence_id == "warm"
    assert (plan.rows[0].start, plan.rows[0].cached_tokens) == (16, 16)
    assert warm.total - before == pytest.approx(16 * 0.1 + 1 + 2)
