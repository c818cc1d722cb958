"""Grammars as they are written, before anything understands them. `grammars` compiles them."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping, Sequence
from typing import Any


class GrammarKind(enum.StrEnum):
    """How a grammar is written."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"
    """Lark's notation as llguidance reads it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must follow. `field` names where in the request it stood."""

    kind: GrammarKind
    text: str
    field: str


def bound_whitespace(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with a bound on spaces between its parts; without one a model may write spaces until it is cut off."""
    return {**schema, "x-guidance": {"whitespace_pattern": r" ?|\n {0,32}"}}


def choice_grammar(choices: Sequence[str], field: str) -> Grammar:
    """Exactly one of these texts."""
    return Grammar(GrammarKind.LARK, "start: " + " | ".join(json.dumps(choice) for choice in choices), field)
