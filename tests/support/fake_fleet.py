"""A fake GPU fleet for end-to-end tests: nodes of several models and zones, MIG slices, an edge pool, DRA devices.

kwok plays the kubelets of these nodes. Labels are those of NVIDIA's GPU feature discovery.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from support.kube_client import KubeClient, Manifest, eventually

API = "windlass.dev/v1alpha1"
RESOURCE_API = "resource.k8s.io/v1"
DRIVER = "gpu.nvidia.com"
FAKE = {"windlass.dev/fake-node": "true"}
PLAIN_RESOURCES = {"cpu": "64", "memory": "512Gi", "pods": "250", "ephemeral-storage": "4Ti"}


@dataclass(frozen=True, slots=True)
class FakeNode:
    """One node. `devices` are extended resources as a device plugin would publish them."""

    name: str
    zone: str
    labels: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, int] = field(default_factory=dict)
    dra_devices: int = 0
    taints: tuple[Mapping[str, str], ...] = ()


def gpu_labels(product: str, memory_mib: int, capability: str, count: int) -> dict[str, str]:
    """What GPU feature discovery writes on a node."""
    major, _, minor = capability.partition(".")
    return {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.memory": str(memory_mib),
        "nvidia.com/gpu.count": str(count),
        "nvidia.com/gpu.compute.major": major,
        "nvidia.com/gpu.compute.minor": minor,
    }


GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
H200 = gpu_labels("NVIDIA-H200", 143771, "9.0", 4)
A100 = gpu_labels("NVIDIA-A100-SXM4-80GB", 81920, "8.0", 8)
L4 = gpu_labels("NVIDIA-L4", 23034, "8.9", 1) | {"windlass.dev/pool": "edge"}
MIG = gpu_labels("NVIDIA-A100-SXM4-80GB-MIG", 81920, "8.0", 1) | {"nvidia.com/mig.strategy": "mixed"}
B200 = gpu_labels("NVIDIA-B200", 183359, "10.0", 2)
SHARED_L4 = gpu_labels("NVIDIA-L4-SHARED", 23034, "8.9", 1) | {"nvidia.com/gpu.replicas": "4"}
SLICES = {"nvidia.com/mig-1g.10gb": 4, "nvidia.com/mig-3g.40gb": 1}

NODES = (
    FakeNode("h200-1", "zone-a", H200, {"nvidia.com/gpu": 4}, dra_devices=4),
    FakeNode("h200-2", "zone-b", H200, {"nvidia.com/gpu": 4}, dra_devices=4),
    FakeNode("a100-1", "zone-a", A100, {"nvidia.com/gpu": 8}, dra_devices=8, taints=(GPU_TAINT,)),
    FakeNode("mig-1", "zone-b", MIG, SLICES),
    FakeNode("edge-1", "zone-edge", L4, {"nvidia.com/gpu": 1}),
    FakeNode("edge-2", "zone-edge", L4, {"nvidia.com/gpu": 1}),
    FakeNode("b200-1", "zone-b", B200, dra_devices=2),
    FakeNode("shared-1", "zone-a", SHARED_L4, {"nvidia.com/gpu": 4}),
    FakeNode("plain-1", "zone-a"),
    FakeNode("plain-2", "zone-b"),
)

CLASSES: Mapping[str, Manifest] = {
    "h200": {
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H200"},
        "memory": "141Gi",
        "computeCapability": "9.0",
        "interconnect": "NVSwitch",
        "pricePerHour": "4.10",
        "deviceClassName": DRIVER,
        "deviceSelectors": [f"device.attributes['{DRIVER}'].productName == 'NVIDIA-H200'"],
    },
    "a100": {
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
        "memory": "80Gi",
        "computeCapability": "8.0",
        "pricePerHour": "1.90",
        "deviceClassName": DRIVER,
        "deviceSelectors": [
            f"device.attributes['{DRIVER}'].productName.startsWith('NVIDIA-A100')",
            f"device.capacity['{DRIVER}'].memory.compareTo(quantity('40Gi')) > 0",
        ],
    },
    "a100-slice": {
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-MIG"},
        "memory": "10Gi",
        "computeCapability": "8.0",
        "resourceName": "nvidia.com/mig-1g.10gb",
    },
    "edge-l4": {
        "nodeSelector": {"windlass.dev/pool": "edge"},
        "memory": "24Gi",
        "computeCapability": "8.9",
        "pricePerHour": "0.60",
    },
    "b200": {
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-B200"},
        "memory": "179Gi",
        "computeCapability": "10.0",
        "deviceClassName": DRIVER,
        "deviceSelectors": [f"device.attributes['{DRIVER}'].cudaComputeCapability.major() == 10"],
    },
    "a100-mig": {
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-MIG"},
        "memory": "40Gi",
        "computeCapability": "8.0",
        "migProfile": "3g.40gb",
    },
    "shared-l4": {
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4-SHARED"},
        "memory": "24Gi",
        "computeCapability": "8.9",
        "sharing": {"timeSlicedReplicas": 4},
    },
}


def render_node(node: FakeNode) -> Manifest:
    """The Node object without its status."""
    labels = {**FAKE, "kubernetes.io/hostname": node.name, "topology.kubernetes.io/zone": node.zone, **node.labels}
    manifest: Manifest = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name, "labels": labels}}
    if node.taints:
        manifest["spec"] = {"taints": [dict(taint) for taint in node.taints]}
    return manifest


def render_resource_slice(node: FakeNode) -> Manifest:
    """The node's devices as its DRA driver would publish them."""
    labels = node.labels
    attributes = {
        "productName": {"string": labels["nvidia.com/gpu.product"]},
        "cudaComputeCapability": {
            "version": f"{labels['nvidia.com/gpu.compute.major']}.{labels['nvidia.com/gpu.compute.minor']}.0"
        },
    }
    capacity = {"memory": {"value": f"{labels['nvidia.com/gpu.memory']}Mi"}}
    devices = [
        {"name": f"gpu-{index}", "attributes": attributes, "capacity": capacity} for index in range(node.dra_devices)
    ]
    pool = {"name": node.name, "generation": 1, "resourceSliceCount": 1}
    return {
        "apiVersion": RESOURCE_API,
        "kind": "ResourceSlice",
        "metadata": {"name": f"{node.name}-{DRIVER}"},
        "spec": {"driver": DRIVER, "nodeName": node.name, "pool": pool, "devices": devices},
    }


def create_fleet(kube: KubeClient) -> None:
    """Nodes, their devices, a DeviceClass and our GPUClasses; returns once every node is ready."""
    for node in NODES:
        add_node(kube, node)
    selector = {"cel": {"expression": f"device.driver == '{DRIVER}'"}}
    device_class: Manifest = {"apiVersion": RESOURCE_API, "kind": "DeviceClass", "metadata": {"name": DRIVER}}
    kube.apply(device_class | {"spec": {"selectors": [selector]}})
    for name, spec in CLASSES.items():
        kube.apply({"apiVersion": API, "kind": "GPUClass", "metadata": {"name": name}, "spec": spec})
    for node in NODES:
        eventually(lambda node=node: _is_ready(kube, node.name), bool)
    # Pods are refused until the controller manager has made their namespace's account.
    eventually(lambda: kube.get("v1", "ServiceAccount", "default", "default"), bool)


def add_node(kube: KubeClient, node: FakeNode) -> None:
    """One more node, with its devices."""
    manifest = render_node(node)
    kube.apply(manifest)
    resources = PLAIN_RESOURCES | {name: str(count) for name, count in node.devices.items()}
    kube.merge(manifest, {"status": {"capacity": resources, "allocatable": resources}}, subresource="status")
    if node.dra_devices:
        kube.apply(render_resource_slice(node))


def remove_fleet(kube: KubeClient) -> None:
    """Take everything away that `create_fleet` made: on a cluster of somebody else nothing stays behind."""
    for node in kube.list("v1", "Node", selector="windlass.dev/fake-node=true"):
        kube.delete(RESOURCE_API, "ResourceSlice", f"{node['metadata']['name']}-{DRIVER}")
        kube.delete("v1", "Node", node["metadata"]["name"])
    kube.delete(RESOURCE_API, "DeviceClass", DRIVER)
    for name in CLASSES:
        kube.delete(API, "GPUClass", name)


def _is_ready(kube: KubeClient, name: str) -> bool:
    node: dict[str, Any] = kube.get("v1", "Node", name) or {}
    conditions = node.get("status", {}).get("conditions", [])
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
