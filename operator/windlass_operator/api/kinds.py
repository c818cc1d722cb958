"""The kinds of the group: names, scope, columns, subresources.

Read by the generator, the loader and the reference docs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from windlass_operator.api.meta import ApiModel
from windlass_operator.api.v1alpha1.batch_inference import BatchInference
from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant

CATEGORY: Final = "windlass"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `kubectl get`."""

    name: str
    json_path: str
    description: str
    type: str = "string"
    wide: bool = False
    """Shown with `-o wide` only."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind as the API server and kubectl know it."""

    name: str
    plural: str
    model: type[ApiModel]
    short_names: tuple[str, ...]
    namespaced: bool
    columns: tuple[Column, ...]
    scalable: bool = False
    """Whether the scale subresource serves .spec.replicas."""
    example: str = ""
    """File below examples/ that shows it; the reference quotes it."""


def _condition(field: str) -> str:
    return f'.status.conditions[?(@.type=="Ready")].{field}'


READY: Final = Column("Ready", _condition("status"), "Whether the object does what its spec says.")
REASON: Final = Column("Reason", _condition("reason"), "Why it is ready or not, in one word.")
AGE: Final = Column("Age", ".metadata.creationTimestamp", "Time since creation.", type="date")

INFERENCE_SERVICE: Final = Kind(
    name="InferenceService",
    plural="inferenceservices",
    model=InferenceService,
    short_names=("infsvc",),  # isvc belongs to another project's kind of this name
    namespaced=True,
    scalable=True,
    example="quickstart/storyteller.yaml",
    columns=(
        READY,
        REASON,
        Column("Replicas", ".status.replicas", "Pods that exist.", type="integer"),
        Column("GPU", ".status.acceleratorClass", "GPUClass in use; empty on CPUs."),
        Column("URL", ".status.address.url", "Where clients reach it."),
        AGE,
        Column("Ready-Replicas", ".status.readyReplicas", "Pods that serve.", type="integer", wide=True),
        Column("Tier", ".spec.tier", "How urgent it is.", wide=True),
        Column("Precision", ".spec.precision.preset", "Number format asked for.", wide=True),
        Column("Rollout", ".status.rollout.state", "How far the newest rollout is.", wide=True),
        Column("Replaced", ".status.rollout.progress", "Pods it has replaced, of all.", wide=True),
        Column("Tenant", ".status.tenant", "Who owns the namespace.", wide=True),
        Column("Model", ".spec.model.uri", "Where the checkpoint lies.", wide=True),
    ),
)
TENANT: Final = Kind(
    name="Tenant",
    plural="tenants",
    model=Tenant,
    short_names=("wtenant",),
    namespaced=False,
    example="quickstart/tenant.yaml",
    columns=(
        READY,
        REASON,
        Column("Services", ".status.services", "InferenceServices in its namespaces.", type="integer"),
        Column("Isolation", ".spec.isolation", "Who may connect to its pods."),
        AGE,
        Column("Namespaces", ".spec.namespaces", "Namespaces it owns.", wide=True),
    ),
)
GPU_CLASS: Final = Kind(
    name="GPUClass",
    plural="gpuclasses",
    model=GPUClass,
    short_names=("gpuc",),
    namespaced=False,
    example="fleet/gpu-classes.yaml",
    columns=(
        READY,
        REASON,
        Column("Nodes", ".status.nodes", "Nodes that match.", type="integer"),
        Column("GPUs", ".status.gpus", "Devices on those nodes.", type="integer"),
        Column("Allocated", ".status.allocated", "Devices held by pods.", type="integer"),
        Column("Memory", ".spec.memory", "Memory of one device."),
        Column("Price", ".spec.pricePerHour", "Price of one device for an hour."),
        AGE,
        Column("Block", ".status.largestFreeBlock", "Most free devices on one node.", type="integer", wide=True),
        Column("Lost", ".status.fragmented", "Devices lost to fragmentation.", type="integer", wide=True),
        Column("Capability", ".spec.computeCapability", "CUDA compute capability.", wide=True),
        Column("Resource", ".spec.resourceName", "Extended resource it asks for.", wide=True),
        Column("MIG", ".spec.migProfile", "Slice it is.", wide=True),
    ),
)

BATCH_INFERENCE: Final = Kind(
    name="BatchInference",
    plural="batchinferences",
    model=BatchInference,
    short_names=("infbatch",),
    namespaced=True,
    example="batch/nightly.yaml",
    columns=(
        READY,
        REASON,
        Column("Phase", ".status.phase", "How far it is."),
        Column("Done", ".status.shardsDone", "Shards whose worker succeeded.", type="integer"),
        Column("Shards", ".spec.shards", "Parts of the batch.", type="integer"),
        Column("Workers", ".status.workers", "Pods that have not ended.", type="integer"),
        Column("GPU", ".status.acceleratorClass", "GPUClass in use; empty on CPUs."),
        AGE,
        Column("Failed", ".status.shardsFailed", "Shards that failed for good.", type="integer", wide=True),
        Column("Tier", ".spec.tier", "How urgent it is.", wide=True),
        Column("Tenant", ".status.tenant", "Who owns the namespace.", wide=True),
        Column("Job", ".status.job", "The Job that runs it.", wide=True),
        Column("Model", ".spec.model.uri", "Where the checkpoint lies.", wide=True),
    ),
)

KINDS: Final[tuple[Kind, ...]] = (INFERENCE_SERVICE, TENANT, GPU_CLASS, BATCH_INFERENCE)
KIND_BY_NAME: Final = {kind.name: kind for kind in KINDS}
