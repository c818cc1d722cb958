"""Which device a replica gets: by need and price, by slice, and what a cluster cannot give is refused in words."""

from __future__ import annotations

import pytest

from support.kube_client import KubeClient, eventually
from support.services import condition, deployment, find, pods, service, wait_ready

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator", "clean")]

IMAGE = {"uri": "oci://registry.example.com/models/chat:v1"}


def nodes_of(kube: KubeClient, name: str = "chat") -> set[str]:
    return {pod["spec"]["nodeName"] for pod in pods(kube, name)}


def test_an_image_model_is_refused_where_the_server_drops_image_volumes(kube: KubeClient, minor: str) -> None:
    if minor != "1.34":
        pytest.skip("servers of later minors keep image volumes")
    kube.apply(service(model=IMAGE))

    refused = eventually(
        lambda: condition(kube, kind="Admitted"), lambda found: found.get("reason") == "ModelSourceUnusable"
    )

    assert "feature gate ImageVolume off" in refused["message"]
    assert "v1.34" in refused["message"]
    assert pods(kube) == []


def test_an_image_model_is_mounted_where_the_server_keeps_image_volumes(kube: KubeClient, minor: str) -> None:
    if minor == "1.34":
        pytest.skip("the gate ImageVolume is off in this minor")
    kube.apply(service(model=IMAGE))

    wait_ready(kube)

    (pod,) = pods(kube)
    assert {"registry.example.com/models/chat:v1"} == {
        volume["image"]["reference"] for volume in pod["spec"]["volumes"] if "image" in volume
    }


def test_a_service_that_states_needs_runs_on_the_cheapest_class_that_meets_them(kube: KubeClient) -> None:
    kube.apply(service(accelerator={"requirements": {"memory": "20Gi", "computeCapability": "8.0"}}))

    ready = wait_ready(kube)

    assert ready["status"]["acceleratorClass"] == "edge-l4"
    assert nodes_of(kube) <= {"edge-1", "edge-2"}
    chosen = next(item for item in ready["status"]["decisions"] if item["topic"] == "accelerator")
    assert "0.60 per hour" in chosen["reason"]


def test_needs_that_no_class_meets_are_refused_with_the_figures(kube: KubeClient) -> None:
    kube.apply(service(accelerator={"requirements": {"memory": "500Gi"}}))

    refused = eventually(
        lambda: condition(kube, kind="Admitted"), lambda found: found.get("reason") == "RequirementsNotMet"
    )

    assert "h200: 141Gi of memory, needs 500Gi" in refused["message"]


def test_a_slice_is_used_only_by_services_that_accept_one(kube: KubeClient) -> None:
    accelerator = {"classes": ["a100-mig"]}
    kube.apply(service(accelerator=accelerator))
    eventually(lambda: condition(kube, kind="Admitted"), lambda found: found.get("reason") == "SharingNotAccepted")

    kube.apply(service(accelerator={**accelerator, "sharing": "MIG"}))
    wait_ready(kube)

    resources = deployment(kube)["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/mig-3g.40gb"] == "1"
    assert nodes_of(kube) == {"mig-1"}
    assert find(kube)["status"]["acceleratorClass"] == "a100-mig"


def test_time_slices_of_one_device_serve_several_replicas(kube: KubeClient) -> None:
    kube.apply(service(accelerator={"classes": ["shared-l4"], "sharing": "TimeSliced"}, replicas=3))

    wait_ready(kube)

    assert nodes_of(kube) == {"shared-1"}
