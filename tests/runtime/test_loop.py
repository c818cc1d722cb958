"""The engine on a fake backend: what reaches a caller, in which order, and what is left behind."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from support import letters
from windlass_runtime.backends.base import Batch
from windlass_runtime.backends.sampling import SamplingParams
from windlass_runtime.errors import (
    DeadlineMissed,
    Draining,
    NotServing,
    PromptTooLong,
    QueueFull,
    RequestError,
    RuntimeFault,
    StepFailed,
)
from windlass_runtime.generation import Event, GenerationRequest, Piece
from windlass_runtime.loop import MOST_FAILED_STEPS, Engine, EngineLimits
from windlass_runtime.metrics import RuntimeMetrics
from windlass_runtime.scheduling.view import SchedulerView
from windlass_runtime.testing import FakeBackend
from windlass_runtime.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0)
Build = Callable[..., Engine]


@pytest.fixture
def build_engine() -> Iterator[Build]:
    engines: list[Engine] = []

    def build(backend: FakeBackend | None = None, tokenizer: Tokenizer | None = None, **limits: int) -> Engine:
        engine = Engine(
            backend or letters.build_backend(),
            tokenizer or letters.build_tokenizer(),
            EngineLimits(**limits),
            RuntimeMetrics("letters"),
        )
        engine.start()
        engines.append(engine)
        return engine

    yield build
    for engine in engines:
        engine.close()


def build_request(name: str = "r", prompt: Sequence[int] = (70, 71), tokens: int | None = 8, **changes: Any) -> Any:
    return GenerationRequest(name, tuple(prompt), **{"sampling": GREEDY, "max_new_tokens": tokens, **changes})


def submit(engine: Engine, request: GenerationRequest) -> "queue.SimpleQueue[Event]":
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine.submit(request, events.put)
    return events


def collect(events: "queue.SimpleQueue[Event]", choices: int = 1) -> list[Piece]:
    """All pieces of a request; raises its fault."""
    pieces: list[Piece] = []
    while sum(piece.finish is not None for piece in pieces) < choices:
        event = events.get(timeout=10)
        if isinstance(event, RuntimeFault):
            raise event
        pieces.append(event)
    return pieces


def text_of(pieces: list[Piece], choice: int = 0) -> str:
    return "".join(piece.text for piece in pieces if piece.choice == choice)


def free_pages_when_idle(engine: Engine) -> int:
    assert engine.wait_idle(10)
    return engine.stats.free_pages


def test_text_arrives_piece_by_piece_and_ends_with_the_reason(build_engine: Build) -> None:
    engine = build_engine()

    pieces = collect(submit(engine, build_request(tokens=8)))

    assert [len(piece.text) for piece in pieces] == [1] * 8
    assert text_of(pieces) == letters.letters_after((70, 71), 8)
    assert [piece.finish for piece in pieces] == [None] * 7 + ["length"]
    assert free_pages_when_idle(engine) == 256


def test_without_a_limit_the_answer_fills_what_the_model_can_hold(build_engine: Build) -> None:
    engine = build_engine(letters.build_backend(max_sequence_tokens=30))

    pieces = collect(submit(engine, build_request(tokens=None)))

    assert sum(len(piece.token_ids) for piece in pieces) == 28


def test_two_choices_run_side_by_side_and_both_end(build_engine: Build) -> None:
    sampling = SamplingParams(temperature=2, seed=3)
    request = build_request(tokens=12, choices=2, sampling=sampling)

    first = collect(submit(build_engine(), request), choices=2)
    second = collect(submit(build_engine(), request), choices=2)

    texts = [text_of(first, choice) for choice in (0, 1)]
    assert texts == [text_of(second, choice) for choice in (0, 1)]
    assert texts[0] != texts[1]


def test_a_stop_string_ends_the_work_early_and_its_tokens_are_not_reported(build_engine: Build) -> None:
    full = letters.letters_after((70, 71), 40)
    stop = full[20:23]
    backend = letters.build_backend()
    engine = build_engine(backend)

    pieces = collect(submit(engine, build_request(tokens=40, stop=(stop,))))

    before = full[: full.index(stop)]
    assert text_of(pieces) == before
    assert pieces[-1].finish == "stop"
    assert [token.token_id for piece in pieces for token in piece.tokens] == [letters.token_of(c) for c in before]
    assert sum(len(piece.token_ids) for piece in pieces) == len(before) + 3
    assert free_pages_when_idle(engine) == 256
    assert len(backend.steps) == len(before) + 3


def test_a_character_of_several_tokens_is_shown_once_it_is_whole(build_engine: Build) -> None:
    text = "é世🎉"
    script = [letters.FIRST_BYTE + byte for byte in text.encode()]
    backend = letters.build_backend(choose=lambda tokens: script[len(tokens) - 2])

    pieces = collect(submit(build_engine(backend), build_request(tokens=len(script))))

    assert [piece.text for piece in pieces if piece.text] == list(text)
    assert [token.token_id for piece in pieces for token in piece.tokens] == script


def test_a_cancelled_request_emits_nothing_more_and_frees_its_pages(build_engine: Build) -> None:
    engine = build_engine(letters.build_backend(max_sequence_tokens=1000, page_count=300))
    events = submit(engine, build_request(tokens=900))
    events.get(timeout=10)

    engine.cancel("r")

    assert free_pages_when_idle(engine) == 300
    assert engine.stats.in_house == 0


def test_cancelling_what_is_unknown_or_over_changes_nothing(build_engine: Build) -> None:
    engine = build_engine()
    collect(submit(engine, build_request("done")))

    engine.cancel("done")
    engine.cancel("never")

    assert text_of(collect(submit(engine, build_request("next", tokens=3)))) == letters.letters_after((70, 71), 3)


def test_many_requests_in_few_pages_each_get_the_answer_they_would_get_alone(build_engine: Build) -> None:
    engine = build_engine(
        letters.build_backend(page_count=20, max_sequence_tokens=64), max_running_requests=6, step_tokens=16
    )
    prompts = [tuple(range(65, 66 + number)) for number in range(24)]

    streams = [submit(engine, build_request(str(i), prompt, tokens=20)) for i, prompt in enumerate(prompts)]

    assert [text_of(collect(stream)) for stream in streams] == [letters.letters_after(prompt, 20) for prompt in prompts]
    assert free_pages_when_idle(engine) == 20


def test_an_idle_engine_takes_no_steps(build_engine: Build) -> None:
    backend = letters.build_backend()
    engine = build_engine(backend)
    collect(submit(engine, build_request(tokens=3)))
    assert engine.wait_idle(10)

    assert len(backend.steps) == engine.stats.steps == 3


@pytest.mark.parametrize(
    ("changes", "expected", "parameter"),
    [
        pytest.param({"prompt": ()}, RequestError, "prompt", id="no prompt"),
        pytest.param({"prompt": (999,)}, RequestError, "prompt", id="unknown token"),
        pytest.param({"prompt": (-1,)}, RequestError, "prompt", id="negative token"),
        pytest.param({"tokens": 0}, RequestError, "max_tokens", id="no output"),
        pytest.param({"tokens": 255}, PromptTooLong, "prompt", id="too much output"),
        pytest.param({"prompt": (70,) * 256, "tokens": None}, PromptTooLong, "prompt", id="no room for output"),
        pytest.param({"choices": 1000}, RequestError, "n", id="more choices than places"),
    ],
)
def test_an_impossible_request_is_refused_before_it_enters(
    build_engine: Build, changes: dict[str, Any], expected: type[RequestError], parameter: str
) -> None:
    engine = build_engine()

    with pytest.raises(expected) as caught:
        submit(engine, build_request(**changes))

    assert caught.value.parameter == parameter
    assert engine.stats.in_house == 0


def test_one_request_more_than_the_house_holds_is_refused_until_somebody_leaves(build_engine: Build) -> None:
    go = threading.Event()
    engine = build_engine(
        letters.build_backend(before_step=lambda _: go.wait(10)), max_running_requests=1, max_queued_requests=1
    )
    streams = [submit(engine, build_request(name)) for name in ("runs", "waits")]

    with pytest.raises(QueueFull):
        submit(engine, build_request("refused"))

    go.set()
    for stream in streams:
        collect(stream)
    assert engine.wait_idle(10)
    collect(submit(engine, build_request("later")))


def test_a_draining_engine_finishes_what_it_has_and_refuses_the_rest(build_engine: Build) -> None:
    go = threading.Event()
    engine = build_engine(letters.build_backend(before_step=lambda _: go.wait(10)))
    events = submit(engine, build_request(tokens=5))

    engine.drain()

    with pytest.raises(Draining):
        submit(engine, build_request("late"))
    assert not engine.wait_idle(0)
    go.set()
    assert len(text_of(collect(events))) == 5
    assert engine.wait_idle(10)


def test_at_the_deadline_everybody_is_told(build_engine: Build) -> None:
    free_steps = threading.Semaphore(2)
    go = threading.Event()

    def before_step(batch: Batch) -> None:
        if not free_steps.acquire(blocking=False):
            go.wait(10)

    engine = build_engine(letters.build_backend(before_step=before_step), max_running_requests=1)
    streams = [submit(engine, build_request(name, tokens=200)) for name in ("runs", "waits")]
    streams[0].get(timeout=10)

    engine.cancel_all(Draining("time is up"))
    go.set()

    for stream in streams:
        with pytest.raises(Draining, match="time is up"):
            collect(stream)
    assert free_pages_when_idle(engine) == 256


def test_a_failed_step_fails_its_requests_only_and_the_engine_goes_on(build_engine: Build) -> None:
    fail = threading.Event()

    def before_step(batch: Batch) -> None:
        if fail.is_set():
            fail.clear()
            raise RuntimeError("device lost its way")

    engine = build_engine(letters.build_backend(before_step=before_step))
    fail.set()
    events = submit(engine, build_request("unlucky"))

    with pytest.raises(StepFailed, match="engine step failed: RuntimeError"):
        collect(events)

    assert engine.healthy
    assert free_pages_when_idle(engine) == 256
    assert len(text_of(collect(submit(engine, build_request("lucky"))))) == 8


def test_a_device_that_keeps_failing_turns_the_engine_unhealthy_and_refuses_everybody(build_engine: Build) -> None:
    def before_step(batch: Batch) -> None:
        raise RuntimeError("device lost for good")

    engine = build_engine(letters.build_backend(before_step=before_step))

    for number in range(MOST_FAILED_STEPS):
        assert engine.healthy
        with pytest.raises((StepFailed, NotServing)):
            collect(submit(engine, build_request(str(number))))
        assert engine.wait_idle(10)

    # The last failure is told to its request a moment before the engine gives up.
    with pytest.raises((NotServing, StepFailed)):
        collect(submit(engine, build_request("late")))
    assert not engine.healthy
    with pytest.raises(NotServing, match="3 steps failed in a row, the last with RuntimeError"):
        submit(engine, build_request("later"))


def test_logits_that_are_not_numbers_fail_their_own_request_alone(build_engine: Build) -> None:
    class Poisoned(FakeBackend):
        def step(self, batch: Batch) -> torch.Tensor:
            logits = super().step(batch)
            names = [row.request_id for row in batch.rows if row.wants_logits]
            for index, name in enumerate(names):
                if name.startswith("bad"):
                    logits[index] = float("nan")
            return logits

    backend = Poisoned(
        vocabulary_size=letters.VOCABULARY, max_sequence_tokens=64, page_count=64, choose=letters.letter_after
    )
    engine = build_engine(backend)
    bad, good = submit(engine, build_request("bad")), submit(engine, build_request("good"))

    with pytest.raises(StepFailed, match="NaN"):
        collect(bad)

    assert text_of(collect(good)) == letters.letters_after((70, 71), 8)
    assert engine.healthy


def test_a_callback_that_breaks_ends_its_own_request_alone(build_engine: Build) -> None:
    engine = build_engine()

    def broken(event: Event) -> None:
        raise ZeroDivisionError

    other = submit(engine, build_request("other"))
    engine.submit(build_request("broken", tokens=200), broken)

    assert text_of(collect(other)) == letters.letters_after((70, 71), 8)
    assert free_pages_when_idle(engine) == 256
    assert engine.healthy


def test_a_bug_in_the_loop_tells_everybody_and_turns_the_engine_unhealthy(build_engine: Build) -> None:
    class Broken(Tokenizer):
        def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
            raise ZeroDivisionError

    go = threading.Event()
    backend = letters.build_backend(before_step=lambda _: go.wait(10))
    engine = build_engine(backend, Broken(letters.build_core(), {}))
    streams = [submit(engine, build_request(name)) for name in ("one", "two")]
    go.set()

    for stream in streams:
        with pytest.raises(NotServing, match="ZeroDivisionError in the engine loop"):
            collect(stream)
    assert not engine.healthy
    assert free_pages_when_idle(engine) == 256


def test_closing_ends_running_requests_and_frees_the_backend(build_engine: Build) -> None:
    backend = letters.build_backend(max_sequence_tokens=1000, page_count=300)
    engine = build_engine(backend)
    events = submit(engine, build_request(tokens=900))
    events.get(timeout=10)

    engine.close()
    engine.close()

    with pytest.raises(Draining):
        collect(events)
    assert backend.closed


def test_metrics_tell_of_tokens_outcomes_and_pages(build_engine: Build) -> None:
    metrics = RuntimeMetrics("letters")
    engine = Engine(letters.build_backend(), letters.build_tokenizer(), EngineLimits(), metrics)
    engine.start()
    collect(submit(engine, build_request(tokens=5, tenant="team-a")))
    engine.wait_idle(10)
    engine.close()

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"model": "letters", **labels})

    assert value("windlass_prompt_tokens_total", tenant="team-a") == 2
    assert value("windlass_generated_tokens_total", tenant="team-a") == 5
    assert value("windlass_requests_total", tenant="team-a", outcome="length") == 1
    assert value("windlass_time_to_first_token_seconds_count", tenant="team-a") == 1
    assert value("windlass_time_per_output_token_seconds_count", tenant="team-a") == 4
    assert value("windlass_request_duration_seconds_count", tenant="team-a") == 1
    assert value("windlass_queue_time_seconds_count", tenant="team-a") == 1
    assert value("windlass_engine_step_tokens_sum") == 2 + 4
    assert value("windlass_kv_pages_free") == value("windlass_kv_pages_total") == 256
    assert value("windlass_requests_running") == value("windlass_requests_waiting") == 0


def test_live_requests_go_on_when_the_backend_is_swapped_between_two_steps(build_engine: Build) -> None:
    first, entered, go_on = letters.build_backend(), threading.Event(), threading.Event()

    def pause(_: Batch) -> None:
        if len(first.steps) == 3:
            entered.set()
            assert go_on.wait(10)

    first.before_step = pause
    engine = build_engine(first)
    undisturbed = [
        text_of(collect(submit(build_engine(), build_request(tokens=12, prompt=p)))) for p in ((70, 71), (80,))
    ]
    streams = [submit(engine, build_request(str(p), tokens=12, prompt=p)) for p in ((70, 71), (80,))]
    assert entered.wait(10)
    info = first.info
    second = letters.build_backend(page_tokens=info.max_sequence_tokens, page_count=4)

    engine.swap(second)
    go_on.set()
    texts = [text_of(collect(stream)) for stream in streams]

    assert texts == undisturbed
    assert first.closed
    assert second.steps
    assert free_pages_when_idle(engine) == 4


@pytest.mark.parametrize(
    "other", [{"page_tokens": 4, "page_count": 2}, {"vocabulary_size": 7}], ids=["shorter sequences", "vocabulary"]
)
def test_a_backend_that_cannot_keep_what_was_promised_is_not_swapped_in(
    other: dict[str, int], build_engine: Build
) -> None:
    engine = build_engine()

    with pytest.raises(ValueError, match="backend: expected a vocabulary of"):
        engine.swap(FakeBackend(**({"vocabulary_size": engine.vocabulary_size} | other)))

    assert collect(submit(engine, build_request()))


def test_a_request_that_has_not_begun_by_its_deadline_is_ended(build_engine: Build) -> None:
    entered, go = threading.Event(), threading.Event()

    def before_step(_: Batch) -> None:
        entered.set()
        go.wait(10)

    engine = build_engine(letters.build_backend(before_step=before_step), max_running_requests=1)
    first = submit(engine, build_request("first"))
    assert entered.wait(10)
    late = submit(engine, build_request("late", deadline_s=0.001))
    patient = submit(engine, build_request("patient", deadline_s=60.0))
    time.sleep(0.01)

    go.set()

    with pytest.raises(DeadlineMissed, match="without a turn"):
        collect(late)
    assert len(text_of(collect(first))) == len(text_of(collect(patient))) == 8
    assert engine.wait_idle(10)


def test_a_view_of_the_scheduler_shows_tenants_and_sequences_without_content(build_engine: Build) -> None:
    free_steps = threading.Semaphore(3)
    go = threading.Event()

    def before_step(batch: Batch) -> None:
        if not free_steps.acquire(blocking=False):
            go.wait(10)

    engine = build_engine(letters.build_backend(before_step=before_step), max_running_requests=1)
    streams = [submit(engine, build_request(name, tenant=name)) for name in ("team-a", "team-b")]
    streams[0].get(timeout=10)
    views: queue.SimpleQueue[SchedulerView] = queue.SimpleQueue()
    engine.inspect(views.put)
    go.set()

    view = views.get(timeout=10)

    assert {tenant.tenant for tenant in view.tenants} <= {"team-a", "team-b"}
    assert {sequence.tenant for sequence in view.sequences} == {tenant.tenant for tenant in view.tenants}
    for stream in streams:
        collect(stream)
    engine.inspect(views.put)
    assert views.get(timeout=10).tenants == ()


def test_one_tenants_flood_leaves_room_for_another_at_the_door(build_engine: Build) -> None:
    go = threading.Event()
    engine = build_engine(
        letters.build_backend(before_step=lambda _: go.wait(10)), max_running_requests=2, max_queued_requests=2
    )
    flood = [submit(engine, build_request(f"flood-{number}", tenant="flooder")) for number in range(4)]
    with pytest.raises(QueueFull):
        submit(engine, build_request("one too many", tenant="flooder"))

    victim = submit(engine, build_request("victim", tenant="victim"))

    go.set()
    for stream in [*flood, victim]:
        assert len(text_of(collect(stream))) == 8
