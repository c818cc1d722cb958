"""How the operator proves who it is: client certificate, token, login plugin; and what it says when it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.control_plane import ControlPlane
from support.kube_client import KubeClient, eventually
from support.operator_process import running_operator
from support.services import service, wait_ready

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("clean", "no_operator")]

PLUGIN = """
import json, pathlib
pathlib.Path({calls!r}).open("a").write("called\\n")
token = json.load(open({source!r}))["users"][0]["user"]["token"]
status = {{"token": token}}
print(json.dumps({{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}}))
"""


def serves(kube: KubeClient, kubeconfig: Path, tmp_path: Path) -> None:
    """An operator with this kubeconfig brings a service up."""
    with running_operator(kubeconfig, tmp_path / "operator.log") as process:
        eventually(process.leads, bool, timeout_s=30)
        kube.apply(service())
        wait_ready(kube)


def test_the_operator_logs_in_with_a_client_certificate(
    kube: KubeClient, control_plane: ControlPlane, fleet: None, tmp_path: Path
) -> None:
    serves(kube, control_plane.kubeconfig, tmp_path)


def test_the_operator_logs_in_through_a_login_plugin(
    kube: KubeClient, operator_kubeconfig: Path, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    script = tmp_path / "plugin.py"
    script.write_text(PLUGIN.format(calls=str(calls), source=str(operator_kubeconfig)))
    config = json.loads(operator_kubeconfig.read_text())
    command = {"apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never", "command": sys.executable}
    config["users"][0]["user"] = {"exec": {**command, "args": [str(script)]}}
    kubeconfig = tmp_path / "kubeconfig.json"
    kubeconfig.write_text(json.dumps(config))

    serves(kube, kubeconfig, tmp_path)

    assert calls.read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"token": "not-a-token"}, ("401", "credentials"), id="a wrong token"),
        pytest.param({}, ("403", "permission"), id="no login at all"),
    ],
)
def test_an_operator_that_may_not_read_says_so_and_ends(
    operator_kubeconfig: Path, tmp_path: Path, change: dict[str, str], words: tuple[str, str]
) -> None:
    config = json.loads(operator_kubeconfig.read_text())
    config["users"][0]["user"] = change
    kubeconfig = tmp_path / "kubeconfig.json"
    kubeconfig.write_text(json.dumps(config))

    command = [sys.executable, "-m", "windlass_operator", "operator", "run", "--kubeconfig", str(kubeconfig)]
    done = subprocess.run([*command, "--probe-port", "0"], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
