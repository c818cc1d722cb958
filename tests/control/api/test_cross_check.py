"""Contradictions between objects of the same files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from support.rule_cases import Manifest, gpu_class_of, service, tenant_of
from windlass_operator.api.load import Loaded, load_documents


def load(folder: Path, *manifests: Manifest) -> Loaded:
    (folder / "a.yaml").write_text(yaml.safe_dump_all(manifests, sort_keys=False))
    return load_documents([folder])


def in_namespace(namespace: str, manifest: Manifest) -> Manifest:
    return manifest | {"metadata": {**manifest["metadata"], "namespace": namespace}}


def test_a_namespace_has_one_tenant(tmp_path: Path) -> None:
    loaded = load(tmp_path, tenant_of({"namespaces": ["x", "y"]}, "one"), tenant_of({"namespaces": ["z", "y"]}, "two"))

    ((path, found, subject, line),) = [(item.path, item.found, item.subject, item.line) for item in loaded.problems]
    assert (path, found, subject) == ("spec.namespaces[1]", '"y", which belongs to Tenant one', "Tenant two")
    assert (tmp_path / "a.yaml").read_text().splitlines()[line - 1] == "  - y"


@pytest.mark.parametrize(
    ("manifests", "path", "found"),
    [
        pytest.param(
            [gpu_class_of(), service({"accelerator.classes": ["h200", "h20"]})],
            "spec.accelerator.classes[1]",
            '"h20" (did you mean h200?)',
            id="class of a service",
        ),
        pytest.param(
            [gpu_class_of(), tenant_of({"quota.gpus": [{"name": "l4", "nominal": 1}]})],
            "spec.quota.gpus[0].name",
            '"l4"',
            id="class of a quota",
        ),
        pytest.param(
            [tenant_of(), in_namespace("elsewhere", service())],
            "metadata.namespace",
            '"elsewhere", which no tenant owns',
            id="namespace without a tenant",
        ),
        pytest.param(
            [tenant_of(), in_namespace("team-acme", service({"tier": "Realtime"}))],
            "spec.tier",
            "Realtime",
            id="tier that the tenant does not allow",
        ),
    ],
)
def test_a_reference_without_target_is_a_warning(
    tmp_path: Path, manifests: list[Manifest], path: str, found: str
) -> None:
    loaded = load(tmp_path, *manifests)

    assert loaded.problems == ()
    assert [(item.path, item.found) for item in loaded.warnings] == [(path, found)]


@pytest.mark.parametrize(
    "manifests",
    [
        pytest.param([service({"accelerator.classes": ["any"]})], id="files without that side"),
        pytest.param([gpu_class_of({"memory": "0"}), service({"accelerator.classes": ["h200"]})], id="target left out"),
        pytest.param(
            [gpu_class_of(), gpu_class_of({"memory": 1}, "a"), service({"accelerator.classes": ["a"]})],
            id="one left out",
        ),
        pytest.param([tenant_of(), tenant_of({"namespaces": []}, "b"), service()], id="a tenant left out"),
    ],
)
def test_no_warning_where_the_target_may_exist(tmp_path: Path, manifests: list[Manifest]) -> None:
    assert load(tmp_path, *manifests).warnings == ()
