"""Findings in words: values, paths and hints as users read them."""

from __future__ import annotations

from typing import Any

import pytest

from windlass_operator.api.check import check, did_you_mean, show, show_path
from windlass_operator.api.rules import constrained, rule


@pytest.mark.parametrize(
    ("value", "words"),
    [
        pytest.param("a", '"a"', id="text"),
        pytest.param("\x1b[31m\n", '"\\x1b[31m\\n"', id="control characters are escaped"),
        pytest.param("x" * 200, '"' + "x" * 80 + '..." (200 characters)', id="long text is cut"),
        pytest.param(None, "null", id="null"),
        pytest.param(True, "boolean true", id="boolean"),
        pytest.param(4, "number 4", id="integer"),
        pytest.param(1.5, "number 1.5", id="fraction"),
        pytest.param(10**30, "number beyond 18 digits", id="huge integer"),
        pytest.param([1, 2], "a list of 2", id="list"),
        pytest.param({}, "an empty mapping", id="empty mapping"),
        pytest.param({"a": 1}, "a mapping with a", id="mapping"),
    ],
)
def test_a_value_is_said_in_a_few_words(value: Any, words: str) -> None:
    assert show(value) == words


def test_a_path_is_written_as_users_know_it() -> None:
    assert show_path(("spec", "metrics", 0, "type")) == "spec.metrics[0].type"
    assert show_path(("metadata", "labels", "a.b/c")) == "metadata.labels[a.b/c]"
    assert show_path(("\x1b",)) == "[\\x1b]"


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        pytest.param("maxReplica", " (did you mean maxReplicas?)", id="close"),
        pytest.param("MAXREPLICAS", " (did you mean maxReplicas?)", id="case"),
        pytest.param("colour", "", id="nothing close"),
        pytest.param("maxReplicas" * 1000, "", id="too long to be a slip"),
    ],
)
def test_a_hint_names_the_closest_spelling(word: str, hint: str) -> None:
    assert did_you_mean(word, ["minReplicas", "maxReplicas"]) == hint


SCHEMA = {
    "type": "object",
    "properties": {
        "low": {"type": "integer", "default": 1},
        "high": {"type": "integer"},
        "name": {"type": "string", "maxLength": 3, **constrained(rule("self != 'no'", "another name"))},
    },
    **constrained(rule("!has(self.high) || self.high >= self.low", "at least low", field=".high")),
}


def findings(value: Any) -> list[tuple[str, str, str]]:
    return [(show_path(item.path), item.found, item.expected) for item in check(SCHEMA, value)]


def test_rules_see_defaults() -> None:
    assert findings({"high": 0}) == [("high", "number 0", "at least low")]


def test_a_rule_speaks_although_another_field_has_the_wrong_shape() -> None:
    assert findings({"high": 0, "name": 7}) == [
        ("name", "number 7", "text (put it in quotes)"),
        ("high", "number 0", "at least low"),
    ]


def test_a_rule_that_cannot_run_leaves_the_word_to_the_shape() -> None:
    assert findings({"high": "many"}) == [("high", '"many"', "a whole number")]


def test_a_value_of_the_wrong_shape_is_not_judged_twice() -> None:
    assert findings({"name": "none"}) == [("name", '"none"', "text of at most 3 characters")]
    assert findings({"name": "no"}) == [("name", '"no"', "another name")]


def test_a_pattern_ends_at_the_very_end() -> None:
    schema = {"type": "string", "pattern": "^a$"}

    assert check(schema, "a") == []
    assert [item.expected for item in check(schema, "a\n")] == ["text that matches ^a$"]
