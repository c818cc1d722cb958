"""Fixtures of the end-to-end suite: one real control plane for the whole run."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from support.control_plane import ControlPlane, missing_binaries, running_control_plane
from support.kube_client import KubeClient, eventually

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A running control plane; skips naming the binaries that cannot be had."""
    built = subprocess.run([HERE / "tools" / "build.sh"], stdout=subprocess.PIPE, text=True, check=True)
    binaries = Path(built.stdout.strip())
    missing = missing_binaries(binaries)
    if missing:
        pytest.skip(f"missing binaries: {', '.join(missing)}; install Go or set KUBEBUILDER_ASSETS")
    with running_control_plane(tmp_path_factory.mktemp("control-plane"), binaries) as plane:
        yield plane


@pytest.fixture(scope="session")
def kube(control_plane: ControlPlane) -> KubeClient:
    """A cluster-admin client on a control plane that has our CRDs."""
    client = KubeClient(control_plane)
    names = []
    for path in sorted((HERE.parents[1] / "crds").glob("*.yaml")):
        crd = client.apply(yaml.safe_load(path.read_text()))
        names.append(crd["metadata"]["name"])
    for name in names:
        eventually(lambda name=name: _is_established(client, name), bool)
    return client


def _is_established(client: KubeClient, name: str) -> bool:
    crd = client.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", name) or {}
    conditions = crd.get("status", {}).get("conditions", [])
    return any(item["type"] == "Established" and item["status"] == "True" for item in conditions)
