"""The server below the level of any client library: bodies, headers, states, logs."""

import http.client
import json
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from support import letters
from support.openai_server import MODEL, ServedReplica, build_spec, listening, served
from windlass_runtime.backends.base import Batch
from windlass_runtime.errors import CheckpointError
from windlass_runtime.launch import LoadedModel
from windlass_runtime.serve.app import MAX_BODY_BYTES


@pytest.fixture(scope="module")
def replica() -> Iterator[ServedReplica]:
    with served() as replica:
        yield replica


def call(
    url: str, method: str, path: str, body: bytes | dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any], http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    try:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request(method, path, data, headers or {})
        reply = connection.getresponse()
        text = reply.read()
        return reply.status, json.loads(text) if text[:1] == b"{" else {"text": text.decode()}, reply.headers
    finally:
        connection.close()


def completion(**changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "hi", "max_tokens": 3, "temperature": 0, **changes}


@pytest.mark.parametrize(
    ("body", "finding"),
    [
        pytest.param(b"", "expected JSON", id="empty"),
        pytest.param(b"{", "expected JSON", id="cut off"),
        pytest.param(b"\xff\xfe", "expected UTF-8", id="other bytes"),
        pytest.param(b"[]", "body: input should be", id="an array"),
        pytest.param(b'"x"', "body: input should be", id="a string"),
        pytest.param(b"null", "body: input should be", id="null"),
        pytest.param(b"[" * 200_000, "modest depth", id="deep nesting"),
        pytest.param(b'{"a":' * 100_000, "modest depth", id="deep objects"),
        pytest.param(b'{"model":"letters","prompt":"a","temperature":NaN}', "number outside", id="NaN"),
        pytest.param(b'{"model":"letters","prompt":"a","temperature":-Infinity}', "number outside", id="infinity"),
        pytest.param(b'{"model":"letters","prompt":"a","temperature":1e999}', "finite", id="overflow"),
        pytest.param(
            b'{"model":"letters","prompt":"a","seed":' + b"9" * 5000 + b"}", "number outside", id="long number"
        ),
        pytest.param(b'{"model":"letters","prompt":"\\ud800"}', "surrogate", id="half a surrogate pair"),
        pytest.param(b'{"model":"letters"}', "prompt: field required", id="no prompt"),
        pytest.param(b'{"model":"letters","prompt":"a","stream":1}', "stream: ", id="wrong type"),
        pytest.param(b'{"model":"letters","prompt":"a","seed":99999999999999999999}', "seed: expected", id="big seed"),
    ],
)
def test_a_malformed_body_is_a_bad_request_in_the_clients_shape(
    replica: ServedReplica, body: bytes, finding: str
) -> None:
    status, reply, _ = call(replica.url, "POST", "/v1/completions", body)

    assert status == 400
    assert reply["error"].keys() == {"message", "type", "param", "code"}
    assert reply["error"]["type"] == "invalid_request_error"
    assert finding in reply["error"]["message"]


def test_a_body_beyond_the_limit_is_refused_with_413(replica: ServedReplica) -> None:
    status, reply, _ = call(replica.url, "POST", "/v1/completions", b" " * (MAX_BODY_BYTES + 1))

    assert (status, reply["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        pytest.param("GET", "/v1/nothing", 404, id="unknown path"),
        pytest.param("GET", "/v1/completions", 405, id="wrong method"),
        pytest.param("GET", "/v1/models/other/model", 404, id="unknown model"),
    ],
)
def test_what_is_not_there_is_said_in_the_clients_shape(
    replica: ServedReplica, method: str, path: str, status: int
) -> None:
    found, reply, _ = call(replica.url, method, path)

    assert found == status
    assert reply["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        pytest.param("abc-123", True, id="kept"),
        pytest.param("no spaces allowed", False, id="replaced"),
        pytest.param("x" * 200, False, id="too long"),
    ],
)
def test_a_request_id_comes_back(replica: ServedReplica, given: str, kept: bool) -> None:
    for path, body in (("/v1/completions", completion()), ("/v1/completions", {})):
        _, _, headers = call(replica.url, "POST", path, body, {"x-request-id": given})

        assert (headers["x-request-id"] == given) == kept
        assert headers["x-request-id"]


def test_text_becomes_tokens_and_tokens_text(replica: ServedReplica) -> None:
    _, tokens, _ = call(replica.url, "POST", "/tokenize", {"prompt": "hé"})
    _, text, _ = call(replica.url, "POST", "/detokenize", {"tokens": tokens["tokens"]})
    _, chat, _ = call(replica.url, "POST", "/tokenize", {"messages": [{"role": "user", "content": "hi"}]})

    assert tokens == {"tokens": letters.build_tokenizer().encode("hé"), "count": 3, "max_model_len": 256}
    assert text == {"prompt": "hé"}
    assert chat["count"] == len("user: hi\nassistant: ") + 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/tokenize", {}, id="neither"),
        pytest.param("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, id="both"),
        pytest.param("/detokenize", {"tokens": [-1]}, id="negative"),
        pytest.param("/detokenize", {"tokens": "abc"}, id="text"),
    ],
)
def test_a_bad_tokenize_body_is_refused(replica: ServedReplica, path: str, body: dict[str, Any]) -> None:
    assert call(replica.url, "POST", path, body)[0] == 400


def test_a_stream_is_server_sent_events_ending_in_done(replica: ServedReplica) -> None:
    _, reply, headers = call(replica.url, "POST", "/v1/completions", completion(stream=True))

    assert headers["content-type"] == "text/event-stream"
    events = reply["text"].split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["object"] == "text_completion" for event in events[:-2])


def test_a_long_prompt_is_tokenised_and_answered(replica: ServedReplica) -> None:
    status, reply, _ = call(replica.url, "POST", "/v1/completions", completion(prompt="x" * 20_000))

    assert (status, reply["error"]["code"]) == (400, "context_length_exceeded")


def test_neither_prompts_nor_outputs_ever_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    secret = "correct-horse-battery"
    fail = threading.Event()

    def before_step(batch: Batch) -> None:
        if fail.is_set():
            fail.clear()
            raise RuntimeError("device lost its way")

    caplog.set_level(logging.DEBUG)
    with served(letters.build_backend(before_step=before_step)) as replica:
        chat = {"model": MODEL, "messages": [{"role": "user", "content": secret}], "max_tokens": 12, "temperature": 0}
        outputs = [call(replica.url, "POST", "/v1/chat/completions", chat)[1]["choices"][0]["message"]["content"]]
        outputs.append(call(replica.url, "POST", "/v1/completions", completion(prompt=secret, max_tokens=12))[1])
        outputs[-1] = outputs[-1]["choices"][0]["text"]
        call(replica.url, "POST", "/v1/completions", completion(prompt=secret, temperature=secret))
        call(replica.url, "POST", "/v1/completions", completion(model=secret))
        call(replica.url, "POST", "/v1/completions", secret.encode())
        call(replica.url, "GET", f"/{secret}")
        call(replica.url, "GET", f"/v1/models/{secret}")
        call(replica.url, "POST", "/tokenize", {"prompt": secret})
        fail.set()
        assert call(replica.url, "POST", "/v1/completions", completion(prompt=secret))[0] == 500

    log = caplog.text
    assert "path=/v1/chat/completions status=200" in log
    assert "prompt_tokens=" in log
    assert "tenant=team-a" in log
    assert "engine step failed" in log
    assert secret not in log
    assert not any(output in log for output in outputs)


def test_a_loading_replica_is_alive_but_not_ready_and_refuses_work() -> None:
    go = threading.Event()

    def load(_: object) -> LoadedModel:
        assert go.wait(10)
        return LoadedModel(letters.build_backend(), letters.build_tokenizer())

    with listening(load, build_spec()) as events:
        url = str(events.get(timeout=10)["url"])
        assert call(url, "GET", "/health/live")[:2] == (200, {"status": "loading"})
        assert call(url, "GET", "/health/ready")[:2] == (503, {"status": "loading"})
        status, reply, headers = call(url, "POST", "/v1/completions", completion())
        assert (status, reply["error"]["code"], headers["retry-after"]) == (503, "not_serving", "1")
        go.set()
        assert events.get(timeout=10)["event"] == "ready"
        assert call(url, "GET", "/health/ready")[:2] == (200, {"status": "ready"})
        assert "windlass_model_load_seconds" in call(url, "GET", "/metrics")[1]["text"]


def test_a_model_that_does_not_load_ends_the_server_with_its_own_words() -> None:
    def load(_: object) -> LoadedModel:
        raise CheckpointError("tensor x: expected [2], found [3]")

    def serve_until_stopped() -> None:
        with listening(load, build_spec()) as events:
            while events.get(timeout=10)["event"] != "stopped":
                pass

    with pytest.raises(CheckpointError, match="tensor x"):
        serve_until_stopped()


def test_draining_refuses_new_work_at_once_and_answers_when_the_old_is_done() -> None:
    go = threading.Event()
    started = threading.Event()

    def before_step(batch: Batch) -> None:
        started.set()
        assert go.wait(10)

    with served(letters.build_backend(before_step=before_step)) as replica:
        replies: list[tuple[int, dict[str, Any]]] = []

        def ask(path: str, body: dict[str, Any] | None) -> threading.Thread:
            thread = threading.Thread(target=lambda: replies.append(call(replica.url, "POST", path, body)[:2]))
            thread.start()
            return thread

        running = ask("/v1/completions", completion())
        assert started.wait(10)
        drain = ask("/health/drain", None)
        while call(replica.url, "GET", "/health/ready")[0] == 200:
            pass
        assert call(replica.url, "GET", "/health/ready")[:2] == (503, {"status": "draining"})
        assert call(replica.url, "GET", "/health/live")[0] == 200
        status, reply, _ = call(replica.url, "POST", "/v1/completions", completion())
        assert (status, reply["error"]["code"]) == (503, "draining")
        assert replies == []
        go.set()
        running.join(10)
        drain.join(10)

    assert [status for status, _ in replies] == [200, 200]
    assert {"status": "drained", "in_flight": 0} in [reply for _, reply in replies]


def test_a_broken_engine_turns_liveness_red() -> None:
    def before_step(batch: Batch) -> None:
        raise RuntimeError("device lost for good")

    with served(letters.build_backend(before_step=before_step)) as replica:
        for _ in range(4):
            status, _, _ = call(replica.url, "POST", "/v1/completions", completion())
            assert status in (500, 503)
        assert call(replica.url, "GET", "/health/live")[:2] == (503, {"status": "failed"})
        assert call(replica.url, "GET", "/health/ready")[0] == 503


def test_a_client_that_sends_half_a_request_and_hangs_up_leaves_nothing_behind(replica: ServedReplica) -> None:
    address = urlsplit(replica.url)
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port or 0), timeout=5) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")

    assert call(replica.url, "POST", "/v1/completions", completion())[0] == 200
