"""`windlass explain SERVICE` against a real control plane: the operator's own answer, and a change that helps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from support.control_plane import ControlPlane
from support.kube_client import KubeClient, eventually
from support.services import condition, service, wait_ready

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator", "clean")]

Explain = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def explain(control_plane: ControlPlane) -> Explain:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "windlass_operator", "explain", *arguments]
        command += ["--kubeconfig", str(control_plane.kubeconfig)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run


def read(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)["services"]
    return dict(one)


def test_the_answer_is_that_of_the_status_and_its_smallest_change_admits_the_service(
    kube: KubeClient, explain: Explain
) -> None:
    """The tenant has six H200."""
    kube.apply(service(accelerator={"classes": ["h200"]}, replicas=7))
    refused = eventually(lambda: condition(kube, kind="Admitted"), lambda found: found.get("reason") == "QuotaExceeded")

    told = read(explain("chat", "-n", "team-a", "-o", "json"))

    assert refused["message"] == f"{told['refusal']['message']}. {told['refusal']['nextStep']}."
    assert refused in [{**refused, **one} for one in told["conditions"]]
    first = told["suggestions"][0]
    assert first["change"]["patch"] == {"spec": {"replicas": 6}}
    change = first["change"]
    target = {"apiVersion": "windlass.dev/v1alpha1", "kind": change["kind"]}
    target["metadata"] = {"name": change["name"], "namespace": change["namespace"]}
    kube.merge(target, change["patch"])
    wait_ready(kube)
    assert read(explain("chat", "-n", "team-a", "-o", "json"))["runs"] is True


def test_pods_that_no_node_has_room_for_are_told_what_would_give_them_one(
    kube: KubeClient, explain: Explain, grant: Callable[..., None]
) -> None:
    """The cluster has eight H200 on two nodes."""
    grant(h200=9)
    kube.apply(service(accelerator={"classes": ["h200"]}, replicas=9))
    eventually(lambda: condition(kube, kind="Ready"), lambda found: "Insufficient" in found.get("message", ""))

    done = explain("chat", "-n", "team-a")

    assert done.returncode == 0, done.stderr
    assert "  would admit it: free 1 x h200 on nodes with nvidia.com/gpu.product=NVIDIA-H200 (platform team)" in (
        done.stdout.splitlines()
    )


def test_a_service_that_is_not_there_is_answered_with_those_that_are(kube: KubeClient, explain: Explain) -> None:
    kube.apply(service())
    wait_ready(kube)

    done = explain("chatt", "-n", "team-a")

    assert done.returncode == 1
    assert "InferenceService team-a/chatt: expected one of those there: chat, found no such object" in done.stderr
