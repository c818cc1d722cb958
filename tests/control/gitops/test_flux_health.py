"""Flux waits as long as our statuses mean: the expressions of docs/howto/flux.md on the fixtures of every state."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cel
import pytest
import yaml

from support.argocd import CUSTOMIZATIONS, ROOT, read_fixture

HEALTH = {"Healthy": "Current", "Suspended": "Current", "Progressing": "InProgress", "Degraded": "Failed"}
"""Health in Argo CD -> in Flux; a suspended service is as it should be."""


def expressions() -> dict[str, dict[str, str]]:
    """Kind -> its entry in the how-to's Kustomizations."""
    text = (ROOT / "docs" / "howto" / "flux.md").read_text()
    found: dict[str, dict[str, str]] = {}
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        for document in yaml.safe_load_all(block):
            for entry in document["spec"].get("healthCheckExprs", ()):
                found[entry["kind"]] = entry
    return found


def health_of(manifest: dict[str, Any]) -> str:
    """Evaluate as Flux does: in this order, and an expression about a field that is not there keeps it waiting."""
    entry = expressions()[manifest["kind"]]
    try:
        for name, health in (("inProgress", "InProgress"), ("failed", "Failed"), ("current", "Current")):
            if cel.evaluate(entry[name], manifest):
                return health
    except RuntimeError:
        return "InProgress"
    return "InProgress"


def states() -> list[Any]:
    listed = []
    for path in sorted((CUSTOMIZATIONS / "windlass.dev").glob("*/health_test.yaml")):
        for test in yaml.safe_load(path.read_text())["tests"]:
            fixture = path.parent / test["inputPath"]
            name = f"{path.parent.name}/{fixture.stem}"
            listed.append(pytest.param(fixture, HEALTH[test["healthStatus"]["status"]], id=name))
    return listed


@pytest.mark.parametrize(("path", "expected"), states())
def test_flux_judges_each_state_as_argo_cd_does(path: Path, expected: str) -> None:
    assert health_of(read_fixture(path)) == expected
