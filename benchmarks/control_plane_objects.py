"""The objects of the control-plane benchmark: a fleet of fake nodes and tenants, and the burst in three forms. Pure.

The burst is the same demand each time: one pod per service, three of ten with a GPU. As InferenceServices the operator
makes the children; as RayClusters KubeRay does (an account, a role and its binding, a Service and a head pod, which is
what its in-tree autoscaler asks for); as plain children nobody has to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain import labels
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_services, plan_tenant
from windlass_operator.domain.snapshot import snapshot_of
from windlass_operator.render.fleet import render_fleet
from windlass_operator.render.tenant import render_tenant
from windlass_operator.render.workload import render_service

Manifest = dict[str, Any]

API = "windlass.dev/v1alpha1"
TENANTS = 20
NEIGHBOUR = "team-next-door"
"""A tenant that takes no part in the burst and wants one service now and then."""
GPU_SHARE = 3
"""Of ten services, how many need a GPU."""
GPU_NODE = {"nvidia.com/gpu.product": "NVIDIA-H200"}
FAKE_NODE = {"windlass.dev/fake-node": "true"}
PODS_PER_NODE = 110
GPUS_PER_NODE = 8
FLEET = FleetSettings()


def nodes(services: int) -> Iterator[Manifest]:
    """GPU nodes and plain nodes with room for every service twice, so that no rollout waits for room."""
    gpu_nodes = -(-services * GPU_SHARE * 2 // (10 * GPUS_PER_NODE)) + 1
    plain_nodes = -(-services * 2 // PODS_PER_NODE)
    for index in range(gpu_nodes + plain_nodes):
        on_gpu = index < gpu_nodes
        name = f"{'gpu' if on_gpu else 'plain'}-{index:03d}"
        room = {"cpu": "256", "memory": "2Ti", "pods": str(PODS_PER_NODE), "ephemeral-storage": "10Ti"}
        if on_gpu:
            room["nvidia.com/gpu"] = str(GPUS_PER_NODE)
        own = {"kubernetes.io/hostname": name, **FAKE_NODE, **(GPU_NODE if on_gpu else {})}
        yield {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": own},
            "status": {"capacity": room, "allocatable": room},
        }


def namespace_of(index: int) -> str:
    """Namespace of the index-th service or tenant."""
    return f"team-{index % TENANTS:02d}"


def namespaces() -> Iterator[Manifest]:
    """Namespaces of the tenants and of the operators."""
    for name in ("windlass-system", "kuberay-system", NEIGHBOUR, *(namespace_of(index) for index in range(TENANTS))):
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def gpu_class() -> Manifest:
    """The one GPUClass."""
    spec = {"nodeSelector": GPU_NODE, "memory": "141Gi", "computeCapability": "9.0"}
    return {"apiVersion": API, "kind": "GPUClass", "metadata": {"name": "h200"}, "spec": spec}


def tenants(services: int) -> Iterator[Manifest]:
    """Tenants whose quota has room for everything, with one editor each."""
    for name in (NEIGHBOUR, *(namespace_of(index) for index in range(TENANTS))):
        spec = {
            "namespaces": [name],
            "quota": {"gpus": [{"name": "h200", "nominal": 2 * services}]},
            "subjects": [{"kind": "Group", "name": name}],
        }
        yield {"apiVersion": API, "kind": "Tenant", "metadata": {"name": name}, "spec": spec}


def needs_gpu(index: int) -> bool:
    """Whether the index-th service needs one; spread evenly within each tenant and within any twenty in a row."""
    return (index // TENANTS + index) % 10 < GPU_SHARE


def service_name(index: int) -> str:
    """Name of the index-th service; of fixed width, so that no name is the beginning of another."""
    return f"chat-{index:05d}"


def inference_service(index: int, replicas: int = 1) -> Manifest:
    """The index-th service."""
    spec: Manifest = {"model": {"uri": "hf://organisation/model"}, "replicas": replicas}
    if needs_gpu(index):
        spec["accelerator"] = {"classes": ["h200"]}
    metadata = {"name": service_name(index), "namespace": namespace_of(index)}
    return {"apiVersion": API, "kind": "InferenceService", "metadata": metadata, "spec": spec}


def for_neighbour(manifest: Manifest, number: int) -> Manifest:
    """The same object, as the neighbour's."""
    return {**manifest, "metadata": {"name": f"single-{number:05d}", "namespace": NEIGHBOUR}}


def ray_cluster(index: int) -> Manifest:
    """A RayCluster of one head pod, with the in-tree autoscaler and a worker group that starts empty."""
    resources: Manifest = {"requests": {"cpu": "1"}}
    if needs_gpu(index):
        resources = {"requests": {"cpu": "1", "nvidia.com/gpu": "1"}, "limits": {"nvidia.com/gpu": "1"}}
    image = "rayproject/ray:2.46.0"
    head = {"containers": [{"name": "ray-head", "image": image, "resources": resources}]}
    worker = {"containers": [{"name": "ray-worker", "image": image}]}
    group = {"groupName": "workers", "replicas": 0, "minReplicas": 0, "maxReplicas": 4, "rayStartParams": {}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": service_name(index), "namespace": namespace_of(index)},
        "spec": {
            "rayVersion": "2.46.0",
            "enableInTreeAutoscaling": True,
            "headGroupSpec": {"rayStartParams": {}, "template": {"spec": head}},
            "workerGroupSpecs": [{**group, "template": {"spec": worker}}],
        },
    }


def tenant_children(services: int) -> list[Manifest]:
    """What the operator makes of the tenants, for the runs without it: priority classes, quotas, roles, policies."""
    snapshot = _snapshot(services, 0)
    rendered = [render_tenant(plan_tenant(tenant, snapshot, FLEET), FLEET) for tenant in snapshot.tenants.values()]
    rendered.insert(0, tuple(render_fleet(FLEET)))
    return [child for children in rendered for child in children if child["kind"] != "Namespace"]


def service_children(services: int, count: int) -> list[tuple[Manifest, ...]]:
    """Per service, what the operator makes of it, in its order and with its owner label."""
    plans = {plan.key.name: plan for plan in plan_services(_snapshot(services, count), FLEET)}
    return [render_service(plans[service_name(index)], FLEET) for index in range(count)]


def _snapshot(services: int, count: int) -> Any:
    created = {"creationTimestamp": "2026-01-01T00:00:00Z"}
    return snapshot_of(
        [InferenceService.model_validate(inference_service(index)) for index in range(count)],
        [
            Tenant.model_validate({**tenant, "metadata": {**tenant["metadata"], **created}})
            for tenant in tenants(services)
        ],
        [GPUClass.model_validate(gpu_class())],
    )


OWNED = f"{labels.MANAGED_BY}={labels.MANAGER}"
"""Selector of everything the operator makes."""
