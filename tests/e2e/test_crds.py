"""The CRDs on a real API server: they install, agree with `windlass validate`, and their samples pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.kube_client import KubeClient, RefusedError, eventually
from support.rule_cases import RULE_CASES, RuleCase

ROOT = Path(__file__).resolve().parents[2]
CRDS = sorted(path for path in (ROOT / "crds").glob("*.yaml") if path.name != "kustomization.yaml")
SAMPLES = sorted((ROOT / "examples").glob("*/*.yaml"))
CRD_API = "apiextensions.k8s.io/v1"

pytestmark = pytest.mark.cluster


def validate(kube: KubeClient, manifest: dict[str, Any]) -> None:
    """Strict dry-run of a create. Raises RefusedError. That a name is taken is found out only after validation."""
    try:
        kube.create(manifest, dry_run=True)
    except RefusedError as exc:
        if exc.code != 409:
            raise


def read_documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@pytest.mark.parametrize("path", CRDS, ids=lambda path: path.stem)
def test_a_crd_becomes_established_with_a_structural_schema(path: Path, kube: KubeClient) -> None:
    (crd,) = read_documents(path)

    def conditions() -> dict[str, str]:
        found = kube.get(CRD_API, "CustomResourceDefinition", crd["metadata"]["name"])
        return {item["type"]: item["status"] for item in ((found or {}).get("status", {}).get("conditions") or [])}

    established = eventually(conditions, lambda found: found.get("Established") == "True")

    assert "NonStructuralSchema" not in established


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("path", CRDS, ids=lambda path: path.stem)
def test_a_crd_installs_and_updates_by_kubectl_apply_of_either_side(
    path: Path, side: str, kube: KubeClient, kubectl: Callable[..., str]
) -> None:
    """Client-side apply keeps a copy in an annotation of at most 262,144 bytes: large CRDs of others do not fit."""
    group = f"{side}-side.example"
    manifest = path.read_text().replace("windlass.dev", group)  # beside ours, so that nothing stored is lost
    name = yaml.safe_load(manifest)["metadata"]["name"]
    flags = ["--server-side"] if side == "server" else []

    kubectl("apply", *flags, "-f", "-", input=manifest)
    again = kubectl("apply", *flags, "-f", "-", input=manifest)

    assert "serverside-applied" in again if side == "server" else "unchanged" in again
    kube.delete(CRD_API, "CustomResourceDefinition", name)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_sample_passes_a_strict_server_side_dry_run(path: Path, kube: KubeClient) -> None:
    for document in read_documents(path):
        namespace = document["metadata"].get("namespace")
        if namespace:
            kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})

        validate(kube, document)


@pytest.mark.parametrize("case", RULE_CASES, ids=lambda case: case.name)
def test_the_api_server_agrees_with_validate_on_every_rule(case: RuleCase, kube: KubeClient) -> None:
    for manifest in case.accepted:
        validate(kube, manifest)
    for manifest in case.refused:
        with pytest.raises(RefusedError) as caught:
            validate(kube, manifest)
        assert caught.value.code == 422
        if case.rule:
            assert case.rule["message"] in caught.value.message
