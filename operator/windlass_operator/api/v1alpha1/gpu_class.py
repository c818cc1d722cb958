"""GPUClass: one kind of GPU, told by node labels. Cluster-scoped; services name classes instead of node details."""

from __future__ import annotations

import enum
from typing import Annotated, Final

from pydantic import ConfigDict, Field

from windlass_operator.api.meta import ApiModel, ByteQuantity, Conditions, Labels, ObjectMeta, Tolerations
from windlass_operator.api.patterns import COMPUTE_CAPABILITY, DEVICE_CLASS, MIG_PROFILE, PRICE, RESOURCE_NAME
from windlass_operator.api.rules import constrained, rule
from windlass_operator.api.v1alpha1.power import Power

NAME_IS_A_LABEL: Final = rule(
    "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 63",
    "a name of at most 63 lower-case letters, digits and dashes, because services and labels carry it",
    found="self.metadata.name",
)
RESOURCE_IS_A_DEVICE: Final = rule(
    "!self.matches('(^|[.])kubernetes[.]io/')", "the resource of a device plugin, outside kubernetes.io"
)
SELECTORS_NEED_A_DEVICE_CLASS: Final = rule(
    "!has(self.deviceSelectors) || self.deviceSelectors.size() == 0 || has(self.deviceClassName)",
    "deviceSelectors together with deviceClassName, whose devices they narrow",
    found="'no deviceClassName'",
    field=".deviceSelectors",
)
SLICES_ARE_NOT_SHARED: Final = rule(
    "!(has(self.migProfile) && has(self.sharing))",
    "either migProfile or sharing: slices are told apart in hardware, time slices are not",
    found="'both'",
    field=".sharing",
)

DEVICE_RESOURCE: Final = "nvidia.com/gpu"


class Interconnect(enum.StrEnum):
    """How the GPUs of one node are joined, from slow to fast."""

    PCIE = "PCIe"
    NVLINK = "NVLink"
    NVSWITCH = "NVSwitch"


class Placement(enum.StrEnum):
    """Where replicas prefer to run among the nodes of a class."""

    SPREAD = "Spread"
    PACK = "Pack"


DeviceSelector = Annotated[str, Field(min_length=1, max_length=2048)]


class DeviceSharing(ApiModel):
    """How the device plugin lets several pods use one device."""

    time_sliced_replicas: Annotated[
        int,
        Field(
            ge=2,
            le=64,
            description="Pods that take turns on one device, as the device plugin is configured (nodes then report "
            "this many times their GPUs). Each may use this share of the memory.",
        ),
    ]


class GPUClassSpec(ApiModel):
    """Desired state."""

    model_config = ConfigDict(json_schema_extra=constrained(SELECTORS_NEED_A_DEVICE_CLASS, SLICES_ARE_NOT_SHARED))

    node_selector: Annotated[
        Labels,
        Field(
            min_length=1,
            description="Labels of the nodes that carry this GPU, as NVIDIA GPU feature discovery sets them.",
        ),
    ]
    resource_name: Annotated[
        str | None,
        Field(
            max_length=128,
            pattern=RESOURCE_NAME,
            description="Extended resource to request. Unset: nvidia.com/gpu, or the resource of migProfile, such as "
            "nvidia.com/mig-1g.18gb (MIG strategy mixed; with strategy single set nvidia.com/gpu).",
            json_schema_extra=constrained(RESOURCE_IS_A_DEVICE),
        ),
    ] = None
    mig_profile: Annotated[
        str | None,
        Field(
            max_length=32,
            pattern=MIG_PROFILE,
            description="The class is this MIG slice of its GPUs, such as 1g.18gb; memory is that of the slice.",
        ),
    ] = None
    interconnect: Annotated[
        Interconnect | None,
        Field(
            description="How the GPUs of one node are joined. Unset: unknown, so services that require one pass it by.",
        ),
    ] = None
    price_per_hour: Annotated[
        str | None,
        Field(
            max_length=20,
            pattern=PRICE,
            description="Price of one GPU, slice or time slice for an hour, in the currency of the fleet "
            '(chart value fleet.currency), such as "2.85". Unset: unknown; the class is taken after those with one.',
        ),
    ] = None
    device_class_name: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=253,
            pattern=DEVICE_CLASS,
            description="DeviceClass of dynamic resource allocation that has these GPUs, for services with allocation "
            "ResourceClaim.",
        ),
    ] = None
    device_selectors: Annotated[
        list[DeviceSelector],
        Field(
            max_length=8,
            description="CEL over `device` that tells these GPUs from others of the DeviceClass; all must hold.",
            json_schema_extra=constrained(list_type="atomic"),
        ),
    ] = Field(default_factory=list)
    sharing: DeviceSharing | None = None
    placement: Annotated[
        Placement,
        Field(
            description="Spread: replicas of a service keep apart, so that a node takes few of them with it. Pack: "
            "replicas prefer nodes that run others of this class, so that whole nodes stay free for larger work.",
        ),
    ] = Placement.SPREAD
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
    power: Annotated[
        Power | None,
        Field(description="Power and clock limits by profile. Unset: nobody touches GPUs of this class."),
    ] = None

    @property
    def resource(self) -> str:
        """Extended resource of the class."""
        if self.resource_name is not None:
            return self.resource_name
        if self.mig_profile is not None:
            return f"nvidia.com/mig-{self.mig_profile.replace('+', '.')}"
        return DEVICE_RESOURCE


class GPUClassStatus(ApiModel):
    """Observed state."""

    observed_generation: Annotated[int, Field(description="metadata.generation this status was computed for.")] = 0
    conditions: Conditions = Field(default_factory=list)
    nodes: Annotated[int, Field(description="Nodes that match.")] = 0
    gpus: Annotated[int, Field(description="Devices on those nodes.")] = 0
    allocated: Annotated[int, Field(description="Devices held by pods.")] = 0
    largest_free_block: Annotated[int, Field(description="Most free devices on one node.")] = 0
    fragmented: Annotated[
        int,
        Field(
            description="Devices lost to fragmentation: on nodes that would be wholly free if replicas lay together.",
        ),
    ] = 0


class GPUClass(ApiModel):
    """One kind of GPU, told by node labels. Platform teams write it; services name it."""

    model_config = ConfigDict(json_schema_extra=constrained(NAME_IS_A_LABEL))

    metadata: ObjectMeta
    spec: GPUClassSpec
    status: GPUClassStatus = GPUClassStatus()
