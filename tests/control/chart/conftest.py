"""Fixtures of the chart tests: they need Helm and no cluster."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]


def load_generator() -> ModuleType:
    """helm/tools/generate.py, which is no part of any package."""
    spec = importlib.util.spec_from_file_location("helm_tools_generate", ROOT / "helm/tools/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class RefusedError(Exception):
    """Helm refused the values; the text is what it says."""


@pytest.fixture(scope="session")
def generator() -> ModuleType:
    return load_generator()


@pytest.fixture(scope="session")
def helm(generator: ModuleType) -> Path:
    """The Helm binary; skips where there is none, naming it."""
    found: Path | None = generator.find_helm()
    if found is None:
        pytest.skip("missing binary: helm; put it in PATH or HELM, or run `make control-plane`")
    return found


@pytest.fixture(scope="session")
def print_chart(helm: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return what a chart prints for some values. Raises RefusedError."""
    folder = tmp_path_factory.mktemp("values")

    def print_chart(
        values: Manifest | None = None,
        *,
        chart: str = "windlass",
        release: str = "windlass",
        namespace: str = "windlass-system",
    ) -> str:
        file = folder / "values.json"
        file.write_text(json.dumps(values or {}))
        place = str(ROOT / "helm" / chart)
        command = [str(helm), "template", release, place, "--namespace", namespace, "--values", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise RefusedError(done.stderr)
        return done.stdout

    return print_chart


@pytest.fixture(scope="session")
def render(print_chart: Callable[..., str]) -> Render:
    """Return the objects that a chart makes for some values. Raises RefusedError."""
    return lambda *args, **kwargs: [item for item in yaml.safe_load_all(print_chart(*args, **kwargs)) if item]


def only(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """Return the one object of a kind, or of a kind and a name."""
    (found,) = (item for item in manifests if item["kind"] == kind and name in (None, item["metadata"]["name"]))
    return found


def pod_of(manifests: list[Manifest]) -> Manifest:
    """Return the pod template of the operator."""
    template: Manifest = only(manifests, "Deployment")["spec"]["template"]
    return template


def environment_of(manifests: list[Manifest]) -> dict[str, str]:
    """Return the environment of the operator."""
    return {item["name"]: item["value"] for item in pod_of(manifests)["spec"]["containers"][0]["env"]}


def nested(path: str, value: Any) -> Manifest:
    """Return values with one entry, `operator.workerCount` -> {"operator": {"workerCount": value}}."""
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value
