"""Calls of functions by the official client; the model itself would only write letters."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import letters
from support.openai_server import MODEL, ServedReplica, served
from windlass_runtime.errors import RequestError
from windlass_runtime.serve import bodies
from windlass_runtime.serve.tool_calls import BEGIN, END, ToolCallReader, parse_tools

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "get-time"}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def replica() -> Iterator[ServedReplica]:
    with served(letters.build_backend(max_sequence_tokens=1024, page_count=1024)) as replica:
        yield replica


@pytest.fixture
def client(replica: ServedReplica) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{replica.url}/v1", api_key="any", max_retries=0, timeout=30) as client:
        yield client


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    messages = [{"role": "user", "content": "hi"}]
    fields = {"temperature": 1.0, "seed": 7, "max_tokens": 300, "messages": messages, **fields}
    return client.chat.completions.create(model=MODEL, **fields)


def check_weather(arguments: str) -> None:
    found = json.loads(arguments)
    assert found["city"] in ("Oslo", "Rome")
    assert 1 <= found["days"] <= 9


def test_a_named_function_is_called_with_arguments_that_follow_its_schema(client: openai.OpenAI) -> None:
    answer = chat(client, tools=[CLOCK, WEATHER], tool_choice=NAMED).choices[0]

    (call,) = answer.message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert call.id.startswith("call_")
    check_weather(call.function.arguments)
    assert answer.message.content is None
    assert answer.finish_reason == "tool_calls"


def test_a_required_call_picks_one_of_the_functions(client: openai.OpenAI) -> None:
    answer = chat(client, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False).choices[0]

    (call,) = answer.message.tool_calls
    check_weather(call.function.arguments)


def test_a_stream_tells_the_name_first_and_the_arguments_in_pieces(client: openai.OpenAI) -> None:
    chunks = list(chat(client, tools=[WEATHER], tool_choice=NAMED, stream=True))

    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert deltas[0].id is not None
    assert deltas[0].function.name == "get_weather"
    assert all(delta.id is None and delta.function.name is None for delta in deltas[1:])
    assert len(deltas) > 5
    assert {delta.index for delta in deltas} == {0}
    check_weather("".join(delta.function.arguments for delta in deltas))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(chunk.choices[0].delta.content for chunk in chunks)


def test_the_clients_own_helper_assembles_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL,
        messages=[{"role": "user", "content": "hi"}],
        tools=[WEATHER],  # type: ignore[list-item]
        tool_choice=NAMED,  # type: ignore[arg-type]
        max_tokens=300,
    ) as stream:
        final = stream.get_final_completion()

    calls = final.choices[0].message.tool_calls
    assert calls
    check_weather(calls[0].function.arguments)


def test_with_tools_an_answer_may_still_be_text(client: openai.OpenAI) -> None:
    answer = chat(client, tools=[WEATHER], temperature=0, max_tokens=10).choices[0]

    assert answer.message.tool_calls is None
    assert answer.message.content.isalpha()
    assert answer.finish_reason == "length"


def test_text_that_begins_a_call_goes_on_as_one() -> None:
    script = f'Well.{BEGIN}\n{{"name": "get_weather", "arguments": {{"city": "Oslo", "days": 3}}}}\n{END}'
    tokens = [letters.token_of(character) for character in script] + [letters.EOS]
    lengths: list[int] = []

    def choose(so_far: Any) -> int:
        lengths.append(len(so_far))
        return tokens[min(len(so_far) - lengths[0], len(tokens) - 1)]

    backend = letters.build_backend(max_sequence_tokens=1024, page_count=1024, choose=choose)
    with (
        served(backend) as replica,
        openai.OpenAI(base_url=f"{replica.url}/v1", api_key="any", max_retries=0, timeout=30) as client,
    ):
        answer = chat(client, tools=[WEATHER, CLOCK], temperature=0).choices[0]

    assert answer.message.content == "Well."
    (call,) = answer.message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Oslo", "days": 3}
    assert answer.finish_reason == "tool_calls"


def test_a_conversation_with_calls_and_results_goes_on(client: openai.OpenAI) -> None:
    called = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]

    answer = chat(client, messages=messages, tools=[WEATHER], tool_choice="none", max_tokens=5, temperature=0)

    assert answer.choices[0].message.content.isalpha()


def test_a_template_that_knows_tools_gets_calls_as_objects_and_others_get_text() -> None:
    call = bodies.ToolCall.model_validate({"id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}})
    messages = [
        bodies.Message(role="assistant", tool_calls=[call]),
        bodies.Message(role="tool", content="rain", tool_call_id="c"),
    ]

    known, other = bodies.template_messages(messages), bodies.template_messages(messages, knows_tools=False)

    assert known[0]["tool_calls"] == [{"type": "function", "id": "c", "function": {"name": "f", "arguments": {"a": 1}}}]
    assert known[1] == {"role": "tool", "content": "rain", "tool_call_id": "c"}
    assert other[0] == {
        "role": "assistant",
        "content": f'{BEGIN}\n{{"name": "f", "arguments": {{"a": 1}}}}\n{END}',
    }
    assert other[1] == {"role": "user", "content": "<tool_response>\nrain\n</tool_response>"}


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        pytest.param({"tools": [{"type": "retrieval"}]}, "tools.0", id="another type"),
        pytest.param(
            {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", id="name"
        ),
        pytest.param({"tools": [CLOCK, CLOCK]}, "tools", id="one name twice"),
        pytest.param({"tools": [WEATHER], "tool_choice": "always"}, "tool_choice", id="unknown choice"),
        pytest.param({"tool_choice": "required"}, "tool_choice", id="required without tools"),
        pytest.param(
            {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
            id="unnamed",
        ),
        pytest.param(
            {"tools": [WEATHER], "response_format": {"type": "json_object"}}, "response_format", id="a form too"
        ),
        pytest.param(
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "objct"}}}]},
            "tools",
            id="schema that is none",
        ),
    ],
)
def test_tools_that_cannot_be_are_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], parameter: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, extra_body=fields)

    assert caught.value.param == parameter


def test_no_choice_and_no_tools_leave_the_answer_free() -> None:
    assert parse_tools(None, None, None) is None
    assert parse_tools([CLOCK], "none", None) is None
    with pytest.raises(RequestError):
        parse_tools(None, {"type": "function", "function": {"name": "x"}}, None)


ANSWERS = st.lists(
    st.one_of(
        st.text("ab<t_o>{}\n", max_size=12).map(lambda text: ("text", text.replace(BEGIN, ""))),
        st.dictionaries(st.text('a"\\{}[]<', max_size=4), st.text('a"\\{}]/', max_size=6), max_size=3).map(
            lambda arguments: ("call", json.dumps(arguments))
        ),
    ),
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(answer=ANSWERS, cuts=st.lists(st.integers(0, 200), max_size=12))
def test_what_is_read_does_not_depend_on_where_the_text_is_cut(answer: list[tuple[str, str]], cuts: list[int]) -> None:
    written = "".join(
        content if kind == "text" else f'{BEGIN}\n{{"name": "f", "arguments": {content}}}\n{END}'
        for kind, content in answer
    )
    borders = sorted({0, len(written), *(min(cut, len(written)) for cut in cuts)})
    reader, shown, calls = ToolCallReader(), "", dict[int, str]()
    for start, end in itertools.pairwise(borders):
        text, pieces = reader.feed(written[start:end])
        shown += text
        for piece in pieces:
            calls[piece.index] = calls.get(piece.index, "") + piece.arguments
    shown += reader.flush()

    assert list(calls.values()) == [content for kind, content in answer if kind == "call"]
    texts = "".join(content for kind, content in answer if kind == "text")
    assert shown.replace("\n", "") == texts.replace("\n", "")
