"""Rules that a plain schema cannot say: CEL for the API server, evaluated offline from the same text.

Rules stay in the part of CEL that needs no Kubernetes library (`has`, `size`, `matches`, `startsWith`, `all`,
`exists_one`), so that an evaluator outside the API server agrees with it. One difference is known: `size()` of a string
counts bytes here and characters there; rules therefore measure only names, which are ASCII.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, Final

import cel

EXTENSION: Final = "x-kubernetes-validations"
OFFLINE_WORDS: Final = "messageExpressionOffline"
"""Key of a message expression that only `windlass validate` evaluates; it never enters a CRD.

The API server estimates the text of a number as unbounded and refuses the whole schema for its cost.
"""

BEFORE: Final = "oldSelf"
"""Name of the earlier version in rules about changes, which only the API server can judge."""

Schema = dict[str, Any]


def rule(expression: str, expected: str, found: str = "", field: str = "") -> dict[str, str]:
    """Build one entry of `x-kubernetes-validations`.

    expected  words that complete "expected ..."
    found     CEL expression for the words that complete "found ..."; empty: the value at `field`
    field     path of the offending field below the schema that carries the rule, `.maxReplicas`
    """
    entry = {"rule": expression, "message": f"expected {expected}", "reason": "FieldValueInvalid"}
    if found:
        key = OFFLINE_WORDS if "string(" in found else "messageExpression"
        entry[key] = f'"expected {expected}, found " + {found}'
    if field:
        entry["fieldPath"] = field
    return entry


def constrained(*rules: dict[str, str], list_type: str = "", keys: tuple[str, ...] = ()) -> Schema:
    """Build the schema extensions of a field or model: rules, and how server-side apply merges a list."""
    extensions: Schema = {}
    if list_type:
        extensions["x-kubernetes-list-type"] = list_type
    if keys:
        extensions["x-kubernetes-list-map-keys"] = list(keys)
    if rules:
        extensions[EXTENSION] = list(rules)
    return extensions


class RuleError(Exception):
    """The rule does not apply to a value of this shape; a structural problem explains why."""


@functools.cache
def _compile(expression: str) -> cel.Program:
    return cel.compile(expression)


def evaluate(expression: str, value: Any) -> Any:
    """Evaluate CEL with `self` bound to a JSON value. Raises RuleError."""
    try:
        return _compile(expression).execute({"self": value})
    except (RuntimeError, TypeError, ValueError, KeyError, OverflowError) as exc:
        raise RuleError(f"{expression}: {exc}") from exc


def broken_rules(schema: Mapping[str, Any], value: Any) -> Iterator[tuple[Mapping[str, str], str]]:
    """Yield each rule of this schema node that refuses `value`, with its own words for what was found (may be empty).

    Raises RuleError.
    """
    for entry in schema.get(EXTENSION, ()):
        if BEFORE in entry["rule"]:
            continue  # compares two versions of an object, of which a file shows one
        if evaluate(entry["rule"], value) is not True:
            yield entry, _found_words(entry, value)


def _found_words(entry: Mapping[str, str], value: Any) -> str:
    words = entry.get("messageExpression") or entry.get(OFFLINE_WORDS)
    if words is None:
        return ""
    return str(evaluate(words, value)).removeprefix(f"{entry['message']}, found ")


def without_offline_words(schema: Any) -> Any:
    """Return the schema as an API server takes it; the argument unchanged."""
    if isinstance(schema, dict):
        return {name: without_offline_words(child) for name, child in schema.items() if name != OFFLINE_WORDS}
    if isinstance(schema, list):
        return [without_offline_words(child) for child in schema]
    return schema
