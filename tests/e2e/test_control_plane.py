"""The control plane of these tests is real: authorisation, tokens, aggregation, scheduling, devices."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.control_plane import ControlPlane
from support.fake_fleet import DRIVER, RESOURCE_API
from support.kube_client import KubeClient, Manifest, RefusedError, eventually
from support.metrics_api import MetricsApi, serving_metrics
from support.tokens import request_token
from support.tools import Toolset

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("fleet")]

Run = Callable[..., str]


def pod(name: str, **spec: object) -> Manifest:
    body = {"containers": [{"name": "c", "image": "none"}], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": body}


def place(kube: KubeClient, manifest: Manifest) -> str:
    """Create a pod, wait until it is Ready, remove it; returns its node."""
    kube.create(manifest)
    name = manifest["metadata"]["name"]

    def phase() -> str | None:
        return (kube.get("v1", "Pod", name, "default") or {}).get("status", {}).get("phase")

    try:
        eventually(phase, lambda found: found == "Running")
        found = kube.get("v1", "Pod", name, "default")
        assert found is not None
        node: str = found["spec"]["nodeName"]
        return node
    finally:
        kube.delete("v1", "Pod", name, "default")


@pytest.mark.own_plane
def test_the_servers_are_of_the_minor_that_this_run_is_named_after(
    kube: KubeClient, kubectl: Run, tools: Toolset, minor: str
) -> None:
    assert kube.request("GET", "/version")["gitVersion"].startswith(f"v{minor}.")
    assert f"v{minor}." in kubectl("version", "--client")
    for name in ("kube-controller-manager", "kube-scheduler"):
        shown = subprocess.run([tools.require(name), "--version"], capture_output=True, text=True, check=True)
        assert f"v{minor}." in shown.stdout


def test_a_service_account_is_who_its_token_says_and_may_do_nothing_by_itself(
    control_plane: ControlPlane, kube: KubeClient
) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody", "namespace": "default"}}
    kube.apply(account)
    client = KubeClient(control_plane.access(request_token(kube, "default", "nobody")))

    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = client.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review)

    assert answer["status"]["userInfo"]["username"] == "system:serviceaccount:default:nobody"
    with pytest.raises(RefusedError) as caught:
        client.list("v1", "Pod", "default")
    assert caught.value.code == 403


def test_an_aggregated_api_is_called_in_the_name_of_the_caller(kube: KubeClient, tmp_path: Path) -> None:
    api = MetricsApi(lambda namespace, selector: ["pod-1"], {"queue": "7"})

    with serving_metrics(kube, tmp_path, api):
        answer = kube.request("GET", "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/pods/*/queue")

    assert [item["value"] for item in answer["items"]] == ["7"]
    assert "admin" in api.users


def test_the_scheduler_puts_a_pod_where_its_slice_of_a_gpu_is(kube: KubeClient) -> None:
    resources = {"limits": {"nvidia.com/mig-3g.40gb": "1"}}

    assert place(kube, pod("slice", containers=[{"name": "c", "image": "none", "resources": resources}])) == "mig-1"


def test_the_scheduler_allocates_a_device_from_a_resource_slice(kube: KubeClient) -> None:
    selector = f"device.capacity['{DRIVER}'].memory.compareTo(quantity('100Gi')) > 0"
    exactly = {"deviceClassName": DRIVER, "selectors": [{"cel": {"expression": selector}}]}
    template: Manifest = {
        "apiVersion": RESOURCE_API,
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": "one-big-gpu", "namespace": "default"},
        "spec": {"spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}},
    }
    kube.create(template)
    claim = {"name": "gpu", "resourceClaimTemplateName": "one-big-gpu"}
    containers = [{"name": "c", "image": "none", "resources": {"claims": [{"name": "gpu"}]}}]
    try:
        node = place(kube, pod("claimant", containers=containers, resourceClaims=[claim]))
    finally:
        kube.delete(RESOURCE_API, "ResourceClaimTemplate", "one-big-gpu", "default")

    assert node in ("h200-1", "h200-2", "b200-1")


def test_the_scheduler_keeps_pods_without_a_toleration_off_tainted_gpu_nodes(kube: KubeClient) -> None:
    kube.create(pod("stranger", nodeSelector={"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}))
    try:

        def reason() -> str:
            conditions = (kube.get("v1", "Pod", "stranger", "default") or {}).get("status", {}).get("conditions", [])
            return next((item["message"] for item in conditions if item["type"] == "PodScheduled"), "")

        assert "untolerated taint" in eventually(reason, bool)
    finally:
        kube.delete("v1", "Pod", "stranger", "default")
