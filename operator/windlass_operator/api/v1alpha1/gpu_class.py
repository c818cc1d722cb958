"""GPUClass: one kind of GPU, told by node labels. Cluster-scoped; services name classes instead of node details."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import ConfigDict, Field

from windlass_operator.api.meta import ApiModel, ByteQuantity, Conditions, Labels, ObjectMeta, Tolerations
from windlass_operator.api.patterns import COMPUTE_CAPABILITY, RESOURCE_NAME
from windlass_operator.api.rules import constrained, rule

NAME_IS_A_LABEL: Final = rule(
    "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 63",
    "a name of at most 63 lower-case letters, digits and dashes, because services and labels carry it",
    found="self.metadata.name",
)
RESOURCE_IS_A_DEVICE: Final = rule(
    "!self.matches('(^|[.])kubernetes[.]io/')", "the resource of a device plugin, outside kubernetes.io"
)


class GPUClassSpec(ApiModel):
    """Desired state."""

    node_selector: Annotated[
        Labels,
        Field(
            min_length=1,
            description="Labels of the nodes that carry this GPU, as NVIDIA GPU feature discovery sets them.",
        ),
    ]
    resource_name: Annotated[
        str,
        Field(
            max_length=128,
            pattern=RESOURCE_NAME,
            description="Extended resource to request; a MIG slice has its own, such as nvidia.com/mig-1g.18gb.",
            json_schema_extra=constrained(RESOURCE_IS_A_DEVICE),
        ),
    ] = "nvidia.com/gpu"
    memory: Annotated[
        ByteQuantity,
        Field(
            description="Memory of one GPU (or slice), such as 80Gi; cache sizes are checked against it.",
        ),
    ]
    compute_capability: Annotated[
        str,
        Field(
            min_length=3,
            max_length=5,
            pattern=COMPUTE_CAPABILITY,
            description="CUDA compute capability such as 9.0; Auto precision picks BF16 from 8.0 on.",
        ),
    ]
    tolerations: Annotated[
        Tolerations,
        Field(
            description="Taints of those nodes that pods of this class accept.",
        ),
    ] = Field(default_factory=list)


class GPUClassStatus(ApiModel):
    """Observed state."""

    observed_generation: Annotated[int, Field(description="metadata.generation this status was computed for.")] = 0
    conditions: Conditions = Field(default_factory=list)
    nodes: Annotated[int, Field(description="Nodes that match.")] = 0
    gpus: Annotated[int, Field(description="Devices on those nodes.")] = 0
    allocated: Annotated[int, Field(description="Devices held by pods.")] = 0


class GPUClass(ApiModel):
    """One kind of GPU, told by node labels. Platform teams write it; services name it."""

    model_config = ConfigDict(json_schema_extra=constrained(NAME_IS_A_LABEL))

    metadata: ObjectMeta
    spec: GPUClassSpec
    status: GPUClassStatus = GPUClassStatus()
