"""Answers with a form, asked for by the official client; the model itself would only write letters."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

from support import letters
from support.openai_server import MODEL, ServedReplica, served

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def replica() -> Iterator[ServedReplica]:
    with served(letters.build_backend(max_sequence_tokens=512, page_count=512)) as replica:
        yield replica


@pytest.fixture
def client(replica: ServedReplica) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{replica.url}/v1", api_key="any", max_retries=0, timeout=30) as client:
        yield client


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    fields = {"temperature": 1.0, "seed": 7, "max_tokens": 300, **fields}
    return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}], **fields)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_an_answer_follows_its_json_schema_whatever_the_model_would_say(
    client: openai.OpenAI, temperature: float
) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}

    answers = [chat(client, response_format=wanted, temperature=temperature, seed=seed).choices[0] for seed in range(4)]

    for answer in answers:
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.message.content), SCHEMA)


def test_a_streamed_answer_follows_its_schema_too(client: openai.OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chat(client, response_format=wanted, stream=True))

    jsonschema.validate(json.loads(text), SCHEMA)


def test_each_of_several_choices_has_its_own_place_in_the_grammar(client: openai.OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}

    reply = chat(client, response_format=wanted, n=3)

    for choice in reply.choices:
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        pytest.param({"guided_regex": "[a-c]{3}[0-9]"}, "[a-c]{3}[0-9]", id="guided_regex"),
        pytest.param({"structured_outputs": {"regex": "x{2}y?"}}, "x{2}y?", id="structured regex"),
        pytest.param({"guided_choice": ["yes", 'no "\\ really']}, r'yes|no "\\ really', id="guided_choice"),
        pytest.param({"structured_outputs": {"choice": ["ä", "b"]}}, "ä|b", id="structured choice"),
        pytest.param({"guided_grammar": 'start: "a"+ "z"'}, "a+z", id="guided_grammar"),
        pytest.param({"guided_json": SCHEMA}, r"\{.*\}", id="guided_json"),
        pytest.param({"guided_json": json.dumps(SCHEMA)}, r"\{.*\}", id="guided_json as text"),
        pytest.param({"structured_outputs": {"json": SCHEMA}}, r"\{.*\}", id="structured json"),
    ],
)
def test_other_forms_hold_as_well(client: openai.OpenAI, fields: dict[str, Any], pattern: str) -> None:
    answer = chat(client, extra_body=fields, logit_bias={str(letters.token_of("z")): 5}).choices[0]

    assert re.fullmatch(pattern, answer.message.content, re.DOTALL)
    assert answer.finish_reason == "stop"


def test_plain_completions_take_the_same_forms(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model=MODEL, prompt="hi", max_tokens=20, temperature=0, extra_body={"guided_regex": "[0-9]{4}"}
    )

    assert re.fullmatch("[0-9]{4}", reply.choices[0].text)


def test_an_answer_cut_off_by_its_limit_says_so(client: openai.OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}

    answer = chat(client, response_format=wanted, max_tokens=5).choices[0]

    assert answer.finish_reason == "length"
    assert '{"name":'.startswith(answer.message.content.replace(" ", "").replace("\n", "")[:8])


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        pytest.param({"response_format": {"type": "xml"}}, "response_format.type", id="unknown format"),
        pytest.param({"response_format": {"type": "json_schema"}}, "response_format.json_schema", id="no schema"),
        pytest.param(
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "objct"}}}},
            "response_format.json_schema.schema",
            id="schema that is none",
        ),
        pytest.param({"guided_regex": "a(b"}, "guided_regex", id="open group"),
        pytest.param({"guided_grammar": "start: x"}, "guided_grammar", id="unknown rule"),
        pytest.param({"guided_json": "{"}, "guided_json", id="text that is no JSON"),
        pytest.param({"guided_json": "[]"}, "guided_json", id="no object"),
        pytest.param({"guided_choice": []}, "guided_choice", id="no choice"),
        pytest.param({"structured_outputs": {"xml": "a"}}, "structured_outputs", id="unknown key"),
        pytest.param({"structured_outputs": {"regex": 1}}, "structured_outputs.regex", id="regex that is a number"),
        pytest.param({"guided_regex": "a", "guided_json": {}}, "guided_regex", id="two forms"),
        pytest.param({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", id="no end"),
        pytest.param({"guided_regex": "a" * 70_000}, "guided_regex", id="too long"),
    ],
)
def test_a_form_that_cannot_be_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], parameter: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, extra_body=fields)

    assert caught.value.param == parameter


def test_a_replica_without_end_tokens_refuses_forms() -> None:
    with (
        served(letters.build_backend(eos_token_ids=())) as replica,
        openai.OpenAI(base_url=f"{replica.url}/v1", api_key="any", max_retries=0, timeout=30) as client,
        pytest.raises(openai.BadRequestError, match="cannot hold answers to a grammar"),
    ):
        chat(client, response_format={"type": "json_object"})


def test_answers_with_and_without_a_form_share_steps(client: openai.OpenAI) -> None:
    free = chat(client, temperature=0, max_tokens=20).choices[0].message.content

    formed = chat(client, temperature=0, extra_body={"guided_regex": "[0-9]{12}"}).choices[0].message.content
    again = chat(client, temperature=0, max_tokens=20).choices[0].message.content

    assert free == again
    assert re.fullmatch("[0-9]{12}", formed)
