"""A trial of placement on a real scheduler: single-GPU replicas first, then work that needs whole nodes.

Pods are those that a service of a GPUClass gets, made without an operator, so that nothing but the pod template and the
scheduler decides where they go.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from support.builders import build_gpu_class, build_service, build_snapshot
from support.fake_fleet import FakeNode, add_node, gpu_labels
from support.kube_client import KubeClient, eventually
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.fragmentation import Fragmentation, measure_fragmentation
from windlass_operator.domain.plan import plan_service
from windlass_operator.render.pod import render_pod_template

NAMESPACE = "packing"
PRODUCT = "TRIAL-GPU"
SELECTOR = f"windlass.dev/trial={NAMESPACE}"


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one trial."""

    nodes_in_use: int
    """By single-GPU replicas, before the whole-node pods came."""
    fragmentation: Fragmentation
    whole_asked: int
    whole_placed: int


def run_trial(kube: KubeClient, placement: str, *, nodes: int, devices: int, replicas: int) -> Trial:
    """Place `replicas` services of one GPU each on fresh nodes, then ask for every node once as a whole."""
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    eventually(lambda: kube.get("v1", "ServiceAccount", "default", NAMESPACE), bool)
    # Never the names of an earlier trial: a scheduler remembers a node until the last of its pods is gone.
    names = [f"{placement.lower()}-{index}" for index in range(nodes)]
    labels = gpu_labels(PRODUCT, 81920, "9.0", devices)
    for index, name in enumerate(names):
        add_node(kube, FakeNode(name, f"zone-{index % 2}", labels, {"nvidia.com/gpu": devices}))
    try:
        _wait_known(kube, names, devices)
        for pod in _replicas(placement, replicas):
            kube.create(pod)
            _wait_judged(kube)  # services come one by one, not in a burst
        used = _used(kube)
        for index in range(nodes):
            kube.create(_whole_node_pod(f"whole-{index}", devices, {}))
        _wait_judged(kube)
        capacity = dict.fromkeys(names, devices)
        return Trial(len(used), measure_fragmentation(capacity, used), nodes, _count_whole(kube))
    finally:
        for pod in _pods(kube):
            kube.delete("v1", "Pod", pod["metadata"]["name"], NAMESPACE)
        eventually(lambda: _pods(kube), lambda found: not found)
        for name in names:
            kube.delete("v1", "Node", name)


def _wait_known(kube: KubeClient, names: list[str], devices: int) -> None:
    """Wait until the scheduler itself uses every node.

    A node is there, and even Ready, before the scheduler has heard of its devices or of the taint that left it; pods
    that come before are refused, or crowd on the nodes that it knows. A pod that only one node can take tells. Its
    departure reaches the scheduler by the same watch as the pods that come next, so in their order.
    """
    probes = [_whole_node_pod(f"probe-{name}", devices, {"kubernetes.io/hostname": name}) for name in names]
    for probe in probes:
        kube.create(probe)
    eventually(lambda: _pods(kube), lambda pods: all(_node_of(pod) for pod in pods), timeout_s=60)
    for probe in probes:
        kube.delete("v1", "Pod", probe["metadata"]["name"], NAMESPACE)
    eventually(lambda: _pods(kube), lambda found: not found)


def _replicas(placement: str, count: int) -> Iterator[dict[str, Any]]:
    gpu_class = build_gpu_class("trial", nodeSelector={"nvidia.com/gpu.product": PRODUCT}, placement=placement)
    for index in range(count):
        service = build_service(f"single-{index}", NAMESPACE, classes=["trial"])
        settings = FleetSettings()
        template = render_pod_template(plan_service(service, build_snapshot(service, gpu_class), settings), settings)
        yield _pod(f"single-{index}", template["spec"], template["metadata"]["labels"])


def _whole_node_pod(name: str, devices: int, where: dict[str, str]) -> dict[str, Any]:
    resources = {"limits": {"nvidia.com/gpu": str(devices)}, "requests": {"nvidia.com/gpu": str(devices)}}
    spec = {
        "nodeSelector": {"nvidia.com/gpu.product": PRODUCT, **where},
        "containers": [{"name": "training", "image": "example.com/training:1", "resources": resources}],
    }
    return _pod(name, spec, {})


def _pod(name: str, spec: dict[str, Any], labels: dict[str, str]) -> dict[str, Any]:
    kept = {key: value for key, value in spec.items() if key not in ("serviceAccountName", "priorityClassName")}
    key, _, value = SELECTOR.partition("=")
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {**labels, key: value}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": kept}


def _pods(kube: KubeClient) -> list[dict[str, Any]]:
    return kube.list("v1", "Pod", NAMESPACE, SELECTOR)


def _count_whole(kube: KubeClient) -> int:
    return sum(1 for pod in _pods(kube) if pod["metadata"]["name"].startswith("whole-") and _node_of(pod))


def _node_of(pod: dict[str, Any]) -> str:
    return str(pod["spec"].get("nodeName", ""))


def _wait_judged(kube: KubeClient) -> None:
    """Wait until the scheduler has said yes or no to every pod."""
    eventually(lambda: _pods(kube), lambda pods: all(_is_judged(pod) for pod in pods), timeout_s=60)


def _is_judged(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    return bool(_node_of(pod)) or any(item["type"] == "PodScheduled" for item in conditions)


def _used(kube: KubeClient) -> dict[str, int]:
    nodes = sorted(_node_of(pod) for pod in _pods(kube) if _node_of(pod))
    return {name: len(list(pods)) for name, pods in itertools.groupby(nodes)}
