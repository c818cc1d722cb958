"""Random bodies: whatever a client sends, the server answers in its own shape, in time, and loses no page."""

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import letters
from support.openai_server import MODEL, ServedReplica, served

SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.integers() | st.floats() | st.text(max_size=8)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(-1, 300),
    "min_p": st.floats(0, 1),
    "n": st.integers(1, 4),
    "max_tokens": st.integers(1, 20),
    "stop": st.text(min_size=1, max_size=3) | st.lists(st.text(min_size=1, max_size=3), max_size=3),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stream": st.booleans(),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.5, 2),
    "logit_bias": st.dictionaries(st.integers(0, 257).map(str), st.floats(-100, 100), max_size=3),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "ignore_eos": st.booleans(),
    "priority": st.integers(-3, 3),
    "service_tier": st.sampled_from(["auto", "flex", "priority", "odd"]),
    "deadline_ms": st.floats(0.01, 60_000),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}]),
    "guided_regex": st.sampled_from(["[a-z]{2}", "a|b", "(", ""]),
    "guided_choice": st.lists(st.text(max_size=4), max_size=3),
}
PROMPTS = st.text(max_size=30) | st.lists(st.text(max_size=10), max_size=3) | st.lists(st.integers(0, 257), max_size=9)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=20)}),
    min_size=1,
    max_size=3,
)
TOOLS = st.sampled_from([None, [], [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]])


def bodies(own: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Mostly sensible bodies with some fields of any kind."""
    sensible = st.fixed_dictionaries({"model": st.just(MODEL), **own}, optional=LIKELY)
    fields = [
        *LIKELY,
        *own,
        "model",
        "logprobs",
        "tools",
        "response_format",
        "odd",
        "structured_outputs",
        "guided_json",
        "tool_choice",
    ]
    broken = st.dictionaries(st.sampled_from(fields), ANYTHING, max_size=2)
    return st.builds(lambda base, extra, use: base | (extra if use else {}), sensible, broken, st.booleans())


CALLS = st.one_of(
    st.tuples(st.just("/v1/completions"), bodies({"prompt": PROMPTS, "logprobs": st.none() | st.integers(0, 5)})),
    st.tuples(
        st.just("/v1/chat/completions"),
        bodies({"messages": MESSAGES, "logprobs": st.none() | st.booleans(), "tools": TOOLS}),
    ),
    st.tuples(st.sampled_from(["/tokenize", "/detokenize"]), ANYTHING),
)


@pytest.fixture(scope="module")
def replica() -> Iterator[ServedReplica]:
    # Few pages, so that preemption takes part.
    backend = letters.build_backend(max_sequence_tokens=64, page_count=40)
    with served(backend, max_running_requests=4, step_tokens=16) as replica:
        yield replica


def post(url: str, path: str, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    try:
        connection.request("POST", path, body)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(calls=st.lists(CALLS, min_size=1, max_size=6))
def test_any_bodies_sent_at_once_are_answered_or_refused_and_never_break_the_server(
    replica: ServedReplica, calls: list[tuple[str, Any]]
) -> None:
    with ThreadPoolExecutor(len(calls)) as pool:
        replies = list(pool.map(lambda call: post(replica.url, call[0], json.dumps(call[1]).encode()), calls))

    for (_, body), (status, text) in zip(calls, replies, strict=True):
        assert status in (200, 400, 404, 429, 504), (status, text, body)
        if status != 200:
            assert json.loads(text)["error"]["message"]
        elif text.startswith(b"data: "):
            assert text.endswith(b"data: [DONE]\n\n"), (text, body)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["/v1/completions", "/v1/chat/completions", "/tokenize"]), body=st.binary(max_size=200))
def test_any_bytes_are_refused_as_a_bad_request(replica: ServedReplica, path: str, body: bytes) -> None:
    status, text = post(replica.url, path, body)

    assert status == 400
    assert json.loads(text)["error"]["type"] == "invalid_request_error"


def test_after_all_of_it_every_page_is_free(replica: ServedReplica) -> None:
    connection = http.client.HTTPConnection(urlsplit(replica.url).netloc, timeout=20)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()

    assert 'windlass_kv_pages_free{model="letters"} 40.0' in text
    assert 'windlass_requests_running{model="letters"} 0.0' in text
