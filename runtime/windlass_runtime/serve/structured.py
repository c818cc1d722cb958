"""What form of answer a request asks for: OpenAI's `response_format`, `structured_outputs` and `guided_*`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from windlass_runtime import errors
from windlass_runtime.backends.grammar_text import Grammar, GrammarKind, bound_whitespace, choice_grammar
from windlass_runtime.serve.bodies import GenerationBody

_ANY_OBJECT: Final = {"type": "object"}
_STRUCTURED: Final = ("json", "regex", "choice", "grammar", "json_object")
"""Keys of `structured_outputs`; each but the last is also a field of its own, `guided_` before it."""


def parse_grammar(body: GenerationBody) -> Grammar | None:
    """The grammar that the answer must follow; None when the request leaves it free.

    Raises RequestError for more than one, for a form that is not known, and together with `ignore_eos`.
    """
    wishes = [wish for wish in (_from_response_format(body), *_from_structured(body), *_from_guided(body)) if wish]
    if len(wishes) > 1:
        raise errors.RequestError(
            f"{wishes[1].field}: expected one form of answer, found {wishes[0].field} as well", wishes[1].field
        )
    if wishes and body.ignore_eos:
        raise errors.RequestError("ignore_eos: expected false where an answer has a form, found true", "ignore_eos")
    return wishes[0] if wishes else None


def _from_response_format(body: GenerationBody) -> Grammar | None:
    wanted = body.response_format
    if wanted is None:
        return None
    match wanted.get("type"):
        case "text":
            return None
        case "json_object":
            return _schema(_ANY_OBJECT, "response_format")
        case "json_schema":
            holder = wanted.get("json_schema")
            if not isinstance(holder, Mapping) or "schema" not in holder:
                raise errors.RequestError(
                    "response_format.json_schema: expected an object with a schema, found none",
                    "response_format.json_schema",
                )
            return _schema(holder["schema"], "response_format.json_schema.schema")
    raise errors.RequestError(
        "response_format.type: expected text, json_object or json_schema, found something else", "response_format.type"
    )


def _from_structured(body: GenerationBody) -> list[Grammar | None]:
    wanted = body.structured_outputs or {}
    unknown = next((key for key in wanted if key not in _STRUCTURED), None)
    if unknown is not None:
        raise errors.RequestError(
            f"structured_outputs: expected one of {', '.join(_STRUCTURED)}, found another key", "structured_outputs"
        )
    return [
        _parse(key, value, f"structured_outputs.{key}")
        for key, value in wanted.items()
        if value is not None and value is not False
    ]


def _from_guided(body: GenerationBody) -> list[Grammar | None]:
    values = {
        "json": body.guided_json,
        "regex": body.guided_regex,
        "choice": body.guided_choice,
        "grammar": body.guided_grammar,
    }
    return [_parse(key, value, f"guided_{key}") for key, value in values.items() if value is not None]


def _parse(key: str, value: Any, field: str) -> Grammar:
    match key, value:
        case "json", _:
            return _schema(value, field)
        case "json_object", True:
            return _schema(_ANY_OBJECT, field)
        case "regex", str():
            return Grammar(GrammarKind.REGEX, value, field)
        case "grammar", str():
            return Grammar(GrammarKind.LARK, value, field)
        case "choice", list() if value and all(isinstance(choice, str) for choice in value):
            return choice_grammar(value, field)
    raise errors.RequestError(f"{field}: expected {_EXPECTED[key]}, found something else", field)


_EXPECTED: Final = {
    "regex": "a regular expression",
    "grammar": "a Lark grammar",
    "choice": "a list of texts",
    "json_object": "true",
}


def _schema(value: Any, field: str) -> Grammar:
    """A schema as an object, or as its text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as exc:
            raise errors.RequestError(f"{field}: expected a JSON schema, found text that is no JSON", field) from exc
    if not isinstance(value, Mapping):
        raise errors.RequestError(f"{field}: expected a JSON schema as an object, found something else", field)
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(bound_whitespace(value)), field)
