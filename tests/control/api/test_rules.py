"""Every CEL rule, offline: what it accepts, what it refuses, and that no rule is without a case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from support.rule_cases import RULE_CASES, UNIQUENESS_CASES, RuleCase
from windlass_operator.api.check import check, show_path
from windlass_operator.api.generate import render_crd
from windlass_operator.api.kinds import KIND_BY_NAME, KINDS
from windlass_operator.api.metadata import document_schema
from windlass_operator.api.rules import EXTENSION, RuleError, evaluate

ACCEPTED = [
    pytest.param(m, id=f"{c.name}-{i}") for c in (*RULE_CASES, *UNIQUENESS_CASES) for i, m in enumerate(c.accepted)
]
REFUSED = [
    pytest.param(c, m, id=f"{c.name}-{i}") for c in (*RULE_CASES, *UNIQUENESS_CASES) for i, m in enumerate(c.refused)
]


def findings_of(manifest: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (show_path(item.path) or "metadata.name", item.found, item.expected)
        for item in check(document_schema(KIND_BY_NAME[manifest["kind"]]), manifest)
    ]


@pytest.mark.parametrize("manifest", ACCEPTED)
def test_an_accepted_manifest_has_no_findings(manifest: Mapping[str, Any]) -> None:
    assert findings_of(manifest) == []


@pytest.mark.parametrize(("case", "manifest"), REFUSED)
def test_a_refused_manifest_breaks_its_rule_and_nothing_else(case: RuleCase, manifest: Mapping[str, Any]) -> None:
    expected = case.rule.get("message", "").removeprefix("expected ")

    findings = findings_of(manifest)

    assert [path for path, _, _ in findings] == [case.path]
    assert expected in findings[0][2]
    assert findings[0][1] != "null"


def rules_of(schema: Mapping[str, Any]) -> Iterator[str]:
    yield from (entry["rule"] for entry in schema.get(EXTENSION, ()))
    for child in (*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")):
        if child:
            yield from rules_of(child)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_rule_of_a_crd_has_a_case(kind: Any) -> None:
    schema = render_crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]

    assert set(rules_of(schema)) <= {case.rule["rule"] for case in RULE_CASES}


def test_a_rule_on_a_value_of_the_wrong_shape_is_an_error_of_its_own() -> None:
    with pytest.raises(RuleError, match="minReplicas"):
        evaluate("self.maxReplicas >= self.minReplicas", {"maxReplicas": 1})


@pytest.mark.parametrize(
    ("expression", "value", "expected"),
    [
        pytest.param("self.matches('b')", "abc", True, id="matches searches"),
        pytest.param("self.matches('^b')", "abc", False, id="anchored at the start"),
        pytest.param("self.matches('^abc$')", "abc\n", False, id="anchored at the very end"),
        pytest.param("has(self.a)", {"a": ""}, True, id="an empty field is there"),
        pytest.param("has(self.a)", {}, False, id="an absent field is not"),
        pytest.param("!has(self.a) || self.a.b", {}, True, id="or stops early"),
        pytest.param("self.all(x, false)", [], True, id="all of nothing"),
        pytest.param("self.exists_one(x, x == 'a')", ["a", "a"], False, id="exists_one counts"),
        pytest.param("self.all(k, k != 'b')", {"a": 1, "b": 2}, False, id="all of a map runs over keys"),
    ],
)
def test_the_evaluator_follows_the_cel_specification(expression: str, value: Any, expected: bool) -> None:
    assert evaluate(expression, value) is expected
