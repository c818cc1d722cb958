"""GPUClass: one kind of GPU, told by node labels. Cluster-scoped; services name classes instead of node details."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from windlass_operator.api.meta import ApiModel, Condition, Labels, ObjectMeta, Quantity, Toleration


class GPUClassSpec(ApiModel):
    """Desired state."""

    node_selector: Annotated[Labels, Field(
        min_length=1, description="Labels of the nodes that carry this GPU, as NVIDIA GPU feature discovery sets them.",
    )]
    resource_name: Annotated[str, Field(
        max_length=128, pattern=r"^[a-z0-9.-]+/[a-z0-9.-]+$",
        description="Extended resource to request; a MIG slice has its own, such as nvidia.com/mig-1g.18gb.",
    )] = "nvidia.com/gpu"
    memory: Annotated[Quantity, Field(description="Memory of one GPU (or slice); cache sizes are checked against it.")]
    compute_capability: Annotated[str, Field(
        min_length=3, max_length=5, pattern=r"^[0-9]{1,2}\.[0-9]$", description="Such as 9.0; Auto precision picks BF16 from 8.0 on.",
    )]
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field(default_factory=list)


class GPUClassStatus(ApiModel):
    """Observed state."""

    observed_generation: int = 0
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(default_factory=list)
    nodes: int = 0
    gpus: int = 0
    allocated: int = 0


class GPUClass(ApiModel):
    """One kind of GPU."""

    metadata: ObjectMeta
    spec: GPUClassSpec
    status: GPUClassStatus = GPUClassStatus()
