"""Objects for tests, with defaults for everything a test does not mention.

Builders take the fields that tests vary, by name; `spec` adds or replaces raw fields as a user would write them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from windlass_operator.api.v1alpha1.batch_inference import BatchInference
from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.batch_workers import batch_key
from windlass_operator.domain.snapshot import BatchRun, Key, Node, Snapshot, Workload

GPU_RESOURCE = "nvidia.com/gpu"
GPU_LABEL = "nvidia.com/gpu.product"


def build_service(
    name: str = "chat",
    namespace: str = "team-a",
    *,
    created: str = "2026-01-01T00:00:00Z",
    generation: int = 1,
    classes: Sequence[str] = (),
    replicas: int | None = None,
    uri: str = "file:///models/chat",
    **spec: Any,
) -> InferenceService:
    """An InferenceService on CPUs; with `classes`, on GPUs. `spec` keys are camelCase, as in YAML."""
    body: dict[str, Any] = {"model": {"uri": uri}, **spec}
    if classes:
        body["accelerator"] = {"classes": list(classes)}
    if replicas is not None:
        body["replicas"] = replicas
    return InferenceService.model_validate(
        {
            "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created, "generation": generation},
            "spec": body,
        }
    )


def build_batch(
    name: str = "nightly",
    namespace: str = "team-a",
    *,
    created: str = "2026-01-01T00:00:00Z",
    generation: int = 1,
    classes: Sequence[str] = (),
    status: Mapping[str, Any] | None = None,
    **spec: Any,
) -> BatchInference:
    """A BatchInference of 4 shards on 2 workers; with `classes`, on GPUs. `spec` keys are camelCase, as in YAML."""
    body: dict[str, Any] = {
        "model": {"uri": "pvc://models/chat"},
        "input": "pvc://batches/in/requests.jsonl",
        "results": "pvc://batches/out",
        "shards": 4,
        "parallelism": 2,
        **spec,
    }
    if classes:
        body["accelerator"] = {"classes": list(classes)}
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": created, "generation": generation}
    return BatchInference.model_validate({"metadata": metadata, "spec": body, "status": dict(status or {})})


def build_canary(name: str = "next", percent: int = 10, **fields: Any) -> dict[str, Any]:
    """An entry of spec.canaries; fields are camelCase, as in YAML."""
    return {"name": name, "trafficPercent": percent, **fields}


def build_tenant(
    name: str = "acme",
    namespaces: Sequence[str] = ("team-a",),
    *,
    created: str = "2026-01-01T00:00:00Z",
    gpus: Mapping[str, int] | None = None,
    quota: Mapping[str, Any] | None = None,
    generation: int = 1,
    **spec: Any,
) -> Tenant:
    """A Tenant with a quota of `gpus`, class to number."""
    listed = [{"name": gpu, "nominal": nominal} for gpu, nominal in (gpus or {}).items()]
    return Tenant.model_validate(
        {
            "metadata": {"name": name, "creationTimestamp": created, "generation": generation},
            "spec": {"namespaces": list(namespaces), "quota": {"gpus": listed, **(quota or {})}, **spec},
        }
    )


def build_gpu_class(name: str = "h200", *, memory: str = "141Gi", capability: str = "9.0", **spec: Any) -> GPUClass:
    """A GPUClass whose nodes `build_node(gpu=name)` makes."""
    return GPUClass.model_validate(
        {
            "metadata": {"name": name, "generation": 1},
            "spec": {"nodeSelector": {GPU_LABEL: name}, "memory": memory, "computeCapability": capability, **spec},
        }
    )


def build_node(
    name: str = "node-1",
    *,
    gpu: str = "h200",
    devices: int = 8,
    resource: str = GPU_RESOURCE,
    ready: bool = True,
    schedulable: bool = True,
) -> Node:
    """A node that carries `devices` GPUs of a class."""
    return Node(name, {GPU_LABEL: gpu}, {resource: devices}, ready=ready, schedulable=schedulable)


def build_workload(ready: int = 1, *, gpu_class: str = "", **fields: Any) -> Workload:
    """`ready` replicas of the newest revision, all in order; on a GPU class they hold one device each."""
    settled: dict[str, Any] = {
        "replicas": ready,
        "ready": ready,
        "updated": ready,
        "updated_ready": ready,
        "wanted": ready,
        "gpu_class": gpu_class,
        "devices": ready if gpu_class else 0,
        "autoscaler_judged": True,
    }
    return Workload(**{**settled, **fields})


def build_snapshot(
    *objects: InferenceService | Tenant | GPUClass | BatchInference,
    nodes: Sequence[Node] | None = (),
    workloads: Mapping[str, Workload] | None = None,
    batch_workloads: Mapping[str, Workload] | None = None,
    runs: Mapping[str, BatchRun] | None = None,
) -> Snapshot:
    """A world of these objects. `workloads` maps `namespace/name` to what runs; `nodes=None` leaves nodes unknown."""
    return Snapshot(
        services={service_key(item): item for item in objects if isinstance(item, InferenceService)},
        tenants={item.metadata.name: item for item in objects if isinstance(item, Tenant)},
        gpu_classes={item.metadata.name: item for item in objects if isinstance(item, GPUClass)},
        nodes=None if nodes is None else {node.name: node for node in nodes},
        workloads={
            **{Key("InferenceService", *name.split("/")): runs for name, runs in (workloads or {}).items()},
            **{Key("BatchInference", *name.split("/")): runs for name, runs in (batch_workloads or {}).items()},
        },
        batches={batch_key(item): item for item in objects if isinstance(item, BatchInference)},
        runs={Key("BatchInference", *name.split("/")): run for name, run in (runs or {}).items()},
    )


def service_key(service: InferenceService) -> Key:
    """Identity of a service."""
    return Key("InferenceService", service.metadata.namespace, service.metadata.name)
