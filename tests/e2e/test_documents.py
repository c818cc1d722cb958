"""The commands of the documents, typed one after the other into a shell, on a cluster with nothing in it.

The operator's pods run on simulated nodes and do nothing; the process that works in their place has the token of their
account. Commands that need a running container or a container engine are the only ones left out.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.control_plane import ControlPlane, running_control_plane
from support.documents import ROOT, commands
from support.fake_fleet import NODES, add_node
from support.kube_client import KubeClient, eventually
from support.operator_process import OperatorProcess, running_operator
from support.tokens import request_token
from support.tools import Toolset
from windlass_operator.api.kinds import KINDS

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.own_plane, pytest.mark.timeout(600)]

DOCS = ROOT / "docs"
INSTALL, UPGRADE, TROUBLESHOOTING = DOCS / "howto/install.md", DOCS / "howto/upgrade.md", DOCS / "troubleshooting.md"
PLAN = DOCS / "howto/plan.md"
SYSTEM = "windlass-system"
LEFT_OUT = re.compile(r"^make |port-forward|^curl | logs ")


@dataclass(frozen=True, slots=True)
class Reader:
    """Somebody with a shell, who types what a page says."""

    folder: Path
    environment: dict[str, str]

    def follow(self, page: Path, heading: str) -> list[str]:
        """Type every command below a heading; returns what was typed. Raises AssertionError when one fails."""
        typed = [command for command in commands(page) if command.heading == heading]
        typed = [command for command in typed if not LEFT_OUT.search(command.text)]
        assert typed, f"{page.name} has no commands below {heading!r}"
        for command in typed:
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", command.text],
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return [command.text for command in typed]


@pytest.fixture(scope="module")
def empty_plane(minor: str, tools: Toolset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of its own, because the pages end with removing everything."""
    with running_control_plane(tmp_path_factory.mktemp(f"documents-{minor}-"), minor) as plane:
        yield plane


@pytest.fixture(scope="module")
def admin(empty_plane: ControlPlane) -> KubeClient:
    client = KubeClient(empty_plane.admin)
    for node in NODES[-2:]:
        add_node(client, node)
    return client


@pytest.fixture(scope="module")
def reader(empty_plane: ControlPlane, tools: Toolset, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """A reader in a checkout, with the files that the pages tell to write."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("helm", "crds", "examples"):
        (folder / name).symlink_to(ROOT / name)
    blocks = re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", INSTALL.read_text(), re.DOTALL)
    for name, text in blocks:
        (folder / name).write_text(text)
    (folder / "values.yaml").write_text("replicas: 2\n")
    programs = folder / "bin"
    programs.mkdir()
    for name in ("kubectl", "helm"):
        (programs / name).symlink_to(tools.require(name))
    (programs / "windlass").symlink_to(Path(sys.executable).with_name("windlass"))
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    kubeconfig = str(empty_plane.kubeconfig)
    return Reader(folder, {"PATH": path, "HOME": str(folder), "KUBECONFIG": kubeconfig})


def start_as_installed(
    plane: ControlPlane, admin: KubeClient, folder: Path
) -> contextlib.AbstractContextManager[OperatorProcess]:
    """The operator as the account that the page's installation made."""
    token = request_token(admin, SYSTEM, "windlass-operator")
    return running_operator(plane.access(token).write_kubeconfig(folder / "kubeconfig.json"), folder / "operator.log")


def left_behind(admin: KubeClient) -> list[str]:
    """What Windlass has in the cluster besides namespaces."""
    kinds = (
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        ("scheduling.k8s.io/v1", "PriorityClass"),
        ("rbac.authorization.k8s.io/v1", "ClusterRole"),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    )
    names = [item["metadata"]["name"] for kind in kinds for item in admin.list(*kind)]
    workloads = [item["metadata"]["name"] for item in admin.list("apps/v1", "Deployment")]
    return [name for name in names if "windlass" in name] + workloads


def test_a_reader_installs_serves_upgrades_rolls_back_and_removes_everything_with_helm(
    empty_plane: ControlPlane, admin: KubeClient, reader: Reader, tmp_path: Path
) -> None:
    reader.follow(INSTALL, "With Helm")
    with start_as_installed(empty_plane, admin, tmp_path) as operator:
        eventually(operator.leads, bool, timeout_s=30)
        eventually(
            lambda: admin.list("scheduling.k8s.io/v1", "PriorityClass", "", "app.kubernetes.io/part-of=windlass"), bool
        )
        typed = reader.follow(INSTALL, "Check")
        reader.follow(PLAN, "Plan before apply")
        reader.follow(TROUBLESHOOTING, "Troubleshooting")
        reader.follow(TROUBLESHOOTING, "403 Forbidden")
        reader.follow(TROUBLESHOOTING, "CRDs missing")
        reader.follow(UPGRADE, "Steps")
        reader.follow(UPGRADE, "Roll back")
        reader.follow(INSTALL, "Some namespaces only")

    reader.follow(INSTALL, "Uninstall")

    assert any("--for=condition=Ready" in command for command in typed)
    eventually(lambda: left_behind(admin), lambda found: not found, timeout_s=30)


def test_a_reader_installs_and_upgrades_with_kubectl_alone(admin: KubeClient, reader: Reader) -> None:
    reader.follow(INSTALL, "With kubectl")
    reader.follow(UPGRADE, "Without Helm")

    eventually(lambda: admin.get("apps/v1", "Deployment", "windlass-operator", SYSTEM), bool)
    assert len(admin.list("apiextensions.k8s.io/v1", "CustomResourceDefinition")) == len(KINDS)
