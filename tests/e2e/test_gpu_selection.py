"""Which device a replica gets: by need and price, by slice, and what a cluster cannot give is refused in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from support.kube_client import KubeClient, eventually
from support.services import APPS, OWNED, condition, deployment, find, pods, service, wait_ready

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator", "clean")]

RESOURCES = "resource.k8s.io/v1"
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
    accelerator = {"classes": ["shared-l4"], "sharing": "TimeSliced"}
    kube.apply(service(accelerator=accelerator, replicas=3))
    eventually(lambda: condition(kube, kind="Admitted"), lambda found: found.get("reason") == "CacheUnbounded")

    kube.apply(service(accelerator=accelerator, replicas=3, cache={"memory": "1Gi"}))

    wait_ready(kube)

    assert nodes_of(kube) == {"shared-1"}


def test_a_replica_of_several_devices_has_them_on_one_node(kube: KubeClient, grant: Callable[..., None]) -> None:
    """Two nodes have four H200 each."""
    grant(h200=8)
    kube.apply(service(accelerator={"classes": ["h200"], "count": 4}, replicas=2))

    wait_ready(kube)

    assert nodes_of(kube) == {"h200-1", "h200-2"}
    resources = deployment(kube)["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == "4"
    launch = kube.get("v1", "ConfigMap", "chat-launch", "team-a")
    assert launch is not None
    assert '"device_count": 4' in launch["data"]["launch-spec.json"]
    allocated = eventually(
        lambda: (kube.get("windlass.dev/v1alpha1", "GPUClass", "h200") or {})["status"],
        lambda status: status.get("allocated") == 8,
    )
    assert allocated["largestFreeBlock"] == 0


def test_free_devices_on_several_nodes_are_no_place_for_a_replica(kube: KubeClient) -> None:
    """Two replicas of one device lie on the two nodes, so six are free, and no node has four."""
    kube.apply(service("small", accelerator={"classes": ["h200"]}, replicas=2))
    wait_ready(kube, "small")
    assert nodes_of(kube, "small") == {"h200-1", "h200-2"}

    kube.apply(service(accelerator={"classes": ["h200"], "count": 4}))
    waits = eventually(lambda: condition(kube), lambda found: "Insufficient" in found.get("message", ""))

    assert "free 1 x h200 (1 on h200-1): each replica needs 4 on one node" in waits["message"]
    kube.apply(service("small", accelerator={"classes": ["h200"]}, replicas=1))
    wait_ready(kube, timeout_s=60)


@pytest.mark.parametrize(("promise", "state"), [(1, "Complete"), (2, "Blocked")])
def test_replicas_of_whole_nodes_roll_one_out_one_in_or_say_that_they_are_blocked(
    kube: KubeClient, grant: Callable[..., None], promise: int, state: str
) -> None:
    """Two replicas of four fill the two nodes."""
    grant(h200=12)
    spec = {"accelerator": {"classes": ["h200"], "count": 4}, "replicas": 2, "rollout": {"minAvailable": promise}}
    kube.apply(service(**spec))
    wait_ready(kube)

    kube.apply(service(**spec, limits={"maxRunningRequests": 8}))

    rolled = eventually(
        lambda: find(kube)["status"].get("rollout", {}), lambda found: found.get("state") == state, timeout_s=90
    )
    assert rolled["steps"][0]["action"] == ("OneOutOneIn" if promise == 1 else "Surge")


CLAIM = {"allocation": "ResourceClaim"}
B200 = "device.attributes['gpu.nvidia.com'].productName == 'NVIDIA-B200'"


def test_a_claim_of_several_devices_gets_them_on_one_node(kube: KubeClient, grant: Callable[..., None]) -> None:
    grant(a100=8)
    kube.apply(service(accelerator={**CLAIM, "classes": ["a100"], "count": 4}, replicas=2))

    wait_ready(kube)

    assert given(kube) == ["gpu on a100-1"] * 8
    assert nodes_of(kube) == {"a100-1"}
    held = eventually(
        lambda: (kube.get("windlass.dev/v1alpha1", "Tenant", "a") or {}).get("status", {}).get("gpus", []),
        lambda gpus: any(gpu["used"] == 8 for gpu in gpus),
    )
    assert [gpu["name"] for gpu in held if gpu["used"]] == ["a100"]


def claims_of(kube: KubeClient, name: str = "chat") -> list[dict[str, Any]]:
    return kube.list(RESOURCES, "ResourceClaim", "team-a", f"app.kubernetes.io/instance={name}")


def given(kube: KubeClient, name: str = "chat") -> list[str]:
    """What each claim of the service was given, as request and pool."""
    allocations = [claim["status"]["allocation"]["devices"]["results"] for claim in claims_of(kube, name)]
    return sorted(f"{result['request']} on {result['pool']}" for results in allocations for result in results)


def test_a_claim_brings_a_replica_to_a_node_whose_device_has_the_attributes(kube: KubeClient) -> None:
    kube.apply(service(accelerator={**CLAIM, "classes": ["a100"]}))

    wait_ready(kube)

    assert given(kube) == ["gpu on a100-1"]
    assert nodes_of(kube) == {"a100-1"}
    assert find(kube)["status"]["acceleratorClass"] == "a100"


@pytest.mark.parametrize(
    ("replicas", "action"),
    [pytest.param(1, "Surge", id="one of two is free"), pytest.param(2, "OneOutOneIn", id="both are claimed")],
)
def test_a_rollout_of_claims_surges_where_a_published_device_is_free(
    kube: KubeClient, replicas: int, action: str
) -> None:
    """No device plugin reports the two B200: what is free is known from ResourceSlices and allocated claims."""
    spec = {"accelerator": {**CLAIM, "classes": ["b200"]}, "replicas": replicas, "rollout": {"minAvailable": 1}}
    kube.apply(service(**spec))
    wait_ready(kube)

    kube.apply(service(**spec, limits={"maxRunningRequests": 8}))

    rolled = eventually(
        lambda: find(kube)["status"].get("rollout", {}), lambda found: found.get("state") == "Complete", timeout_s=90
    )
    assert {step["action"] for step in rolled["steps"]} == {action}


def test_devices_that_others_claim_are_not_free(kube: KubeClient) -> None:
    """A pod of somebody else claims one of the two B200."""
    exactly = {"deviceClassName": "gpu.nvidia.com", "selectors": [{"cel": {"expression": B200}}]}
    request = {"name": "gpu", "exactly": exactly}
    claim = {"apiVersion": RESOURCES, "kind": "ResourceClaim", "metadata": {"name": "theirs", "namespace": "default"}}
    container = {"name": "c", "image": "example.com/c:1", "resources": {"claims": [{"name": "gpu"}]}}
    body = {"containers": [container], "resourceClaims": [{"name": "gpu", "resourceClaimName": "theirs"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "theirs", "namespace": "default"}, "spec": body}
    try:
        kube.create({**claim, "spec": {"devices": {"requests": [request]}}})
        kube.create(pod)
        told = eventually(
            lambda: (kube.get("windlass.dev/v1alpha1", "GPUClass", "b200") or {}).get("status", {}),
            lambda status: status.get("largestFreeBlock") == 1,
        )
        assert (told["nodes"], told["gpus"]) == (1, 2)

        kube.apply(service(accelerator={**CLAIM, "classes": ["b200"]}, replicas=2))

        waits = eventually(lambda: condition(kube), lambda found: "cannot allocate" in found.get("message", ""))
        assert "free 1 x b200" in waits["message"]
    finally:
        kube.delete("v1", "Pod", "theirs", "default")
        kube.delete(RESOURCES, "ResourceClaim", "theirs", "default")
    wait_ready(kube, timeout_s=60)


def test_a_claim_falls_to_its_second_class_when_the_first_has_no_device_left(kube: KubeClient) -> None:
    """One spec, one pod template; the scheduler decides pod by pod. There are two B200."""
    kube.apply(service(accelerator={**CLAIM, "classes": ["b200", "a100"]}, replicas=4))

    wait_ready(kube)

    assert given(kube) == ["gpu/a100 on a100-1"] * 2 + ["gpu/b200 on b200-1"] * 2
    assert nodes_of(kube) == {"a100-1", "b200-1"}


def test_the_hard_quota_of_a_namespace_counts_claimed_devices_too(kube: KubeClient) -> None:
    counted = "gpu.nvidia.com.deviceclass.resource.k8s.io/devices"

    def quota() -> dict[str, Any]:
        found = kube.list("v1", "ResourceQuota", "team-a", OWNED)
        return next(item["status"] for item in found if counted in item.get("spec", {}).get("hard", {}))

    kube.apply(service(accelerator={**CLAIM, "classes": ["b200", "a100"]}, replicas=2))
    wait_ready(kube)

    found = eventually(quota, lambda status: status.get("used", {}).get(counted) == "2")
    assert found["hard"][counted] == "16", "six H200, four A100 and six B200 have this DeviceClass"


def test_another_claim_is_another_template_and_the_old_one_leaves_with_its_replica_set(kube: KubeClient) -> None:
    def templates() -> set[str]:
        found = kube.list(RESOURCES, "ResourceClaimTemplate", "team-a", "app.kubernetes.io/instance=chat")
        return {item["metadata"]["name"] for item in found}

    kube.apply(service(accelerator={**CLAIM, "classes": ["h200"]}))
    wait_ready(kube)
    (before,) = templates()

    kube.apply(service(accelerator={**CLAIM, "classes": ["a100"]}))
    wait_ready(kube)
    assert before in templates(), "a pod of the old revision that dies must find its template"

    for old in kube.list(APPS, "ReplicaSet", "team-a", "app.kubernetes.io/instance=chat"):
        if old["spec"]["replicas"] == 0:
            kube.delete(APPS, "ReplicaSet", old["metadata"]["name"], "team-a")
    eventually(templates, lambda found: before not in found and len(found) == 1)

    kube.apply(service(accelerator={"classes": ["a100"]}))
    wait_ready(kube)
    for old in kube.list(APPS, "ReplicaSet", "team-a", "app.kubernetes.io/instance=chat"):
        if old["spec"]["replicas"] == 0:
            kube.delete(APPS, "ReplicaSet", old["metadata"]["name"], "team-a")
    eventually(templates, lambda found: not found)


def test_a_claim_template_that_somebody_deletes_comes_back(kube: KubeClient) -> None:
    kube.apply(service(accelerator={**CLAIM, "classes": ["h200"]}))
    wait_ready(kube)
    (template,) = kube.list(RESOURCES, "ResourceClaimTemplate", "team-a", "app.kubernetes.io/instance=chat")
    name, uid = template["metadata"]["name"], template["metadata"]["uid"]

    kube.delete(RESOURCES, "ResourceClaimTemplate", name, "team-a")

    again = eventually(lambda: kube.get(RESOURCES, "ResourceClaimTemplate", name, "team-a"), bool)
    assert again["metadata"]["uid"] != uid
    assert again["spec"] == template["spec"]


SHAPE = {
    "layers": 32,
    "hiddenSize": 4096,
    "feedForwardSize": 14336,
    "queryHeads": 32,
    "keyValueHeads": 8,
    "headSize": 128,
    "vocabularySize": 128256,
    "maxPositions": 131072,
}
"""A model of 8 billion parameters."""
MODEL = {"uri": "hf://organisation/model", "shape": SHAPE}


def test_a_model_that_no_class_holds_is_refused_with_the_sum_and_a_way_out(kube: KubeClient) -> None:
    kube.apply(service(model=MODEL, accelerator={"classes": ["a100-slice"]}, limits={"maxSequenceTokens": 8192}))

    refused = eventually(
        lambda: condition(kube, kind="Admitted"), lambda found: found.get("reason") == "ModelDoesNotFit"
    )

    assert "weights 14.96 GiB (BF16) + key/value cache 1.25 GiB" in refused["message"]
    assert "= 16.37 GiB, of 10Gi" in refused["message"]
    assert refused["message"].endswith("Add a100 to spec.accelerator.classes.")


def test_a_service_steps_down_to_the_format_that_its_class_holds(kube: KubeClient) -> None:
    spec = {"model": MODEL, "accelerator": {"classes": ["a100-slice"]}, "limits": {"maxSequenceTokens": 4096}}
    kube.apply(service(**spec, precision={"alternatives": [{"preset": "INT8"}, {"preset": "INT4"}]}))

    wait_ready(kube)

    reduced = condition(kube, kind="PrecisionReduced")
    assert (reduced["status"], reduced["reason"]) == ("True", "SteppedDown")
    launch = kube.get("v1", "ConfigMap", "chat-launch", "team-a")
    assert launch is not None
    assert '"precision": "INT8"' in launch["data"]["launch-spec.json"]


def test_a_service_steps_down_where_the_larger_class_has_no_free_device(
    kube: KubeClient, grant: Callable[..., None]
) -> None:
    """Quota has room for a third L4, but the cluster has two, and both are taken."""
    grant(**{"edge-l4": 3, "a100-slice": 1})
    kube.apply(service("taker", accelerator={"classes": ["edge-l4"]}, replicas=2))
    wait_ready(kube, "taker")
    spec = {"model": MODEL, "limits": {"maxSequenceTokens": 4096}}

    kube.apply(
        service(
            **spec,
            accelerator={"classes": ["edge-l4", "a100-slice"]},
            precision={"alternatives": [{"preset": "INT8"}]},
        )
    )

    ready = wait_ready(kube)
    assert ready["status"]["acceleratorClass"] == "a100-slice"
    assert condition(kube, kind="PrecisionReduced")["reason"] == "SteppedDown"
    chosen = next(item for item in ready["status"]["decisions"] if item["topic"] == "accelerator")
    assert "not edge-l4" in chosen["reason"]
