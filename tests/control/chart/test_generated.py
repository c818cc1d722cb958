"""What `make manifests` writes is current, and the generator refuses charts that explain nothing."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import yaml

from windlass_operator.api.kinds import KINDS

from .conftest import ROOT

INSTALL = ROOT / "helm/manifests/install.yaml"


def test_what_this_repository_holds_is_current(generator: ModuleType, helm: Path) -> None:
    assert generator.stale_files(generator.render_files(helm)) == []


def test_plain_manifests_hold_the_namespace_the_crds_and_the_chart_and_nothing_of_helm() -> None:
    manifests = list(yaml.safe_load_all(INSTALL.read_text()))

    kinds = [manifest["kind"] for manifest in manifests]
    assert kinds[: 1 + len(KINDS)] == ["Namespace", *["CustomResourceDefinition"] * len(KINDS)]
    assert kinds[-1] == "Deployment"
    assert "helm" not in INSTALL.read_text().split("\n", 1)[1].lower()
    namespaced = {manifest["metadata"].get("namespace") for manifest in manifests}
    assert namespaced == {None, "windlass-system"}


def test_the_namespace_of_plain_manifests_enforces_the_restricted_level() -> None:
    namespace = next(yaml.safe_load_all(INSTALL.read_text()))

    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_client_side_apply_can_hold_every_manifest_in_its_annotation() -> None:
    for manifest in yaml.safe_load_all(INSTALL.read_text()):
        assert len(yaml.safe_dump(manifest)) < 262_144 / 2


def test_tables_of_values_are_complete(generator: ModuleType) -> None:
    for chart in generator.CHARTS:
        text = (ROOT / "helm" / chart / "values.yaml").read_text()
        readme = (ROOT / "helm" / chart / "README.md").read_text()

        def leaves(values: object, path: str, paths: set[str]) -> list[str]:
            if path in paths or not isinstance(values, dict):
                return [path]
            return [leaf for key, value in values.items() for leaf in leaves(value, f"{path}.{key}".strip("."), paths)]

        known = {".".join(value.path) for value in generator.parse_values(text, chart) if not value.block}
        assert set(leaves(yaml.safe_load(text), "", known)) == known
        assert all(f"| `{path}` |" in readme for path in known)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("# How many.\na: 1\n", [(("a",), 1, "How many.", False)], id="a value"),
        pytest.param("# One.\n# Two.\na: []\n", [(("a",), [], "One. Two.", False)], id="two lines"),
        pytest.param(
            "a:\n  # Inner.\n  b: 1\n",
            [(("a",), {"b": 1}, "", True), (("a", "b"), 1, "Inner.", False)],
            id="a block",
        ),
        pytest.param("# Whole.\na:\n  b: 1\n", [(("a",), {"b": 1}, "Whole.", False)], id="a mapping as default"),
        pytest.param("# List.\na:\n  - b: 1\n    c: 2\n", [(("a",), [{"b": 1, "c": 2}], "List.", False)], id="a list"),
    ],
)
def test_values_are_read_with_their_comments(
    generator: ModuleType, text: str, expected: list[tuple[tuple[str, ...], object, str, bool]]
) -> None:
    assert generator.parse_values(text, "values.yaml") == [generator.Value(*entry) for entry in expected]


def test_a_value_without_a_comment_is_named(generator: ModuleType) -> None:
    with pytest.raises(generator.GenerateError, match=r"values\.yaml: a\.c: expected a comment"):
        generator.parse_values("a:\n  # Inner.\n  b: 1\n\n  c: 2\n", "values.yaml")


def test_a_rule_without_a_reason_is_named(generator: ModuleType) -> None:
    rule = "- apiGroups: ['']\n  resources: [pods]\n  verbs: [get]\n"
    role = f"kind: Role\nmetadata:\n  name: r\nrules:\n# Why.\n{rule}{rule}"

    with pytest.raises(generator.GenerateError, match=r"r: expected a comment above the rule on \['pods'\]"):
        generator.parse_roles(role)
