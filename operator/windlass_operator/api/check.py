"""Compare a JSON value with a structural schema.

Shapes, bounds, unknown fields and rules, each finding with its path.

Stricter than the API server in two ways that catch mistakes early: unknown fields are findings (the server drops
them) and so is null (the server replaces some of them by defaults).
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from windlass_operator.api.patterns import WORDS
from windlass_operator.api.rules import RuleError, broken_rules
from windlass_operator.api.schema import with_defaults

Path = tuple[str | int, ...]

_SHOWN: Final = 80
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TYPE_WORDS: Final = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "boolean": "true or false",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong below the value that was checked."""

    path: Path
    found: str
    expected: str


def printable(text: str) -> str:
    """Escape what a terminal would obey rather than show: files may be hostile."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def show(value: Any) -> str:
    """Say a JSON value in a few words, on one line."""
    if isinstance(value, str):
        shown = printable(value[: _SHOWN + 1])
        return f'"{shown}"' if len(value) <= _SHOWN else f'"{shown[:_SHOWN]}..." ({len(value)} characters)'
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean {json.dumps(value)}"
    if isinstance(value, int | float):
        digits = repr(value) if not isinstance(value, int) or abs(value) < 10**18 else "beyond 18 digits"
        return f"number {digits}"
    size = len(value)
    if isinstance(value, list):
        return f"a list of {size}"
    return "an empty mapping" if not value else f"a mapping with {show(next(iter(value)))[1:-1]}"


def show_path(path: Path) -> str:
    """Write a path as users know it: `spec.scaling.metrics[0].type`, `metadata.labels[a.b/c]`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _IDENTIFIER.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f"[{show(step)[1:-1]}]"
    return text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Words that name the closest known spelling, or nothing."""
    if len(word) > _SHOWN:
        return ""
    spellings = {spelling.lower(): spelling for spelling in known}
    close = difflib.get_close_matches(word.lower(), spellings, n=1, cutoff=0.7)
    return f" (did you mean {spellings[close[0]]}?)" if close else ""


def check(schema: Mapping[str, Any], value: Any, path: Path = ()) -> list[Finding]:
    """List everything wrong with `value`: its shape, then the rules, which see defaults as the API server does."""
    shape = list(check_shape(schema, value, path))
    broken = frozenset(finding.path for finding in shape)
    return shape + list(_check_rules(schema, with_defaults(schema, value), path, broken))


def check_shape(schema: Mapping[str, Any], value: Any, path: Path = ()) -> Iterator[Finding]:
    """Yield findings about types, bounds, required and unknown fields and duplicates in sets and list maps."""
    kind = schema["type"]
    if not _has_type(value, kind):
        quotes = " (put it in quotes)" if kind == "string" and isinstance(value, bool | int | float) else ""
        yield Finding(path, show(value), _expect(schema, kind) + quotes)
        return
    if "enum" in schema and value not in schema["enum"]:
        hint = did_you_mean(value, schema["enum"]) if isinstance(value, str) else ""
        yield Finding(path, show(value) + hint, "one of " + ", ".join(word or '""' for word in schema["enum"]))
        return
    yield from _CHECKS[kind](schema, value, path)


def _has_type(value: Any, kind: str) -> bool:
    match kind:
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case _:
            return isinstance(value, dict)


def _expect(schema: Mapping[str, Any], kind: str) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(word or '""' for word in schema["enum"])
    if kind == "integer":
        return _bounds(schema, "minimum", "maximum", "a whole number", "")
    return WORDS.get(schema.get("pattern", ""), _TYPE_WORDS[kind]) if kind == "string" else _TYPE_WORDS[kind]


def _bounds(schema: Mapping[str, Any], low: str, high: str, noun: str, unit: str) -> str:
    least, most = schema.get(low), schema.get(high)
    match least, most:
        case None, None:
            return noun
        case None, _:
            return f"{noun} of at most {most}{unit}"
        case _, None:
            return f"{noun} of at least {least}{unit}"
        case _:
            return f"{noun} of {least} to {most}{unit}" if least != most else f"{noun} of {least}{unit}"


def _out_of_bounds(schema: Mapping[str, Any], size: int, low: str, high: str) -> bool:
    return not schema.get(low, -math.inf) <= size <= schema.get(high, math.inf)


def _check_integer(schema: Mapping[str, Any], value: int, path: Path) -> Iterator[Finding]:
    if _out_of_bounds(schema, value, "minimum", "maximum"):
        yield Finding(path, show(value), _bounds(schema, "minimum", "maximum", "a whole number", ""))


def _check_boolean(schema: Mapping[str, Any], value: bool, path: Path) -> Iterator[Finding]:  # noqa: ARG001  (one of a table)
    yield from ()


def _check_string(schema: Mapping[str, Any], value: str, path: Path) -> Iterator[Finding]:
    if _out_of_bounds(schema, len(value), "minLength", "maxLength"):
        yield Finding(path, show(value), _bounds(schema, "minLength", "maxLength", "text", " characters"))
    elif "pattern" in schema and not _matches(schema["pattern"], value):
        yield Finding(path, show(value), WORDS.get(schema["pattern"], f"text that matches {schema['pattern']}"))


@functools.cache
def _pattern(pattern: str) -> re.Pattern[str]:
    # `$` of the API server's expressions is the very end; Python's also matches before a last newline.
    return re.compile(pattern.removesuffix("$") + r"\Z" if pattern.endswith("$") else pattern, re.ASCII)


def _matches(pattern: str, value: str) -> bool:
    return _pattern(pattern).search(value) is not None


def _check_array(schema: Mapping[str, Any], value: list[Any], path: Path) -> Iterator[Finding]:
    if _out_of_bounds(schema, len(value), "minItems", "maxItems"):
        yield Finding(path, show(value), _bounds(schema, "minItems", "maxItems", "a list", " items"))
    for index, item in enumerate(value[: schema.get("maxItems", len(value))]):
        yield from check_shape(schema["items"], item, (*path, index))
    yield from _check_duplicates(schema, value, path)


def _check_duplicates(schema: Mapping[str, Any], value: list[Any], path: Path) -> Iterator[Finding]:
    keys = schema.get("x-kubernetes-list-map-keys", ())
    if schema.get("x-kubernetes-list-type") not in ("set", "map"):
        return
    seen: dict[str, int] = {}
    for index, item in enumerate(value):
        stored = with_defaults(schema["items"], item)
        identity = [stored.get(key) for key in keys] if keys and isinstance(stored, dict) else stored
        first = seen.setdefault(json.dumps(identity, sort_keys=True), index)
        if first != index:
            what = "each item once" if not keys else f"a different {' and '.join(keys)} in each item"
            yield Finding((*path, index), f"the same as in {show_path((*path, first))}", what)


def _check_object(schema: Mapping[str, Any], value: dict[str, Any], path: Path) -> Iterator[Finding]:
    if _out_of_bounds(schema, len(value), "minProperties", "maxProperties"):
        yield Finding(
            path, f"{len(value)} entries", _bounds(schema, "minProperties", "maxProperties", "a mapping", " entries")
        )
    if "additionalProperties" in schema:
        for name, item in value.items():
            yield from check_shape(schema["additionalProperties"], item, (*path, name))
        return
    if "properties" not in schema:
        return
    known = schema["properties"]
    for name in schema.get("required", ()):
        if name not in value:
            yield Finding((*path, name), "nothing", _expect(known[name], known[name]["type"]))
    for name, item in value.items():
        if name in known:
            yield from check_shape(known[name], item, (*path, name))
        else:
            yield Finding(
                (*path, name), "an unknown field" + did_you_mean(name, known), "one of the fields " + ", ".join(known)
            )


_CHECKS: Final[Mapping[str, Callable[[Mapping[str, Any], Any, Path], Iterator[Finding]]]] = {
    "integer": _check_integer,
    "boolean": _check_boolean,
    "string": _check_string,
    "array": _check_array,
    "object": _check_object,
}


def _check_rules(schema: Mapping[str, Any], value: Any, path: Path, broken: frozenset[Path]) -> Iterator[Finding]:
    if path not in broken:
        try:
            yield from _broken_rules(schema, value, path)
        except RuleError as exc:
            # On a value of the wrong shape a rule may fail to run; the finding about the shape says what to mend.
            if not broken:
                yield Finding(path, f"a rule that cannot be evaluated: {exc}", "a value that rules can judge")
    for step, child_schema, child in _children(schema, value):
        yield from _check_rules(child_schema, child, (*path, step), broken)


def _broken_rules(schema: Mapping[str, Any], value: Any, path: Path) -> Iterator[Finding]:
    for entry, words in broken_rules(schema, value):
        field = tuple(entry.get("fieldPath", "").split(".")[1:])
        found = printable(words) or show(_value_at(value, field))
        yield Finding(path + field, found, entry["message"].removeprefix("expected "))


def _value_at(value: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _children(schema: Mapping[str, Any], value: Any) -> Iterator[tuple[str | int, Mapping[str, Any], Any]]:
    if isinstance(value, dict):
        for name, child in value.items():
            below = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if below:
                yield name, below, child
    elif isinstance(value, list) and "items" in schema:
        for index, child in enumerate(value[: schema.get("maxItems", len(value))]):
            yield index, schema["items"], child
