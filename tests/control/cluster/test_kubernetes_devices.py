"""ResourceSlices, DeviceClasses and allocations, through cache and trimming, as the planner reads them."""

from __future__ import annotations

from typing import Any

import pytest

from windlass_operator.cluster.kubernetes_cache import ObjectCache
from windlass_operator.cluster.kubernetes_devices import fold_allocation, fold_device_class, fold_slice
from windlass_operator.cluster.kubernetes_snapshot import SnapshotBuilder
from windlass_operator.cluster.kubernetes_trim import trim
from windlass_operator.domain.published import Device, DeviceId, DeviceSlice, Published
from windlass_operator.domain.snapshot import Key

DRIVER = "gpu.nvidia.com"
V1 = "resource.k8s.io/v1"


def build_slice(*devices: dict[str, Any], name: str = "n1-gpu", version: str = "1", **spec: Any) -> dict[str, Any]:
    body = {"driver": DRIVER, "nodeName": "n1", "pool": {"name": "n1", "generation": 2, "resourceSliceCount": 1}}
    metadata = {"name": name, "uid": name, "resourceVersion": version}
    return {
        "apiVersion": V1,
        "kind": "ResourceSlice",
        "metadata": metadata,
        "spec": {**body, "devices": devices} | spec,
    }


def build_claim(name: str = "chat-gpu", *devices: str, version: str = "1", ours: bool = False, **result: Any):
    labels = {"app.kubernetes.io/instance": "chat"}
    if ours:
        labels["app.kubernetes.io/managed-by"] = "windlass-operator"
    results = [{"request": "gpu", "driver": DRIVER, "pool": "n1", "device": device, **result} for device in devices]
    metadata = {"name": name, "namespace": "team-a", "uid": name, "resourceVersion": version, "labels": labels}
    status = {"allocation": {"devices": {"results": results}}} if results else {}
    return {"apiVersion": V1, "kind": "ResourceClaim", "metadata": metadata, "spec": {}, "status": status}


def read(manifest: dict[str, Any]) -> DeviceSlice:
    return fold_slice(trim(manifest))


def test_a_slice_tells_devices_with_attributes_by_domain() -> None:
    attributes = {
        "productName": {"string": "NVIDIA-H200"},
        "index": {"int": 3},
        "healthy": {"bool": True},
        "cudaComputeCapability": {"version": "9.0.0"},
        "pci.example.com/root": {"string": "pci0"},
    }
    found = read(build_slice({"name": "gpu-0", "attributes": attributes, "capacity": {"memory": {"value": "141Gi"}}}))

    assert (found.driver, found.pool, found.generation, found.parts) == (DRIVER, "n1", 2, 1)
    own = {"productName": "NVIDIA-H200", "index": 3, "healthy": True, "cudaComputeCapability": "9.0.0"}
    domains = {DRIVER: own, "pci.example.com": {"root": "pci0"}}
    assert found.devices == (Device("gpu-0", "n1", domains, {DRIVER: {"memory": 141 * 2**30}}),)


@pytest.mark.parametrize(
    ("device", "spec", "names"),
    [
        pytest.param({}, {}, ["gpu"], id="on the node of the slice"),
        pytest.param({"nodeName": "n7"}, {"nodeName": None}, ["gpu"], id="on a node of its own"),
        pytest.param({}, {"nodeName": None, "allNodes": True}, [], id="on no single node"),
        pytest.param({"taints": [{"key": "broken", "effect": "NoSchedule"}]}, {}, [], id="tainted"),
        pytest.param({"taints": [{"key": "note", "effect": "None"}]}, {}, ["gpu"], id="a taint that keeps nobody off"),
    ],
)
def test_devices_that_no_replica_could_have_are_left_out(device, spec, names) -> None:
    assert [one.name for one in read(build_slice({"name": "gpu", **device}, **spec)).devices] == names


def test_a_device_class_tells_its_selectors() -> None:
    spec = {"selectors": [{"cel": {"expression": "device.driver == 'x'"}}], "config": [{"opaque": {}}]}
    manifest = {"apiVersion": V1, "kind": "DeviceClass", "metadata": {"name": "gpu"}, "spec": spec}

    assert fold_device_class(trim(manifest)) == ("device.driver == 'x'",)
    assert fold_device_class(trim({**manifest, "spec": {}})) == ()


def test_an_administrator_looks_at_devices_and_takes_none() -> None:
    assert fold_allocation(trim(build_claim("a", "gpu-0"))) == (DeviceId(DRIVER, "n1", "gpu-0"),)
    assert fold_allocation(trim(build_claim("a", "gpu-0", adminAccess=True))) == ()
    assert fold_allocation(trim(build_claim("a"))) == ()


class Cluster:
    """A cache and what is built from it."""

    def __init__(self) -> None:
        self.cache = ObjectCache()
        self.builder = SnapshotBuilder(self.cache)

    def see(self, manifest: dict[str, Any], event: str = "MODIFIED") -> Key | None:
        return None if self.cache.absorb_event(event, manifest) is None else self.builder.touch_object(manifest)

    @property
    def published(self) -> Published:
        found = self.builder.build().published
        assert found is not None
        return found


def test_the_picture_follows_slices_and_claims_of_everybody() -> None:
    cluster = Cluster()

    woken = cluster.see(build_slice({"name": "gpu-0"}))
    foreign = cluster.see(build_claim("theirs", "gpu-0"))
    own = cluster.see(build_claim("ours", "gpu-1", ours=True))

    assert (woken, foreign) == (Key("ResourceSlice", "", "n1-gpu"), Key("ResourceClaim", "team-a", "theirs"))
    assert own == Key("InferenceService", "team-a", "chat")
    assert set(cluster.published.slices) == {"n1-gpu"}
    assert cluster.published.allocated == {
        ("team-a", "theirs"): (DeviceId(DRIVER, "n1", "gpu-0"),),
        ("team-a", "ours"): (DeviceId(DRIVER, "n1", "gpu-1"),),
    }
    before = cluster.published
    assert cluster.published is before

    cluster.see(build_claim("theirs", "gpu-0"), "DELETED")

    assert ("team-a", "theirs") not in cluster.published.allocated
    assert cluster.published.slices is before.slices


def test_a_foreign_claim_with_the_name_of_a_service_is_not_counted_as_its_own() -> None:
    """Helm writes the same instance label on whatever a release of that name holds."""
    cluster = Cluster()
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "chat",
            "namespace": "team-a",
            "resourceVersion": "1",
            "labels": {"app.kubernetes.io/instance": "chat", "app.kubernetes.io/managed-by": "windlass-operator"},
            "annotations": {"windlass.dev/owner": "InferenceService/team-a/chat"},
        },
        "spec": {"replicas": 1, "selector": {"matchLabels": {}}, "template": {"metadata": {}, "spec": {}}},
    }
    cluster.see(deployment)
    cluster.see(build_claim("theirs", "gpu-0"))
    cluster.see(build_claim("ours", "gpu-1", "gpu-2", ours=True))

    workload = cluster.builder.build().workloads[Key("InferenceService", "team-a", "chat")]

    assert sum(count for _, count in workload.claimed) == 2
