"""Versions in docs/reference/support-matrix.md are the ones that the tests pin."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from support.documents import ROOT, section, table_rows

PAGE = (ROOT / "docs" / "reference" / "support-matrix.md").read_text()
TOOLS = ROOT / "tests" / "e2e" / "tools"
MODULES = {
    "Kubernetes 1.37": ("kubernetes-1.37", "k8s.io/kubernetes"),
    "Kubernetes 1.34": ("kubernetes-1.34", "k8s.io/kubernetes"),
    "etcd": ("etcd", "go.etcd.io/etcd/server/v3"),
    "Helm": ("helm", "helm.sh/helm/v4"),
    "Helm 3": ("helm-3", "helm.sh/helm/v3"),
    "kwok": ("kwok", "sigs.k8s.io/kwok"),
    "Kueue": ("kueue", "sigs.k8s.io/kueue"),
    "Argo CD": ("argocd", "github.com/argoproj/argo-cd/v3"),
}


def pinned(folder: str, module: str) -> str:
    """The version of a module in a tool's go.mod."""
    found = re.search(rf"{re.escape(module)} v(\S+)", (TOOLS / folder / "go.mod").read_text())
    assert found, f"{folder}/go.mod does not require {module}"
    return found[1]


def versions() -> dict[str, str]:
    """What the page says was tested."""
    return {row[0]: row[1] for row in table_rows(section(PAGE, "Tested versions"))}


@pytest.mark.parametrize("name", MODULES)
def test_a_tested_version_is_the_pinned_one(name: str) -> None:
    assert versions()[name] == pinned(*MODULES[name])


def test_every_kubernetes_minor_with_pins_is_listed() -> None:
    minors = {path.name.removeprefix("kubernetes-") for path in TOOLS.glob("kubernetes-*")}

    assert {name.removeprefix("Kubernetes ") for name in versions() if name.startswith("Kubernetes ")} == minors


def test_the_oldest_tested_minor_is_the_one_that_the_charts_ask_for() -> None:
    oldest = min(
        (name for name in versions() if name.startswith("Kubernetes ")), key=lambda name: int(name.split(".")[1])
    )

    for chart in ("windlass", "windlass-crds"):
        asked = yaml.safe_load((ROOT / "helm" / chart / "Chart.yaml").read_text()).get("kubeVersion")
        assert asked == f">={oldest.removeprefix('Kubernetes ')}.0-0"


def test_python_is_the_one_that_the_project_asks_for_and_the_images_bring() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    images = [(ROOT / folder / "Dockerfile").read_text() for folder in ("operator", "runtime")]

    assert versions()["Python"] == asked
    assert all(f"PYTHON_IMAGE=python:{asked}-" in text for text in images)


@pytest.mark.parametrize("name", ["torch", "kopf", "kubernetes"])
def test_libraries_are_the_locked_ones(name: str) -> None:
    lock = (ROOT / "requirements.lock").read_text()
    found = re.search(rf"^{name}==([^\s;]+)", lock, re.MULTILINE)

    assert found
    assert versions()[f"{name} (Python package)"] == found[1]


def test_versions_stand_in_this_page_alone() -> None:
    """Other pages link here, so that a new pin changes one page."""
    full = [pinned(*MODULES[name]) for name in MODULES]
    pages = [ROOT / "docs" / "howto" / "install.md", ROOT / "docs" / "howto" / "upgrade.md"]
    pages += [ROOT / "docs" / "troubleshooting.md", ROOT / "docs" / "security.md"]

    assert [f"{page.name}: {version}" for page in pages for version in full if version in page.read_text()] == []
    assert all(isinstance(page, Path) for page in pages)
