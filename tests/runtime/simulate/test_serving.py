"""What clients, gateways and autoscalers see of a simulated replica: the real server around a clock."""

import contextlib
import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from support.openai_server import build_spec, listening
from windlass_runtime.simulate.clock import age_s
from windlass_runtime.simulate.load import build_loader
from windlass_runtime.simulate.profile import NAMED, Answer, Profile, build_profile

MODEL = "simulated"


@contextlib.contextmanager
def simulated(profile: Profile, **spec_changes: Any) -> Iterator[openai.OpenAI]:
    """A client of a simulated replica that is ready."""
    spec = build_spec(served_name=MODEL, **spec_changes)
    with listening(build_loader(profile), spec) as events:
        url = str(events.get(timeout=30)["url"])
        assert events.get(timeout=30)["event"] == "ready"
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=60) as client:
            yield client


def instant(**changes: Any) -> Profile:
    return build_profile(NAMED["instant"], changes, "test")


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}], **options)


def metric(client: openai.OpenAI, name: str) -> float:
    with urllib.request.urlopen(str(client.base_url).replace("/v1/", "/metrics"), timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def test_a_client_gets_whole_and_streamed_answers_with_usage() -> None:
    with simulated(instant(answer_tokens=6)) as client:
        whole = ask(client)
        chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))

    text = "This answer is simulated"
    assert whole.choices[0].message.content == text
    assert whole.choices[0].finish_reason == "stop"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == text
    assert chunks[-1].usage == whole.usage
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len("user: hello\nassistant: ") // 4 + 1, 7)


def test_the_clients_limit_cuts_an_answer_short() -> None:
    with simulated(instant()) as client:
        answer = ask(client, max_tokens=3)

    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("This answer ", "length")


def test_a_full_pool_makes_requests_wait_and_a_full_line_answers_429_with_a_time_to_come_back() -> None:
    # The first sequence holds one page and will need the other: the second has a place, but waits for pages.
    profile = build_profile(Profile(), {"kv_pages": 2, "answer_tokens": 100, "step_s": 0.05}, "test")
    with simulated(profile, max_running_requests=2, max_queued_requests=0) as client:
        first = ask(client, stream=True, max_tokens=100)
        next(iter(first))
        second = threading.Thread(target=lambda: ask(client, max_tokens=1))
        second.start()
        while metric(client, "windlass_requests_waiting") < 1:
            pass

        with pytest.raises(openai.RateLimitError) as refused:
            ask(client, max_tokens=100)

        assert metric(client, "windlass_requests_running") == 1
        assert metric(client, "windlass_kv_pages_total") == 2
        first.close()
        second.join(30)
    assert int(refused.value.response.headers["Retry-After"]) >= 1


def test_the_share_of_failures_reaches_clients_as_failed_steps() -> None:
    with simulated(instant(failure_share=1.0)) as client:
        with pytest.raises(openai.InternalServerError) as failed:
            ask(client)
        with pytest.raises(openai.APIError, match="NaN"):
            list(ask(client, stream=True))

    assert json.loads(failed.value.response.text)["error"]["code"] == "step_failed"


def test_moments_tell_a_client_how_long_its_tokens_were_under_way() -> None:
    with simulated(instant(answer=Answer.CLOCK, answer_tokens=5)) as client:
        ages = [
            age_s(chunk.choices[0].delta.content, time.monotonic())
            for chunk in ask(client, stream=True)
            if chunk.choices[0].delta.content
        ]

    assert len(ages) == 5
    assert all(0 <= age < 30 for age in ages)


def test_a_slow_start_is_alive_and_not_ready() -> None:
    with listening(build_loader(instant(load_s=2.0)), build_spec()) as events:
        url = str(events.get(timeout=30)["url"])
        assert _status(f"{url}/health/live") == 200
        assert _status(f"{url}/health/ready") == 503
        assert events.get(timeout=30)["event"] == "ready"
        assert _status(f"{url}/health/ready") == 200


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as exc:
        exc.close()
        return exc.code


def test_a_crash_by_the_clock_says_why() -> None:
    reasons: queue.SimpleQueue[str] = queue.SimpleQueue()

    with listening(build_loader(instant(crash_after_s=0.05), reasons.put), build_spec()):
        assert reasons.get(timeout=30) == "0.05 s have passed"


def test_errors_have_the_shape_of_the_api() -> None:
    with simulated(instant()) as client, pytest.raises(openai.BadRequestError) as refused:
        ask(client, max_tokens=100_000)

    assert json.loads(refused.value.response.text)["error"]["code"] == "context_length_exceeded"
