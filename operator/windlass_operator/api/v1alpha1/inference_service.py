"""InferenceService: one model served to one tenant. Namespaced; the object tenant teams write."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import Field

from windlass_operator.api.meta import ApiModel, Condition, DnsLabel, Labels, ObjectMeta, Quantity, Toleration


class Tier(enum.StrEnum):
    """How urgent a service is; becomes a PriorityClass."""

    REALTIME = "Realtime"
    STANDARD = "Standard"
    BATCH = "Batch"


class Sharing(enum.StrEnum):
    """How replicas share a device."""

    EXCLUSIVE = "Exclusive"


class Allocation(enum.StrEnum):
    """How a pod asks for its device."""

    DEVICE_PLUGIN = "DevicePlugin"


class PrecisionPreset(enum.StrEnum):
    """Number format of weights and arithmetic."""

    AUTO = "Auto"
    FP32 = "FP32"
    BF16 = "BF16"
    FP16 = "FP16"


class MetricType(enum.StrEnum):
    """What a replica count follows."""

    QUEUE_DEPTH = "QueueDepth"
    RUNNING_REQUESTS = "RunningRequests"
    CACHE_USE = "CacheUse"
    CPU_UTILIZATION = "CPUUtilization"


class Model(ApiModel):
    """Which checkpoint to serve."""

    uri: Annotated[str, Field(
        min_length=6, max_length=512, pattern=r"^(hf|pvc|oci|file)://[^\s]+$",
        description="Where the checkpoint lies: hf://organisation/name[@revision], pvc://claim/path, oci://registry/image:tag "
                    "(an image volume, Kubernetes 1.33 or later), or file:///path inside the runtime image "
                    "(with `windlass up`: on this machine, relative paths allowed as file://./path).",
    )]
    served_name: Annotated[str, Field(
        max_length=128, pattern=r"^[A-Za-z0-9._:/-]*$", description="Value of `model` in OpenAI requests; empty means the object's name.",
    )] = ""


class Accelerator(ApiModel):
    """Which GPU a replica needs. A service without it runs on CPUs."""

    classes: Annotated[list[DnsLabel], Field(
        min_length=1, max_length=8, description="GPUClass names in order of preference; the first with nodes is chosen.",
    )]
    count: Annotated[int, Field(ge=1, le=1, description="GPUs per replica.")] = 1
    sharing: Sharing = Sharing.EXCLUSIVE
    allocation: Allocation = Allocation.DEVICE_PLUGIN


class Precision(ApiModel):
    """Number formats."""

    preset: Annotated[PrecisionPreset, Field(
        description="Auto keeps the checkpoint's own format where the device computes in it.",
    )] = PrecisionPreset.AUTO


class Cache(ApiModel):
    """The key/value cache of one replica."""

    memory: Annotated[Quantity | None, Field(
        description="Size of the page pool, such as 8Gi. Unset: sized for maxRunningRequests within the memory of the device.",
    )] = None


class Limits(ApiModel):
    """Bounds of one replica."""

    max_sequence_tokens: Annotated[int | None, Field(
        ge=16, le=1_048_576, description="Prompt plus output per request, in tokens. Unset: what the checkpoint was trained for.",
    )] = None
    max_running_requests: Annotated[int, Field(ge=1, le=1024, description="Requests computed together.")] = 64
    max_queued_requests: Annotated[int, Field(
        ge=0, le=10_000, description="Requests that may wait; one more is answered 429 with Retry-After.",
    )] = 256


class ScalingMetric(ApiModel):
    """One metric and the value per replica to aim at."""

    type: MetricType
    target: Annotated[int, Field(
        ge=1, le=10_000, description="Average per replica: requests for QueueDepth and RunningRequests, percent for CacheUse and CPUUtilization.",
    )]


class Scaling(ApiModel):
    """Metric-driven replica count. While set, the autoscaler owns the number of replicas."""

    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    metrics: Annotated[list[ScalingMetric], Field(min_length=1, max_length=4)] = Field(
        default_factory=lambda: [ScalingMetric(type=MetricType.QUEUE_DEPTH, target=4)])
    scale_down_delay_seconds: Annotated[int, Field(ge=0, le=3600, description="How long a lower demand must last.")] = 300


class Rollout(ApiModel):
    """What must hold while pods are replaced."""

    min_available: Annotated[int, Field(
        ge=0, le=1000, description="Replicas that stay ready through rollouts and node drains.",
    )] = 1


class Drain(ApiModel):
    """How a replica leaves."""

    timeout_seconds: Annotated[int, Field(
        ge=1, le=3600, description="Time to finish running requests; the pod's grace period is this plus 15 seconds.",
    )] = 60


class EnvVar(ApiModel):
    """A plain environment variable of the runtime container."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    value: Annotated[str, Field(max_length=4096)] = ""


class Resources(ApiModel):
    """CPU and memory of the runtime container; GPUs come from `accelerator`."""

    cpu: Annotated[Quantity | None, Field(description="CPU request, such as 4 or 500m.")] = None
    memory: Annotated[Quantity | None, Field(description="Memory request and limit, such as 16Gi.")] = None
    ephemeral_storage: Annotated[Quantity | None, Field(description="Scratch disk request and limit.")] = None


class PodTemplate(ApiModel):
    """The part of the pod that users may shape. Security settings, volumes, accounts and images are not among it."""

    labels: Labels = Field(default_factory=dict)
    annotations: Annotated[dict[Annotated[str, Field(max_length=317)], Annotated[str, Field(max_length=4096)]], Field(max_length=32)] = Field(
        default_factory=dict)
    node_selector: Labels = Field(default_factory=dict)
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field(default_factory=list)
    env: Annotated[list[EnvVar], Field(max_length=32)] = Field(default_factory=list)
    resources: Resources = Resources()


class InferenceServiceSpec(ApiModel):
    """Desired state."""

    model: Model
    replicas: Annotated[int | None, Field(
        ge=0, le=1000, description="Fixed number of replicas, 1 when unset. Forbidden together with scaling; the target of kubectl scale.",
    )] = None
    scaling: Scaling | None = None
    suspend: Annotated[bool, Field(description="Keep the object, run nothing.")] = False
    accelerator: Accelerator | None = None
    precision: Precision = Precision()
    cache: Cache = Cache()
    limits: Limits = Limits()
    tier: Tier = Tier.STANDARD
    rollout: Rollout = Rollout()
    drain: Drain = Drain()
    pod_template: PodTemplate = PodTemplate()


class Address(ApiModel):
    """Where clients reach the service."""

    url: Annotated[str, Field(max_length=512)]


class Decision(ApiModel):
    """One choice the planner made, with its reason; the words `windlass explain` prints."""

    topic: Annotated[str, Field(max_length=64)]
    choice: Annotated[str, Field(max_length=256)]
    reason: Annotated[str, Field(max_length=1024)]


class Failure(ApiModel):
    """The newest failure of a replica."""

    reason: Annotated[str, Field(max_length=128)]
    message: Annotated[str, Field(max_length=2048)] = ""
    pod: Annotated[str, Field(max_length=253)] = ""
    exit_code: int | None = None
    time: Annotated[str, Field(max_length=32)] = ""


class InferenceServiceStatus(ApiModel):
    """Observed state."""

    observed_generation: int = 0
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(default_factory=list)
    replicas: int = 0
    ready_replicas: int = 0
    updated_replicas: int = 0
    selector: Annotated[str, Field(max_length=512)] = ""
    address: Address | None = None
    tenant: Annotated[str, Field(max_length=63)] = ""
    accelerator_class: Annotated[str, Field(max_length=63)] = ""
    decisions: Annotated[list[Decision], Field(max_length=16)] = Field(default_factory=list)
    last_failure: Failure | None = None


class InferenceService(ApiModel):
    """One model served to one tenant."""

    metadata: ObjectMeta
    spec: InferenceServiceSpec
    status: InferenceServiceStatus = InferenceServiceStatus()
