"""The operator against a real API server, controller manager and scheduler."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.control_plane import ControlPlane
from support.kube_client import KubeClient, Manifest, eventually
from support.operator_process import OperatorProcess, running_operator

pytestmark = pytest.mark.cluster

API = "windlass.dev/v1alpha1"
APPS = "apps/v1"
H200 = {"nvidia.com/gpu.product": "NVIDIA-H200"}
OWNED = "app.kubernetes.io/managed-by=windlass-operator"
CHILD_KINDS = [
    ("apps/v1", "Deployment"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("v1", "ServiceAccount"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
]


@pytest.fixture(scope="module", autouse=True)
def fleet(kube: KubeClient) -> None:
    """Two GPU nodes and one plain node, a GPUClass, and the operator's own namespace."""
    for name, labels, gpus in (("gpu-1", H200, 4), ("gpu-2", H200, 4), ("plain-1", {}, 0)):
        resources = {"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "1Ti"}
        resources |= {"nvidia.com/gpu": str(gpus)} if gpus else {}
        metadata = {"name": name, "labels": labels | {"kubernetes.io/hostname": name}}
        node: Manifest = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
        kube.apply(node)
        kube.merge(node, {"status": {"capacity": resources, "allocatable": resources}}, subresource="status")
    gpu_class = {"nodeSelector": H200, "memory": "141Gi", "computeCapability": "9.0"}
    kube.apply({"apiVersion": API, "kind": "GPUClass", "metadata": {"name": "h200"}, "spec": gpu_class})
    for namespace in ("windlass-system", "team-a"):
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    quota = {"gpus": [{"name": "h200", "nominal": 6}]}
    spec = {"namespaces": ["team-a"], "quota": quota, "allowedTiers": ["Realtime", "Standard"]}
    kube.apply({"apiVersion": API, "kind": "Tenant", "metadata": {"name": "a"}, "spec": spec})


@pytest.fixture
def operator(control_plane: ControlPlane, fleet: None, tmp_path: Path) -> Iterator[OperatorProcess]:
    with running_operator(control_plane, tmp_path / "operator.log") as process:
        yield process


@pytest.fixture
def clean(kube: KubeClient) -> Iterator[None]:
    """No service is left for the next test, whatever this one did."""
    yield
    for service in kube.list(API, "InferenceService"):
        kube.delete(API, "InferenceService", service["metadata"]["name"], service["metadata"]["namespace"])
    selector = "app.kubernetes.io/component=runtime"
    kinds = [*CHILD_KINDS, ("v1", "Pod")]
    eventually(lambda: [kube.list(*kind, "team-a", selector) for kind in kinds], lambda found: not any(found))


def service(name: str = "chat", **spec: Any) -> Manifest:
    model = {"uri": "hf://organisation/model"}
    metadata = {"name": name, "namespace": "team-a"}
    return {"apiVersion": API, "kind": "InferenceService", "metadata": metadata, "spec": {"model": model, **spec}}


def condition(kube: KubeClient, name: str, kind: str = "Ready") -> dict[str, Any]:
    found = kube.get(API, "InferenceService", name, "team-a") or {}
    conditions = found.get("status", {}).get("conditions", [])
    return next((item for item in conditions if item["type"] == kind), {})


def wait_ready(kube: KubeClient, name: str = "chat") -> Manifest:
    eventually(lambda: condition(kube, name), lambda found: found.get("status") == "True")
    found = kube.get(API, "InferenceService", name, "team-a")
    assert found is not None
    return found


def deployment(kube: KubeClient, name: str = "chat") -> Manifest:
    found = kube.get(APPS, "Deployment", name, "team-a")
    assert found is not None
    return found


def versions(kube: KubeClient) -> dict[str, str]:
    """resourceVersion of everything we own and of our own objects: moves with every write."""
    kinds = [*CHILD_KINDS, (API, "InferenceService"), (API, "Tenant"), (API, "GPUClass")]
    found = [item for api, kind in kinds for item in kube.list(api, kind, selector=OWNED if api != API else "")]
    assert len(found) > len(CHILD_KINDS), "the selector finds nothing, so nothing could ever change"
    return {item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in found}


@pytest.mark.usefixtures("operator", "clean")
def test_a_service_becomes_ready_on_nodes_that_carry_its_gpu(kube: KubeClient) -> None:
    kube.apply(service(accelerator={"classes": ["h200"]}, replicas=2))

    ready = wait_ready(kube)

    pods = kube.list("v1", "Pod", "team-a", "app.kubernetes.io/instance=chat")
    assert {pod["spec"]["nodeName"] for pod in pods} <= {"gpu-1", "gpu-2"}
    assert ready["status"]["replicas"] == 2
    assert ready["status"]["acceleratorClass"] == "h200"
    assert ready["status"]["observedGeneration"] == ready["metadata"]["generation"]
    assert "finalizers" not in ready["metadata"]
    assert "annotations" not in ready["metadata"]


@pytest.mark.usefixtures("operator", "clean")
def test_every_child_is_owned_by_its_service(kube: KubeClient) -> None:
    applied = kube.apply(service(scaling={"maxReplicas": 3}))
    wait_ready(kube)

    for api, kind in CHILD_KINDS:
        children = kube.list(api, kind, "team-a", f"{OWNED},app.kubernetes.io/instance=chat")
        assert children, kind
        for child in children:
            assert [owner["uid"] for owner in child["metadata"]["ownerReferences"]] == [applied["metadata"]["uid"]]


@pytest.mark.usefixtures("operator", "clean")
def test_edited_and_deleted_children_are_repaired_within_two_seconds(kube: KubeClient) -> None:
    kube.apply(service())
    wait_ready(kube)
    wanted = deployment(kube)["spec"]["template"]["spec"]["containers"][0]["args"]

    vandal = {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}}
    kube.merge(deployment(kube), vandal)
    kube.delete("v1", "Service", "chat", "team-a")

    eventually(lambda: kube.get("v1", "Service", "chat", "team-a"), bool, timeout_s=2)
    repaired = eventually(
        lambda: deployment(kube)["spec"]["template"]["spec"],
        lambda spec: spec["terminationGracePeriodSeconds"] == 75,
        timeout_s=2,
    )
    assert repaired["containers"][0]["args"] == wanted


@pytest.mark.usefixtures("operator", "clean")
def test_labels_and_annotations_of_others_survive(kube: KubeClient) -> None:
    kube.apply(service())
    wait_ready(kube)
    kube.merge(deployment(kube), {"metadata": {"annotations": {"example.com/note": "kept"}}})

    kube.apply(service(drain={"timeoutSeconds": 30}))

    changed = eventually(
        lambda: deployment(kube),
        lambda found: found["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 45,
    )
    assert changed["metadata"]["annotations"]["example.com/note"] == "kept"


@pytest.mark.usefixtures("operator", "clean")
def test_nothing_is_written_while_nothing_changes(kube: KubeClient) -> None:
    for index in range(5):
        kube.apply(service(f"idle-{index}"))
    for index in range(5):
        wait_ready(kube, f"idle-{index}")
    time.sleep(1)  # the last status may still be on its way; a write after this is one too many
    before = versions(kube)

    time.sleep(5)

    assert versions(kube) == before


@pytest.mark.usefixtures("operator", "clean")
def test_handing_the_replicas_to_an_autoscaler_never_lowers_them(kube: KubeClient) -> None:
    kube.apply(service(replicas=3))
    wait_ready(kube)

    kube.apply(service(scaling={"minReplicas": 2, "maxReplicas": 5}))
    seen = set()

    def autoscaler() -> Manifest | None:
        seen.add(deployment(kube)["spec"]["replicas"])
        return kube.get("autoscaling/v2", "HorizontalPodAutoscaler", "chat", "team-a")

    eventually(autoscaler, bool)
    kube.merge(deployment(kube), {"spec": {"replicas": 4}})  # what an autoscaler does
    kube.apply(service(scaling={"minReplicas": 2, "maxReplicas": 5}, drain={"timeoutSeconds": 30}))

    def grace() -> int:
        found = deployment(kube)["spec"]
        seen.add(found["replicas"])
        period: int = found["template"]["spec"]["terminationGracePeriodSeconds"]
        return period

    eventually(grace, lambda seconds: seconds == 45)
    assert seen <= {3, 4}
    assert deployment(kube)["spec"]["replicas"] == 4


@pytest.mark.usefixtures("operator", "clean")
def test_a_service_beyond_its_quota_says_so_with_numbers_and_runs_nothing(kube: KubeClient) -> None:
    kube.apply(service("big", accelerator={"classes": ["h200"]}, replicas=7, tier="Standard"))

    refused = eventually(lambda: condition(kube, "big", "Admitted"), lambda found: found.get("status") == "False")

    assert "7" in refused["message"]
    assert "6" in refused["message"]
    assert not kube.list("v1", "Pod", "team-a", "app.kubernetes.io/instance=big")


@pytest.mark.usefixtures("operator", "clean")
def test_the_scale_subresource_sets_the_number_of_replicas(kube: KubeClient) -> None:
    kube.apply(service())
    wait_ready(kube)

    kube.merge(service(), {"spec": {"replicas": 2}}, subresource="scale")

    eventually(lambda: deployment(kube)["status"].get("readyReplicas"), lambda ready: ready == 2)


@pytest.mark.usefixtures("clean")
def test_deletion_finishes_with_the_operator_stopped(kube: KubeClient, operator: OperatorProcess) -> None:
    kube.apply(service())
    wait_ready(kube)
    assert operator.stop() == 0

    kube.delete(API, "InferenceService", "chat", "team-a")

    def left() -> list[str]:
        return [
            f"{kind} {item['metadata']['name']}"
            for api, kind in [*CHILD_KINDS, (API, "InferenceService")]
            for item in kube.list(api, kind, "team-a", "app.kubernetes.io/instance=chat" if api != API else "")
        ]

    eventually(left, lambda found: not found)


@pytest.mark.usefixtures("clean")
def test_a_restarted_operator_changes_nothing(
    kube: KubeClient, operator: OperatorProcess, control_plane: ControlPlane, tmp_path: Path
) -> None:
    kube.apply(service(replicas=2))
    wait_ready(kube)
    time.sleep(1)
    before = versions(kube)
    operator.kill()

    with running_operator(control_plane, tmp_path / "second.log"):
        time.sleep(5)
        assert versions(kube) == before
