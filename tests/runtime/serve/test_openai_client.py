"""What the official `openai` client experiences."""

import asyncio
import json
import logging
import threading
import urllib.request
from collections.abc import Iterator

import openai
import pytest

from support import letters
from support.openai_server import MODEL, ServedReplica, served
from windlass_contract.endpoints import REPORT_USAGE_HEADER
from windlass_runtime.backends.base import Batch
from windlass_runtime.testing import FakeBackend

MESSAGES = [{"role": "user", "content": "hello"}]
CHAT_PROMPT = "<s>user: hello\nassistant: "


@pytest.fixture(scope="module")
def replica() -> Iterator[ServedReplica]:
    with served() as replica:
        yield replica


@pytest.fixture
def client(replica: ServedReplica) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{replica.url}/v1", api_key="any", max_retries=0, timeout=20) as client:
        yield client


def expected_text(prompt: str, count: int) -> str:
    return letters.letters_after(letters.build_tokenizer().encode(prompt, add_special_tokens=False), count)


def test_the_served_model_is_listed_and_described(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "windlass"


def test_a_chat_is_answered_with_text_reason_and_usage(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=12, temperature=0)

    assert reply.choices[0].message.content == expected_text(CHAT_PROMPT, 12)
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "length"
    assert reply.model == MODEL
    assert reply.usage is not None
    prompt_tokens = len(letters.build_tokenizer().encode(CHAT_PROMPT))
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (prompt_tokens, 12)
    assert reply.usage.total_tokens == prompt_tokens + 12


def test_a_streamed_chat_joins_up_to_the_same_text_and_ends_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )

    chunks = list(stream)

    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected_text(CHAT_PROMPT, 12)
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_gateway_learns_the_usage_of_a_stream_from_a_comment_that_clients_skip(client: openai.OpenAI) -> None:
    gateway = {REPORT_USAGE_HEADER: "true"}
    options = {"model": MODEL, "messages": MESSAGES, "max_tokens": 12, "temperature": 0, "stream": True}

    chunks = list(client.chat.completions.create(**options, extra_headers=gateway))  # type: ignore[call-overload]
    with client.chat.completions.with_streaming_response.create(**options, extra_headers=gateway) as raw:  # type: ignore[call-overload]
        lines = list(raw.iter_lines())
    with client.chat.completions.with_streaming_response.create(**options) as raw:  # type: ignore[call-overload]
        unasked = list(raw.iter_lines())

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected_text(CHAT_PROMPT, 12)
    (comment,) = [line for line in lines if line.startswith(":")]
    assert json.loads(comment[2:])["usage"]["completion_tokens"] == 12
    assert not any(line.startswith(":") for line in unasked)


def test_content_in_text_parts_is_the_same_as_plain_content(client: openai.OpenAI) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]

    reply = client.chat.completions.create(model=MODEL, messages=parts, max_tokens=5, temperature=0)

    assert reply.choices[0].message.content == expected_text(CHAT_PROMPT, 5)


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param("hi", id="text"),
        pytest.param(["hi"], id="texts"),
        pytest.param([letters.token_of("h"), letters.token_of("i")], id="token ids"),
        pytest.param([[letters.token_of("h"), letters.token_of("i")]], id="lists of token ids"),
    ],
)
def test_a_completion_takes_every_shape_of_prompt(client: openai.OpenAI, prompt: object) -> None:
    reply = client.completions.create(model=MODEL, prompt=prompt, max_tokens=6, temperature=0)  # type: ignore[call-overload]

    assert reply.choices[0].text == expected_text("hi", 6)
    assert reply.usage.prompt_tokens == 2


def test_several_prompts_and_choices_are_numbered_prompt_by_prompt(client: openai.OpenAI) -> None:
    reply = client.completions.create(model=MODEL, prompt=["a", "b"], n=2, max_tokens=4, temperature=0)

    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in reply.choices] == [expected_text(prompt, 4) for prompt in ("a", "a", "b", "b")]
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (2, 16)


def test_a_completion_without_a_limit_gets_sixteen_tokens(client: openai.OpenAI) -> None:
    reply = client.completions.create(model=MODEL, prompt="hi", temperature=0)

    assert reply.choices[0].text == expected_text("hi", 16)


@pytest.mark.parametrize("as_list", [True, False], ids=["list", "string"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_stop_string_ends_the_text_and_is_not_part_of_it(client: openai.OpenAI, as_list: bool, stream: bool) -> None:
    full = expected_text("hi", 30)
    stop = full[10:13]
    before = full[: full.index(stop)]

    reply = client.completions.create(
        model=MODEL, prompt="hi", max_tokens=30, temperature=0, stop=[stop, "~"] if as_list else stop, stream=stream
    )

    chunks = list(reply) if stream else [reply]
    assert "".join(chunk.choices[0].text for chunk in chunks) == before
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_one_seed_gives_one_text_and_choices_of_it_differ(client: openai.OpenAI) -> None:
    def ask() -> list[str]:
        reply = client.completions.create(
            model=MODEL,
            prompt="hi",
            max_tokens=8,
            temperature=2,
            seed=11,
            n=3,
            logit_bias={letters.token_of("z"): -100},
        )
        return [choice.text for choice in reply.choices]

    first, second = ask(), ask()

    assert first == second
    assert len(set(first)) == 3


def test_logit_bias_decides_the_token(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model=MODEL, prompt="hi", max_tokens=5, temperature=0, logit_bias={str(letters.token_of("q")): 100}
    )

    assert reply.choices[0].text == "qqqqq"


def test_chat_logprobs_name_each_token_with_its_bytes_and_alternatives(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )

    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == reply.choices[0].message.content
    for entry in logprobs.content:
        assert entry.bytes == list(entry.token.encode())
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token
        assert entry.top_logprobs[0].logprob == entry.logprob
        assert -1 < entry.logprob < 0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_completion_logprobs_have_the_legacy_shape(client: openai.OpenAI, stream: bool) -> None:
    reply = client.completions.create(model=MODEL, prompt="hi", max_tokens=4, temperature=0, logprobs=2, stream=stream)

    found = [chunk.choices[0].logprobs for chunk in (list(reply) if stream else [reply])]
    assert [token for logprobs in found for token in logprobs.tokens] == list(expected_text("hi", 4))
    assert [offset for logprobs in found for offset in logprobs.text_offset] == [0, 1, 2, 3]
    assert all(len(top) == 2 for logprobs in found for top in logprobs.top_logprobs)


def test_an_end_token_stops_without_being_shown() -> None:
    def choose(tokens: list[int]) -> int:
        return letters.EOS if tokens[-1] == letters.token_of("x") else letters.token_of("x")

    with served(letters.build_backend(choose=choose)) as replica:
        client = openai.OpenAI(base_url=f"{replica.url}/v1", api_key="any", max_retries=0)
        reply = client.completions.create(model=MODEL, prompt="hi", max_tokens=9, temperature=0)
        unstopped = client.completions.create(
            model=MODEL, prompt="hi", max_tokens=9, temperature=0, extra_body={"ignore_eos": True}
        )
        client.close()

    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("x", "stop")
    assert unstopped.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("changes", "parameter", "code"),
    [
        pytest.param({"model": "other"}, "model", "model_not_found", id="unknown model"),
        pytest.param({"temperature": 3}, "temperature", None, id="temperature"),
        pytest.param({"top_p": 0}, "top_p", None, id="top_p"),
        pytest.param({"n": 0}, "n", None, id="n"),
        pytest.param({"max_tokens": 0}, "max_tokens", None, id="no output"),
        pytest.param({"max_tokens": 10_000}, "prompt", "context_length_exceeded", id="too long"),
        pytest.param({"messages": []}, "messages", None, id="no messages"),
        pytest.param({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role", None, id="role"),
        pytest.param({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", None, id="content"),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.type",
            None,
            id="image",
        ),
        pytest.param({"functions": [{"name": "f"}]}, "functions", None, id="functions before there were tools"),
        pytest.param({"modalities": ["text", "audio"]}, "modalities", None, id="audio"),
        pytest.param({"top_logprobs": 3}, "top_logprobs", None, id="top_logprobs alone"),
        pytest.param({"stop": ["a"] * 17}, "stop", None, id="too many stops"),
        pytest.param({"logit_bias": {"x": 1}}, "logit_bias", None, id="bias key"),
        pytest.param({"logit_bias": {"5": 101}}, "logit_bias", None, id="bias value"),
        pytest.param({"logit_bias": {"99999": 1}}, "logit_bias", None, id="bias of no token"),
        pytest.param({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage", None, id="nested"),
    ],
)
def test_a_bad_request_becomes_the_clients_exception_naming_the_parameter(
    client: openai.OpenAI, changes: dict[str, object], parameter: str, code: str | None
) -> None:
    request = {"model": MODEL, "messages": MESSAGES, "max_tokens": 4, **changes}

    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        client.chat.completions.create(**request)  # type: ignore[call-overload]

    assert caught.value.param == parameter
    assert caught.value.code == code
    assert isinstance(caught.value, openai.NotFoundError) == (code == "model_not_found")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"user": "me", "store": False, "metadata": {"a": "b"}}, id="bookkeeping"),
        pytest.param({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, id="no tools"),
        pytest.param({"response_format": {"type": "text"}, "modalities": ["text"]}, id="the default said aloud"),
        pytest.param({"service_tier": "flex", "extra_body": {"priority": 3, "deadline_ms": 60_000}}, id="order"),
        pytest.param({"extra_body": {"something_new": {"x": 1}}}, id="unknown"),
        pytest.param({"temperature": None, "stop": None, "n": None, "seed": None}, id="nulls"),
    ],
)
def test_harmless_parameters_are_ignored(client: openai.OpenAI, changes: dict[str, object]) -> None:
    request = {"model": MODEL, "messages": MESSAGES, "max_tokens": 3, **changes}

    assert client.chat.completions.create(**request).usage.completion_tokens == 3  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        pytest.param({"extra_body": {"echo": True}}, "echo", id="echo"),
        pytest.param({"suffix": "end"}, "suffix", id="suffix"),
        pytest.param({"best_of": 3}, "best_of", id="best_of"),
        pytest.param({"prompt": []}, "prompt", id="no prompt"),
        pytest.param({"prompt": ["a"] * 100, "n": 2}, "prompt", id="too many sequences"),
        pytest.param({"prompt": [5000]}, "prompt", id="unknown token"),
    ],
)
def test_a_bad_completion_is_refused_by_name(client: openai.OpenAI, changes: dict[str, object], parameter: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": MODEL, "prompt": "hi", **changes})  # type: ignore[call-overload]

    assert caught.value.param == parameter


class Hangups(logging.Handler):
    """Set once the access log has told of a client that hung up."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "status=499" in record.getMessage():
            self.seen.set()


@pytest.fixture
def hangups() -> Iterator[Hangups]:
    handler, logger = Hangups(), logging.getLogger("windlass_runtime.access")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_closing_a_stream_stops_the_work_and_frees_the_pages(hangups: Hangups) -> None:
    free_steps = threading.Semaphore(5)

    def before_step(batch: Batch) -> None:
        if not free_steps.acquire(blocking=False):
            hangups.seen.wait(10)

    with (
        served(letters.build_backend(before_step=before_step)) as replica,
        openai.OpenAI(base_url=f"{replica.url}/v1", api_key="any", max_retries=0) as client,
    ):
        stream = client.completions.create(model=MODEL, prompt="hi", max_tokens=200, temperature=0, stream=True)
        next(iter(stream))
        stream.close()
        wait_for_metric(replica.url, 'outcome="cancelled",tenant="team-a"} 1.0')
        wait_for_metric(replica.url, 'windlass_kv_pages_free{model="letters"} 256.0')
        assert len(replica.fake.steps) <= 7
        assert client.completions.create(model=MODEL, prompt="a", max_tokens=2).usage is not None


def wait_for_metric(url: str, line_end: str) -> None:
    """Poll /metrics, each poll a round trip, until a line ends so."""
    for _ in range(2000):
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        if any(line.endswith(line_end) for line in text.splitlines()):
            return
    raise AssertionError(f"no line ends with {line_end!r} in:\n{text}")


def test_a_full_queue_answers_429_with_a_time_and_the_client_retries_until_there_is_room() -> None:
    go = threading.Event()

    def before_step(batch: Batch) -> None:
        assert go.wait(20)

    backend = letters.build_backend(before_step=before_step)
    with (
        served(backend, max_running_requests=1, max_queued_requests=0) as replica,
        openai.OpenAI(base_url=f"{replica.url}/v1", api_key="any", max_retries=0) as client,
    ):
        first = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=3, stream=True)
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model=MODEL, prompt="hi", max_tokens=3)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.code == "queue_full"
        threading.Timer(0.2, go.set).start()
        patient = client.with_options(max_retries=3)
        assert patient.completions.create(model=MODEL, prompt="hi", max_tokens=3).usage is not None
        list(first)


async def test_thirty_two_clients_at_once_each_get_the_answer_they_would_get_alone(replica: ServedReplica) -> None:
    async with openai.AsyncOpenAI(base_url=f"{replica.url}/v1", api_key="any", max_retries=0, timeout=30) as client:

        async def ask(number: int) -> str:
            stream = await client.completions.create(
                model=MODEL, prompt=f"prompt {number}", max_tokens=10 + number, temperature=0, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        replies = await asyncio.gather(*(ask(number) for number in range(32)))

    assert replies == [expected_text(f"prompt {number}", 10 + number) for number in range(32)]


def test_a_failed_step_is_a_server_error_for_its_requests_and_the_next_ones_work() -> None:
    fail = threading.Event()
    fail.set()

    def before_step(batch: Batch) -> None:
        if fail.is_set():
            fail.clear()
            raise RuntimeError("device lost its way")

    with (
        served(letters.build_backend(before_step=before_step)) as replica,
        openai.OpenAI(base_url=f"{replica.url}/v1", api_key="any", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model=MODEL, prompt="hi", max_tokens=3)
        assert caught.value.code == "step_failed"
        assert client.completions.create(model=MODEL, prompt="hi", max_tokens=3).usage is not None


def test_a_step_that_fails_in_mid_stream_ends_the_stream_with_the_clients_exception() -> None:
    backend: FakeBackend

    def before_step(batch: Batch) -> None:
        if len(backend.steps) == 3:
            backend.steps.clear()
            raise RuntimeError("device lost its way")

    backend = letters.build_backend(before_step=before_step)
    with (
        served(backend) as replica,
        openai.OpenAI(base_url=f"{replica.url}/v1", api_key="any", max_retries=0) as client,
    ):
        stream = client.completions.create(model=MODEL, prompt="hi", max_tokens=50, temperature=0, stream=True)
        with pytest.raises(openai.APIError, match="engine step failed"):
            list(stream)
