"""Every reason that a condition can carry has its place in docs/troubleshooting.md, and the page explains nothing else.

Reasons are read from the source of `windlass_operator.domain`: each of them is the argument of a call that builds a
refusal, a finding or a condition. An argument that cannot be read that way fails the test rather than going unseen.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from support.documents import ROOT, anchors, section
from windlass_operator import domain
from windlass_operator.cluster import kubernetes, kubernetes_client
from windlass_operator.domain.snapshot import Workload
from windlass_operator.domain.status import judge_workload
from windlass_operator.reconcile.reconciler import Result

PAGE = ROOT / "docs" / "troubleshooting.md"
REASON_AT = {"Refusal": 0, "Finding": 1, "_condition": 2, "Skipped": 2, "QuotaVerdict": 1}
"""Calls that take a reason, and where it stands among their arguments."""
TENANTS = {("status", "plan_tenant_status"), ("tenancy", "_dispute"), ("fleet_plan", "_unknown_classes")}
CLASSES = {("status", "plan_gpu_class_status")}
"""Functions whose reasons end up on Tenants and GPUClasses; all others are about InferenceServices."""


def reasons_of(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """Kind and reason of every call that takes one."""
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        kind = kind_of(module, function.name)
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Name) and call.func.id in REASON_AT:
                keyword = next((item.value for item in call.keywords if item.arg in ("reason", "cause")), None)
                argument = keyword or call.args[REASON_AT[call.func.id]]
                for reason in words_of(argument, function):
                    yield kind, reason


def kind_of(module: str, function: str) -> str:
    """Whose conditions a function's reasons are."""
    if module == "batch_status":
        return "BatchInference"
    if (module, function) in TENANTS:
        return "Tenant"
    return "GPUClass" if (module, function) in CLASSES else "InferenceService"


def words_of(argument: ast.expr, function: ast.FunctionDef) -> list[str]:
    """Texts that an expression can have. Empty where it only hands on the reason of something built elsewhere."""
    match argument:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.IfExp():
            return words_of(argument.body, function) + words_of(argument.orelse, function)
        case ast.Attribute(attr="reason"):
            return []
        case ast.Call(func=ast.Attribute(value=ast.Name(id="causes"), attr="pop")):
            return []  # the cause of a Skipped
        case ast.Name(id=name):
            assigned = [
                node.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
            ]
            if assigned:
                return [word for value in assigned for word in words_of(value, function)]
    raise AssertionError(f"{function.name}: the reason {ast.unparse(argument)} cannot be read from the source")


@cache
def reasons() -> dict[str, set[str]]:
    """Every reason, and the kinds on which it appears."""
    found: dict[str, set[str]] = {}
    for file in sorted(Path(next(iter(domain.__path__))).glob("*.py")):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            # `_condition(kind, holds, reason, ...)` itself hands its parameter on; it builds no reason of its own.
            if isinstance(node, ast.FunctionDef) and node.name == "_condition":
                node.body = []
        for kind, reason in reasons_of(tree, file.stem):
            found.setdefault(reason, set()).add(kind)
    return found


def entry(reason: str) -> dict[str, str]:
    """The three points of one reason's section."""
    text = section(PAGE.read_text(), reason)
    return dict(re.findall(r"^- \*\*(on|means|next)\*\*: (.+)$", text, re.MULTILINE))


def explained() -> list[str]:
    """Reasons that the page explains, in its order."""
    return re.findall(r"^### (.+)$", section(PAGE.read_text(), "Reasons"), re.MULTILINE)


def test_every_reason_is_explained_and_nothing_else_is() -> None:
    assert sorted(explained()) == sorted(reasons())


@pytest.mark.parametrize("reason", sorted(reasons()))
def test_a_reason_says_where_it_appears_what_it_means_and_what_to_do(reason: str) -> None:
    found = entry(reason)

    assert found.keys() == {"on", "means", "next"}
    assert set(re.findall(r"InferenceService|BatchInference|Tenant|GPUClass", found["on"])) == reasons()[reason]


def test_anchors_are_the_reasons_in_lower_case_so_that_alerts_can_name_them() -> None:
    found = anchors(PAGE.read_text())

    assert {reason.lower() for reason in reasons()} <= set(found)
    assert len(found) == len(set(found))


def test_every_alert_of_the_chart_has_its_section() -> None:
    groups = yaml.safe_load((ROOT / "helm" / "windlass" / "alerts.yaml").read_text())
    alerts = {rule["alert"]: rule["runbook"] for group in groups for rule in group["rules"]}
    text = PAGE.read_text()

    missing = {name: anchor for name, anchor in alerts.items() if anchor not in anchors(text) or name not in text}

    assert missing == {}


def test_every_word_of_a_refusal_by_the_cluster_is_explained() -> None:
    """`ApplyRefused` begins its message with one of these."""
    words = set()
    for module in (kubernetes, kubernetes_client):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "_rejection_reason":
                returned = [item.value for item in ast.walk(node) if isinstance(item, ast.Return) and item.value]
                words |= {
                    item.value
                    for value in returned
                    for item in ast.walk(value)
                    if isinstance(item, ast.Constant) and isinstance(item.value, str)
                }
            if isinstance(node, ast.Call):
                given = [item.value for item in node.keywords if item.arg == "reason"]
                given += node.args[1:2] if ast.unparse(node.func) == "errors.ApplyRejected" else []
                words |= {item.value for item in given if isinstance(item, ast.Constant)}

    assert {"Forbidden", "NameTaken", "QuotaExceeded"} <= words
    assert words == set(re.findall(r"^\| `(\w+)` \|", section(PAGE.read_text(), "ApplyRefused"), re.MULTILINE))


def test_every_result_of_a_reconcile_is_explained() -> None:
    text = section(PAGE.read_text(), "Reconciles failing")

    assert {result.value for result in Result} == set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))


def test_a_reason_hidden_in_a_variable_of_unknown_origin_is_not_overlooked() -> None:
    tree = ast.parse("def decide(word):\n    return Refusal(word, 'message', 'step')\n")

    with pytest.raises(AssertionError, match="cannot be read"):
        list(reasons_of(tree, "admission"))


def test_reasons_of_the_planner_are_among_those_found() -> None:
    """A second look, past the source: what a status says when nothing is known of a workload."""
    from support.builders import build_service, build_snapshot
    from windlass_operator.domain.fleet import FleetSettings
    from windlass_operator.domain.plan import plan_service

    service = build_service(replicas=2)
    plan = plan_service(service, build_snapshot(service), FleetSettings())

    assert judge_workload(plan, Workload()).reason in reasons()
