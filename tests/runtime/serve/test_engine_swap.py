"""A replica that begins with one backend and goes on with another, under the real server."""

from __future__ import annotations

import threading

import httpx2
import pytest

from support import letters
from support.openai_server import build_spec, listening
from windlass_runtime.backends.base import Backend
from windlass_runtime.errors import EngineMismatch
from windlass_runtime.launch import LoadedModel

BODY = {"model": "letters", "prompt": "ab", "max_tokens": 6, "temperature": 0}


def ask(url: str) -> str:
    reply = httpx2.post(f"{url}/v1/completions", json=BODY, timeout=20)
    reply.raise_for_status()
    return str(reply.json()["choices"][0]["text"])


def test_a_replica_answers_while_its_engine_is_made_and_with_it_afterwards() -> None:
    first, second, made = letters.build_backend(), letters.build_backend(), threading.Event()

    def upgrade() -> Backend:
        assert made.wait(20)
        return second

    loaded = LoadedModel(first, letters.build_tokenizer(), upgrade=upgrade)
    with listening(lambda _: loaded, build_spec(served_name="letters")) as events:
        url = str(events.get(timeout=20)["url"])
        assert events.get(timeout=20)["event"] == "ready"
        before = ask(url)
        steps_before = len(second.steps)
        made.set()
        event = events.get(timeout=20)
        after = ask(url)

    assert event["event"] == "engine"
    assert event["swapped"] is True
    assert before == after
    assert (steps_before, first.closed, bool(second.steps)) == (0, True, True)


@pytest.mark.parametrize(
    "fault", [EngineMismatch("GPU: expected sm_80, found sm_89"), RuntimeError("a bug")], ids=["refused", "unforeseen"]
)
def test_a_replica_whose_engine_cannot_be_had_goes_on_as_it_is(fault: Exception) -> None:
    def upgrade() -> Backend:
        raise fault

    backend = letters.build_backend()
    loaded = LoadedModel(backend, letters.build_tokenizer(), upgrade=upgrade)
    with listening(lambda _: loaded, build_spec(served_name="letters")) as events:
        url = str(events.get(timeout=20)["url"])
        assert events.get(timeout=20)["event"] == "ready"
        event = events.get(timeout=20)
        text = ask(url)
        assert not backend.closed

    assert event == {"event": "engine", "swapped": False, "reason": str(fault)}
    assert len(text) == 6
