"""A real decoder gives way to a plan's network while requests run, and nobody can tell from the answers."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import pytest

from support.checkpoints import write_checkpoint
from support.engines import interpret
from windlass_kernels import ops
from windlass_runtime.backends.base import Backend
from windlass_runtime.backends.load import load_backend
from windlass_runtime.backends.sampling import SamplingParams
from windlass_runtime.engine.shape import PlanShape
from windlass_runtime.generation import Event, GenerationRequest, Piece
from windlass_runtime.loop import Engine, EngineLimits
from windlass_runtime.metrics import RuntimeMetrics

PROMPTS = ((5, 6, 7), tuple(range(20, 60)), (90,))
SHAPE = PlanShape(capacity=128, decode_rows=4, prefill_rows=2, prefill_tokens=16)


class Paused:
    """A backend that stops before one of its steps until it is told to go on."""

    def __init__(self, backend: Backend, step: int) -> None:
        self.info, self._backend, self._left = backend.info, backend, step
        self.reached, self.go_on, self.close = threading.Event(), threading.Event(), backend.close

    def step(self, batch: object) -> object:
        self._left -= 1
        if self._left == 0:
            self.reached.set()
            assert self.go_on.wait(30)
        return self._backend.step(batch)  # type: ignore[arg-type]


def start(backend: Backend) -> tuple[Engine, list[queue.SimpleQueue[Event]]]:
    engine = Engine(backend, None, EngineLimits(4, 4, 64), RuntimeMetrics("m"))
    streams: list[queue.SimpleQueue[Event]] = [queue.SimpleQueue() for _ in PROMPTS]
    for index, (prompt, stream) in enumerate(zip(PROMPTS, streams, strict=True)):
        sampling = SamplingParams(temperature=0)
        request = GenerationRequest(str(index), prompt, sampling=sampling, max_new_tokens=16, ignore_eos=True)
        engine.submit(request, stream.put)
    engine.start()
    return engine, streams


def collect(streams: list[queue.SimpleQueue[Event]]) -> list[list[int]]:
    answers = []
    for stream in streams:
        tokens: list[int] = []
        finished = False
        while not finished:
            piece = stream.get(timeout=60)
            assert isinstance(piece, Piece), piece
            tokens += piece.token_ids
            finished = piece.finish is not None
        answers.append(tokens)
    return answers


def test_answers_do_not_change_when_a_plans_network_takes_over_in_their_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "available", lambda: ops.Availability(False, "switched off"))
    folder = write_checkpoint(tmp_path, max_position_embeddings=128)
    alone, streams = start(load_backend(folder, cache_bytes=2**22))
    expected = collect(streams)
    alone.close()
    paused = Paused(load_backend(folder, cache_bytes=2**22), step=6)
    engine, streams = start(paused)  # type: ignore[arg-type]
    plan = interpret(folder, shape=SHAPE)

    assert paused.reached.wait(30)
    engine.swap(plan)
    paused.go_on.set()
    answers = collect(streams)

    assert engine.stats.page_count == plan.info.page_count
    engine.close()
    assert answers == expected
    assert [len(answer) for answer in answers] == [16, 16, 16]
