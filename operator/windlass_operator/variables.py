"""Settings from text: environment variables and flags become values of a settings class, and every mistake is named.

Pure; the settings of each process say what they accept (`Rules`) and what has to hold between two of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import string
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from windlass_operator.errors import SettingsError

S = TypeVar("S")

SERVICE_LINK: Final = re.compile(
    r"_SERVICE_(HOST|PORT)(_[A-Z0-9_]+)?$|_PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$"
)
"""Variables that Kubernetes sets for Services of the pod's namespace: a Service `windlass-gateway` makes
WINDLASS_GATEWAY_PORT=tcp://10.0.0.7:80 and more. They are not ours to refuse."""

Worded = Mapping[str, tuple[str, str]]
"""Field -> a pattern for the whole text, and what it means in words."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the settings of one process accept. A field without a rule takes any text."""

    owner: str
    """Whose they are, for messages: `the operator`."""
    prefix: str
    """How all of its variables begin; others are not looked at."""
    variables: Mapping[str, str]
    """Field -> variable."""
    whole: frozenset[str]
    """Fields of `ranges` that take whole numbers."""
    ranges: Mapping[str, tuple[float, float]]
    """Field -> lowest and highest number."""
    patterns: Worded = field(default_factory=dict)
    lists: Worded = field(default_factory=dict)
    """Fields of several texts separated by commas; the pattern is for each of them."""


def parse_settings_class(
    kind: type[S],
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
    rules: Rules,
    contradictions: Callable[[S], list[str]],
) -> S:
    """Build settings whose fields are all variables. `contradictions` says what does not fit together in the result.

    Raises SettingsError that lists every wrong key.
    """
    values, problems = parse_variables(environment, flags, rules)
    settings = kind(**values)
    problems = problems or contradictions(settings)
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def variables_of(kind: type[Any], prefix: str) -> dict[str, str]:
    """Variable of each field of a settings class."""
    return {item.name: prefix + item.name.upper() for item in dataclasses.fields(kind)}


def whole_fields(kind: type[Any]) -> frozenset[str]:
    """Fields of a settings class that take whole numbers."""
    return frozenset(item.name for item in dataclasses.fields(kind) if item.type == "int")


def unknown_places(variable: str, template: str, known: Collection[str]) -> list[str]:
    """Say that an address names places to fill in that nobody fills in."""
    try:
        places = {place for _, place, _, _ in string.Formatter().parse(template) if place is not None}
    except ValueError:
        places = {template}
    if places <= set(known):
        return []
    *others, last = (f"{{{place}}}" for place in known)
    return [f"{variable}: expected no places but {', '.join(others)} and {last}, found {template!r}"]


def parse_variables(
    environment: Mapping[str, str], flags: Mapping[str, Any], rules: Rules
) -> tuple[dict[str, Any], list[str]]:
    """Return the values by field, and a line for every mistake. `flags` (None where not given) win."""
    texts, problems = _texts(environment, rules)
    texts.update({name: str(value) for name, value in flags.items() if value is not None})
    values: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            values[name] = _parse_value(name, text, rules)
        except ValueError as exc:
            problems.append(f"{rules.variables[name]}: expected {exc}, found {text!r}")
    return values, problems


def _texts(environment: Mapping[str, str], rules: Rules) -> tuple[dict[str, str], list[str]]:
    names = {variable: name for name, variable in rules.variables.items()}
    texts: dict[str, str] = {}
    problems: list[str] = []
    for variable, text in sorted(environment.items()):
        if variable in names:
            texts[names[variable]] = text
        elif variable.startswith(rules.prefix) and not _is_service_link(variable, text):
            close = difflib.get_close_matches(variable, names, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            problems.append(f"{variable}: expected one of {rules.owner}'s settings, found an unknown key{hint}")
    return texts, problems


def _is_service_link(variable: str, text: str) -> bool:
    if not SERVICE_LINK.search(variable):
        return False
    return "_SERVICE_" in variable or bool(re.search(r"_PORT_[0-9]+_", variable)) or "://" in text


def _parse_value(name: str, text: str, rules: Rules) -> Any:
    """Return the value of one field. Raises ValueError whose message is what was expected."""
    if name in rules.lists:
        pattern, meaning = rules.lists[name]
        parts = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        if not all(re.fullmatch(pattern, part) for part in parts):
            raise ValueError(meaning)
        return parts
    if name in rules.ranges:
        return _parse_number(text, rules.ranges[name], whole=name in rules.whole)
    if name in rules.patterns and not re.fullmatch(rules.patterns[name][0], text):
        raise ValueError(rules.patterns[name][1])
    return text


def _parse_number(text: str, bounds: tuple[float, float], *, whole: bool) -> float | int:
    low, high = bounds
    expected = f"{'a whole number' if whole else 'a number'} from {low:g} to {high:g}"
    convert: Callable[[str], float | int] = int if whole else float
    try:
        value = convert(text)
    except ValueError:
        raise ValueError(expected) from None
    if not low <= value <= high:  # NaN fails too
        raise ValueError(expected)
    return value
