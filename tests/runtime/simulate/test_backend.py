"""The simulated backend on a clock of its own: how long steps take, and what is said."""

from collections.abc import Callable

import pytest

from windlass_runtime.backends.base import Batch, Row
from windlass_runtime.backends.sampling_params import SamplingParams
from windlass_runtime.simulate.backend import SimulatedBackend, SimulatedSampler
from windlass_runtime.simulate.codec import END, SimulatedCodec
from windlass_runtime.simulate.profile import Profile


class Clock:
    """Time that passes while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def never(reason: str) -> None:
    raise AssertionError(reason)


def build_backend(clock: Clock, crash: Callable[[str], None] = never, **figures: object) -> SimulatedBackend:
    defaults = {"step_s": 0.010, "per_sequence_s": 0.001, "prefill_tokens_per_s": 1000.0}
    profile = Profile(**{**defaults, **figures})  # type: ignore[arg-type]
    return SimulatedBackend(profile, 100, crash, clock=clock.now, sleep=clock.sleep)


def prompt(name: str, tokens: int = 10) -> Row:
    return Row(name, (1,) * tokens, 0, (0,), wants_logits=True)


def decode(name: str) -> Row:
    return Row(name, (1,), 10, (0,), wants_logits=True)


def seconds_of(clock: Clock, backend: SimulatedBackend, *rows: Row) -> float:
    before_s = clock.now_s
    backend.step(Batch(rows))
    return clock.now_s - before_s


def test_a_step_takes_the_time_of_what_is_in_it() -> None:
    clock = Clock()
    backend = build_backend(clock)

    assert seconds_of(clock, backend, prompt("a", 100)) == pytest.approx(0.110)
    assert seconds_of(clock, backend, decode("a"), decode("b"), prompt("c", 50)) == pytest.approx(0.062)


def test_what_planning_costs_between_two_steps_is_not_paid_twice() -> None:
    clock = Clock()
    backend = build_backend(clock)
    backend.step(Batch((prompt("a"),)))

    clock.now_s += 0.004  # planning and handing out tokens
    assert seconds_of(clock, backend, decode("a")) == pytest.approx(0.011 - 0.004)
    clock.now_s += 5.0  # a stalled process makes up for one step at most
    assert seconds_of(clock, backend, decode("a")) == pytest.approx(0.0)
    assert seconds_of(clock, backend, decode("a")) == pytest.approx(0.011)


def test_an_idle_replica_does_not_answer_sooner() -> None:
    clock = Clock()
    backend = build_backend(clock)
    backend.step(Batch((prompt("a"),)))

    clock.now_s += 0.004

    assert seconds_of(clock, backend, prompt("b")) == pytest.approx(0.020)


def test_jitter_varies_steps_within_its_share_and_repeats_with_its_seed() -> None:
    def run(seed: int) -> list[float]:
        clock = Clock()
        backend = build_backend(clock, jitter=0.5, seed=seed)
        return [seconds_of(clock, backend, prompt(str(number), 1)) for number in range(200)]

    times = run(1)
    assert 0.0055 <= min(times) < 0.007
    assert 0.015 < max(times) <= 0.0165
    assert times == run(1) != run(2)


def test_the_crash_comes_with_the_sequence_that_was_named_however_often_others_were_preempted() -> None:
    reasons: list[str] = []
    backend = build_backend(Clock(), reasons.append, crash_after_requests=2)

    for _ in range(3):
        backend.step(Batch((prompt("a"),)))
    assert reasons == []
    backend.step(Batch((decode("a"), prompt("b"))))

    assert reasons == ["2 sequences have begun"]


def test_an_answer_ends_at_its_length() -> None:
    sampler = SimulatedSampler(Profile(answer_tokens=3))
    state = sampler.begin(SamplingParams(), (1,), 0)

    tokens = [sampler.sample(None, [state])[0] for _ in range(4)]

    ids = [token.token_id for token in tokens if token is not None]
    assert ids[-1] == END
    assert SimulatedCodec().decode(ids) == "This answer "


def test_lengths_and_failures_follow_their_shares_and_their_seed() -> None:
    def draw(seed: int) -> list[tuple[int, bool]]:
        sampler = SimulatedSampler(Profile(answer_tokens=100, answer_spread=0.5, failure_share=0.25, seed=seed))
        states = [sampler.begin(SamplingParams(seed=number), (1,), number) for number in range(400)]
        return [(state.length, state.fails) for state in states]

    drawn = draw(1)
    assert 50 <= min(length for length, _ in drawn) < 60
    assert 140 < max(length for length, _ in drawn) <= 150
    assert 70 <= sum(fails for _, fails in drawn) <= 130
    assert drawn == draw(1) != draw(2)


def test_log_probabilities_are_reported_when_asked_for() -> None:
    sampler = SimulatedSampler(Profile())
    states = [sampler.begin(SamplingParams(top_logprobs=2), (1,), 0), sampler.begin(SamplingParams(), (1,), 0)]

    asked, silent = sampler.sample(None, states)

    assert asked is not None
    assert silent is not None
    assert asked.logprob is not None
    assert asked.top[0] == (asked.token_id, asked.logprob)
    assert (silent.logprob, silent.top) == (None, ())
