"""The life of an InferenceService: children, placement, status, and what kubectl shows of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from support.differences import differences
from support.kube_client import KubeClient, eventually
from support.services import (
    CHILD_KINDS,
    OWNED,
    condition,
    deployment,
    find,
    pods,
    service,
    tenant,
    wait_ready,
)

Run = Callable[..., str]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator", "clean")]


def nodes_of(kube: KubeClient, name: str) -> set[str]:
    return {pod["spec"]["nodeName"] for pod in pods(kube, name)}


@pytest.mark.parametrize(
    ("gpu_class", "nodes"),
    [
        pytest.param("h200", {"h200-1", "h200-2"}, id="whole devices"),
        pytest.param("a100", {"a100-1"}, id="tainted nodes"),
        pytest.param("a100-slice", {"mig-1"}, id="MIG slices"),
        pytest.param("edge-l4", {"edge-1", "edge-2"}, id="an edge pool"),
    ],
)
def test_a_service_becomes_ready_on_nodes_that_carry_its_gpu(kube: KubeClient, gpu_class: str, nodes: set[str]) -> None:
    kube.apply(service(accelerator={"classes": [gpu_class]}, replicas=2))

    ready = wait_ready(kube)

    assert nodes_of(kube, "chat") <= nodes
    assert ready["status"]["replicas"] == 2
    assert ready["status"]["acceleratorClass"] == gpu_class
    assert ready["status"]["observedGeneration"] == ready["metadata"]["generation"]


def test_the_next_class_is_taken_where_the_preferred_one_has_no_nodes(kube: KubeClient) -> None:
    kube.apply(service(accelerator={"classes": ["b300", "h200"]}))

    ready = wait_ready(kube)

    assert ready["status"]["acceleratorClass"] == "h200"


def test_every_child_is_owned_by_its_service(kube: KubeClient) -> None:
    applied = kube.apply(service(scaling={"maxReplicas": 3}))
    wait_ready(kube)

    for api, kind in CHILD_KINDS:
        found = kube.list(api, kind, "team-a", f"{OWNED},app.kubernetes.io/instance=chat")
        assert found, kind
        for child in found:
            assert [owner["uid"] for owner in child["metadata"]["ownerReferences"]] == [applied["metadata"]["uid"]]


def test_the_operator_leaves_no_marks_on_the_users_object(kube: KubeClient) -> None:
    applied = kube.apply(service())

    ready = wait_ready(kube)

    assert "finalizers" not in ready["metadata"]
    assert "annotations" not in ready["metadata"]
    assert ready["spec"] == applied["spec"]


def test_a_service_beyond_its_quota_says_so_with_numbers_and_runs_nothing(kube: KubeClient) -> None:
    kube.apply(service("big", accelerator={"classes": ["h200"]}, replicas=7, tier="Standard"))

    refused = eventually(lambda: condition(kube, "big", "Admitted"), lambda found: found.get("status") == "False")

    assert "7" in refused["message"]
    assert "6" in refused["message"]
    assert not pods(kube, "big")


def test_pods_that_find_no_device_say_so_on_the_service(kube: KubeClient) -> None:
    kube.apply(service("first", accelerator={"classes": ["edge-l4"]}, replicas=1))
    wait_ready(kube, "first")
    for number in (1, 2):  # taken by somebody outside our books
        kube.create(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"squatter-{number}", "namespace": "default"},
                "spec": {
                    "priorityClassName": "windlass-realtime",  # not to be preempted
                    "nodeSelector": {"windlass.dev/pool": "edge"},
                    "containers": [
                        {"name": "c", "image": "none", "resources": {"limits": {"nvidia.com/gpu": "1"}}},
                    ],
                },
            }
        )
    try:
        kube.apply(service("first", accelerator={"classes": ["edge-l4"]}, replicas=2))

        waiting = eventually(
            lambda: condition(kube, "first"), lambda found: "Insufficient nvidia.com/gpu" in found.get("message", "")
        )

        assert waiting["status"] == "False"
        assert waiting["reason"] == "PodsPending"
    finally:
        for number in (1, 2):
            kube.delete("v1", "Pod", f"squatter-{number}", "default")


def test_kubectl_wait_returns_when_the_service_is_ready(kube: KubeClient, kubectl: Run) -> None:
    kube.apply(service(replicas=2))

    kubectl("wait", "--for=condition=Ready", "inferenceservice/chat", "-n", "team-a", "--timeout=60s", timeout_s=90)

    assert find(kube)["status"]["readyReplicas"] == 2


def test_kubectl_scale_sets_the_number_of_replicas(kube: KubeClient, kubectl: Run) -> None:
    kube.apply(service())
    wait_ready(kube)

    kubectl("scale", "inferenceservice/chat", "-n", "team-a", "--replicas=3")

    eventually(lambda: deployment(kube)["status"].get("readyReplicas"), lambda ready: ready == 3)


def test_the_scale_subresource_tells_an_autoscaler_how_many_pods_there_are_and_which(kube: KubeClient) -> None:
    kube.apply(service(replicas=2))
    wait_ready(kube)

    scale = kube.request("GET", kube.path_of(service()) + "/scale")

    assert scale["spec"]["replicas"] == 2
    assert scale["status"]["replicas"] == 2
    named = {pod["metadata"]["name"] for pod in kube.list("v1", "Pod", "team-a", scale["status"]["selector"])}
    assert named == {pod["metadata"]["name"] for pod in pods(kube)}


def test_kubectl_get_shows_what_an_operator_on_call_wants_to_know(kube: KubeClient, kubectl: Run) -> None:
    kube.apply(service(accelerator={"classes": ["h200"]}))
    wait_ready(kube)

    header, row = kubectl("get", "infsvc", "chat", "-n", "team-a").splitlines()

    assert header.split() == ["NAME", "READY", "REASON", "REPLICAS", "GPU", "URL", "AGE"]
    assert row.split()[:5] == ["chat", "True", "ReplicasReady", "1", "h200"]
    assert "TIER" in kubectl("get", "infsvc", "chat", "-n", "team-a", "-o", "wide").splitlines()[0].split()


def test_kubectl_describe_tells_what_happened_in_events(kube: KubeClient, kubectl: Run) -> None:
    kube.apply(service("big", accelerator={"classes": ["h200"]}, replicas=7))
    eventually(lambda: condition(kube, "big", "Admitted"), lambda found: found.get("status") == "False")

    shown = eventually(
        lambda: kubectl("describe", "inferenceservice", "big", "-n", "team-a"), lambda text: "Warning" in text
    )

    events = shown.partition("Events:")[2]
    assert "windlass.dev/operator" in events
    assert "7" in events


def test_kubectl_explain_documents_the_fields(kubectl: Run) -> None:
    shown = kubectl("explain", "inferenceservice.spec.accelerator.classes")

    assert "GPUClass names in order of preference" in shown


def test_windlass_render_prints_what_the_operator_applies(kube: KubeClient, tmp_path: Path) -> None:
    manifests = [service(replicas=2, limits={"maxRunningRequests": 8}), tenant("a", "team-a")]
    kube.apply(manifests[0])
    wait_ready(kube)
    file = tmp_path / "service.yaml"
    file.write_text(yaml.safe_dump_all(manifests))

    command = [sys.executable, "-m", "windlass_operator", "render", str(file), "-o", "json"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)

    rendered = [item for item in json.loads(printed.stdout)["items"] if item["metadata"].get("namespace") == "team-a"]
    of_service = [item for item in rendered if item["metadata"]["name"].startswith("chat")]
    assert {item["kind"] for item in of_service} >= {"Deployment", "Service", "ConfigMap", "PodDisruptionBudget"}
    for item in of_service:
        live = kube.get(item["apiVersion"], item["kind"], item["metadata"]["name"], "team-a")
        assert differences(item, live) == [], item["kind"]
