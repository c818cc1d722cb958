"""InferenceService: one model served to one tenant. Namespaced; the object tenant teams write."""

from __future__ import annotations

import enum
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from windlass_operator.api.meta import (
    KEYS_ARE_LABEL_KEYS,
    ApiModel,
    ByteQuantity,
    Conditions,
    DnsLabel,
    Labels,
    ObjectMeta,
    Quantity,
    Tolerations,
)
from windlass_operator.api.patterns import COMPUTE_CAPABILITY, ENV_NAME, MODEL_URI, PERCENT, SERVED_NAME
from windlass_operator.api.rules import constrained, rule
from windlass_operator.api.v1alpha1.canary import MOST_CANARIES, CanaryAnalysis, CanaryStatus
from windlass_operator.api.v1alpha1.cost import Cost
from windlass_operator.api.v1alpha1.gpu_class import Interconnect
from windlass_operator.api.v1alpha1.power import PowerProfile
from windlass_operator.api.v1alpha1.scaling import Scaling

MAX_NAME: Final = 40
"""Children add a suffix to the name: pods 17 characters (replica set and pod hash), config maps a word and a hash.
With 40, every child stays within the 63 characters of a DNS label."""

NAME_FITS_CHILDREN: Final = rule(
    f"self.metadata.name.size() <= {MAX_NAME}",
    f"a name of at most {MAX_NAME} characters, because children add a suffix (pods 17, config maps a word and a hash) "
    "and end at 63",
    found="self.metadata.name",
)
NAME_STARTS_A_SERVICE: Final = rule(
    "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    "a name of lower-case letters, digits and dashes that begins with a letter, because a Service carries it",
    found="self.metadata.name",
)

MOST_GPUS: Final = 16
"""GPUs that one replica can have: no node has more."""
MAX_CANARY_NAME: Final = 46
"""Service, dash and canary: pods add 17 characters."""
NAME_FITS_CANARIES: Final = rule(
    "!has(self.spec.canaries) || self.spec.canaries.all(canary, "
    f"self.metadata.name.size() + 1 + canary.name.size() <= {MAX_CANARY_NAME})",
    f"at most {MAX_CANARY_NAME - 1} characters for the service's name and a canary's together, because their pods "
    "carry both and end at 63",
    found="'more'",
    field=".spec.canaries",
)

# One path segment that is not `..`; RE2 has no look-ahead, so the ways to differ from it are spelled out.
_SEGMENT: Final = "([^/.][^/]*|[.][^/.][^/]*|[.][.][^/]+|[.])"
URI_IS_A_HUB_NAME: Final = rule(
    "!self.startsWith('hf://') || "
    "self.matches('^hf://[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(@[A-Za-z0-9_][A-Za-z0-9._/-]{0,127})?$')",
    "hf://organisation/name or hf://organisation/name@revision",
)
URI_IS_A_CLAIM: Final = rule(
    "!self.startsWith('pvc://') || "
    f"self.matches('^pvc://[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*(/{_SEGMENT})*/?$')",
    "pvc://claim or pvc://claim/path, without .. in the path",
)
URI_IS_AN_IMAGE: Final = rule(
    "!self.startsWith('oci://') || "
    "self.matches('^oci://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+"
    "(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$')",
    "oci://registry/image with an optional :tag and @sha256:digest",
)
URI_IS_A_FILE: Final = rule(
    f"!self.startsWith('file://') || self.matches('^file://(/|[.]/|([.][.]/)+){_SEGMENT}(/{_SEGMENT})*/?$')",
    "file:///absolute/path, or file://./path or file://../path on one machine, without .. further on",
)

CLASSES_ARE_DISTINCT: Final = rule(
    "self.all(name, self.exists_one(other, other == name))",
    "each GPUClass once",
    found="self.filter(name, !self.exists_one(other, other == name))[0] + ' more than once'",
)
CLASSES_OR_REQUIREMENTS: Final = rule(
    "has(self.classes) != has(self.requirements)",
    "either classes or requirements",
    found="(has(self.classes) ? 'both' : 'neither')",
    field=".classes",
)

ONE_OWNER_OF_REPLICAS: Final = rule(
    "!(has(self.replicas) && has(self.scaling))",
    "either replicas or scaling, because one of them owns the number",
    found="'both'",
    field=".replicas",
)
FLOOR_CAN_HOLD: Final = rule(
    "has(self.scaling) || (has(self.replicas) ? self.replicas == 0 || self.rollout.minAvailable <= self.replicas"
    " : self.rollout.minAvailable <= 1)",
    "at most replicas, or it can never hold",
    found="string(self.rollout.minAvailable) + ' with replicas ' + (has(self.replicas) ? string(self.replicas) : '1')",
    field=".rollout.minAvailable",
)
FLOOR_CAN_HOLD_WHEN_SCALED_IN: Final = rule(
    "!has(self.scaling) || self.rollout.minAvailable <= 1 || (self.rollout.minAvailable <= self.scaling.minReplicas"
    " && (!has(self.scaling.schedules) || self.scaling.schedules.all(item,"
    " !has(item.minReplicas) || self.rollout.minAvailable <= item.minReplicas)))",
    "at most the lowest minReplicas of scaling and its schedules (1 where that is 0), "
    "or it cannot hold after a scale-in",
    found="string(self.rollout.minAvailable) + ' with minReplicas ' + string(self.scaling.minReplicas)",
    field=".rollout.minAvailable",
)

SHARES_ADD_UP: Final = rule(
    " + ".join(f"(self.size() > {index} ? self[{index}].trafficPercent : 0)" for index in range(MOST_CANARIES))
    + " <= 100",
    "shares that add up to at most 100 percent",
    found="'more'",
)
STEPS_LEAD_UP: Final = rule(
    "!has(self.analysis) || !has(self.analysis.steps) || self.analysis.steps.all(step, step < self.trafficPercent)",
    "steps below trafficPercent, where they end",
    found="string(self.analysis.steps.filter(step, step >= self.trafficPercent)[0]) + ' with trafficPercent ' + "
    "string(self.trafficPercent)",
    field=".analysis.steps",
)
POWER_NEEDS_A_GPU: Final = rule(
    "!has(self.powerProfile) || has(self.accelerator)",
    "no profile without accelerator, because CPUs have none",
    field=".powerProfile",
)
SMALL_PAGES_ON_ONE_DEVICE: Final = rule(
    "!has(self.accelerator) || self.accelerator.count <= 1 || !has(self.cache) || self.cache.bits == 16",
    "16 where accelerator.count is above 1, because smaller pages lie on one device",
    found="string(self.cache.bits)",
    field=".cache.bits",
)
ALTERNATIVES_NEED_A_SHAPE: Final = rule(
    "!has(self.precision) || !has(self.precision.alternatives) || self.precision.alternatives.size() == 0"
    " || has(self.model.shape)",
    "precision.alternatives together with model.shape, which tells where each of them fits",
    found="'no model.shape'",
    field=".precision.alternatives",
)
SPARSITY_NEEDS_A_CPU: Final = rule(
    "!has(self.sparsity) || !has(self.sparsity.mode) || self.sparsity.mode == 'Off' || !has(self.accelerator)",
    "Off together with accelerator, because no GPU kernels would make it faster yet",
    found="self.sparsity.mode",
    field=".sparsity.mode",
)

ENV_IS_NOT_OURS: Final = rule(
    "!self.name.startsWith('WINDLASS_')", "a name outside WINDLASS_, which the operator sets", field=".name"
)
ENV_KEEPS_THE_LOADER: Final = rule(
    "!(self.name.startsWith('LD_') || self.name in ['PYTHONPATH', 'PYTHONHOME', 'PYTHONSTARTUP', 'PYTHONINSPECT'])",
    "a name that does not change which code the runtime loads",
    field=".name",
)
ENV_KEEPS_THE_DEVICES: Final = rule(
    "!(self.name.startsWith('NVIDIA_') || self.name.startsWith('CUDA_VISIBLE_') || self.name == 'CUDA_DEVICE_ORDER')",
    "a name that does not select devices, which accelerator does",
    field=".name",
)
_OWNED_LABEL: Final = "^(([a-z0-9.-]+[.])?(windlass[.]dev|kubernetes[.]io)/|pod-template-hash$)"
_OWNED_ANNOTATION: Final = "^([a-z0-9.-]+[.])?(windlass[.]dev|kubernetes[.]io|k8s[.]v1[.]cni[.]cncf[.]io)/"
LABELS_ARE_FREE: Final = rule(
    f"self.all(key, !key.matches('{_OWNED_LABEL}'))",
    "labels outside windlass.dev/, kubernetes.io/ (with app.kubernetes.io/) and pod-template-hash, "
    "which controllers own",
    found=f"self.filter(key, key.matches('{_OWNED_LABEL}'))[0]",
)
ANNOTATIONS_ARE_FREE: Final = rule(
    f"self.all(key, !key.matches('{_OWNED_ANNOTATION}'))",
    "annotations outside windlass.dev/, kubernetes.io/ (with app.kubernetes.io/) and k8s.v1.cni.cncf.io/, "
    "which controllers and nodes obey",
    found=f"self.filter(key, key.matches('{_OWNED_ANNOTATION}'))[0]",
)
TOLERATIONS_NAME_A_TAINT: Final = rule(
    "self.all(item, has(item.key) && item.key != '' && !item.key.startsWith('node-role.kubernetes.io/'))",
    "tolerations that name a taint, and none of node-role.kubernetes.io/, which keep tenants off the control plane",
)


class Tier(enum.StrEnum):
    """How urgent a service is; becomes a PriorityClass."""

    REALTIME = "Realtime"
    STANDARD = "Standard"
    BATCH = "Batch"


class Sharing(enum.StrEnum):
    """How far a replica shares a GPU with other pods."""

    EXCLUSIVE = "Exclusive"
    MIG = "MIG"
    TIME_SLICED = "TimeSliced"


class Allocation(enum.StrEnum):
    """How a pod asks for its device."""

    DEVICE_PLUGIN = "DevicePlugin"
    RESOURCE_CLAIM = "ResourceClaim"


class PrecisionPreset(enum.StrEnum):
    """Number format of weights and arithmetic."""

    AUTO = "Auto"
    FP32 = "FP32"
    BF16 = "BF16"
    FP16 = "FP16"
    INT8 = "INT8"
    INT4 = "INT4"


class SparsityMode(enum.StrEnum):
    """How much of the feed-forward layers a generated token may leave out."""

    OFF = "Off"
    BALANCED = "Balanced"
    MAX = "Max"


ModelUri = Annotated[
    str,
    Field(
        min_length=6,
        max_length=512,
        pattern=MODEL_URI,
        description="Where the checkpoint lies: hf://organisation/name[@revision], pvc://claim/path, "
        "oci://registry/image:tag (an image volume, Kubernetes 1.35 or later), or file:///path inside the "
        "runtime image. Relative paths (file://./path, file://../path) are resolved against the YAML file by "
        "`windlass up`; on a cluster they are refused by the planner.",
        json_schema_extra=constrained(URI_IS_A_HUB_NAME, URI_IS_A_CLAIM, URI_IS_AN_IMAGE, URI_IS_A_FILE),
    ),
]


class ModelShape(ApiModel):
    """The model in numbers, as its config.json has them. `windlass shape FOLDER` prints this block."""

    layers: Annotated[int, Field(ge=1, le=1024, description="num_hidden_layers.")]
    hidden_size: Annotated[int, Field(ge=1, le=1_048_576, description="hidden_size.")]
    feed_forward_size: Annotated[int, Field(ge=1, le=4_194_304, description="intermediate_size.")]
    query_heads: Annotated[int, Field(ge=1, le=4096, description="num_attention_heads.")]
    key_value_heads: Annotated[int, Field(ge=1, le=4096, description="num_key_value_heads.")]
    head_size: Annotated[int, Field(ge=1, le=4096, description="head_dim, or hidden_size by num_attention_heads.")]
    vocabulary_size: Annotated[int, Field(ge=1, le=16_777_216, description="vocab_size.")]
    max_positions: Annotated[int, Field(ge=1, le=16_777_216, description="max_position_embeddings.")]
    tied_head: Annotated[bool, Field(description="tie_word_embeddings.")] = False


class RolloutState(enum.StrEnum):
    """How far a rollout is."""

    IN_PROGRESS = "InProgress"
    WAITING = "Waiting"
    BLOCKED = "Blocked"
    COMPLETE = "Complete"


class StepState(enum.StrEnum):
    """How far one step of a rollout is."""

    DONE = "Done"
    RUNNING = "Running"
    WAITING = "Waiting"
    BLOCKED = "Blocked"
    PENDING = "Pending"


class StepAction(enum.StrEnum):
    """How a step replaces pods."""

    SURGE = "Surge"
    ONE_OUT_ONE_IN = "OneOutOneIn"


class Model(ApiModel):
    """Which checkpoint to serve."""

    uri: ModelUri
    served_name: Annotated[
        str,
        Field(
            max_length=128,
            pattern=SERVED_NAME,
            description="Value of `model` in OpenAI requests; empty means the object's name.",
        ),
    ] = ""
    shape: Annotated[
        ModelShape | None,
        Field(
            description="Sizes of the model. Set, classes whose memory is too small are passed by before a replica "
            "starts; unset, the replica itself finds out.",
        ),
    ] = None


class Requirements(ApiModel):
    """What a replica needs of a GPU. Every stated one must be met."""

    memory: Annotated[
        ByteQuantity | None,
        Field(description="Least memory of the GPU, slice or time slice, such as 40Gi."),
    ] = None
    compute_capability: Annotated[
        str | None,
        Field(
            min_length=3,
            max_length=5,
            pattern=COMPUTE_CAPABILITY,
            description="Least CUDA compute capability, such as 8.0.",
        ),
    ] = None
    interconnect: Annotated[
        Interconnect | None,
        Field(description="Slowest link between the GPUs of one node: PCIe, NVLink or NVSwitch."),
    ] = None


class Accelerator(ApiModel):
    """Which GPU a replica needs. A service without it runs on CPUs."""

    model_config = ConfigDict(json_schema_extra=constrained(CLASSES_OR_REQUIREMENTS))

    classes: Annotated[
        list[DnsLabel] | None,
        Field(
            min_length=1,
            max_length=8,
            description="GPUClass names in order of preference; the first with nodes is chosen.",
            json_schema_extra=constrained(CLASSES_ARE_DISTINCT, list_type="atomic"),
        ),
    ] = None
    requirements: Annotated[
        Requirements | None,
        Field(
            description="Instead of classes: the cheapest class with nodes that meets them is chosen.",
        ),
    ] = None
    count: Annotated[
        int,
        Field(
            ge=1,
            le=MOST_GPUS,
            description="GPUs per replica, all on one node; the model's layers are split over them. More than 1 needs "
            "classes of whole GPUs.",
        ),
    ] = 1
    sharing: Annotated[
        Sharing,
        Field(
            description="How far the replica shares a GPU. Exclusive: only classes of whole GPUs. MIG: also slices, "
            "isolated in hardware. TimeSliced: also GPUs that pods use in turns, without isolation.",
        ),
    ] = Sharing.EXCLUSIVE
    allocation: Annotated[
        Allocation,
        Field(
            description="DevicePlugin: through the extended resource of the chosen class. ResourceClaim: by dynamic "
            "resource allocation; each replica gets the first of the classes that the scheduler can satisfy.",
        ),
    ] = Allocation.DEVICE_PLUGIN


class PrecisionAlternative(ApiModel):
    """A number format that will do where the preferred one finds no room."""

    preset: Annotated[PrecisionPreset, Field(description="The format.")]
    max_quality_loss_percent: Annotated[
        str | None,
        Field(max_length=20, pattern=PERCENT, description='Largest loss of quality that is acceptable, such as "0.8".'),
    ] = None
    quality_loss_percent: Annotated[
        str | None,
        Field(
            max_length=20,
            pattern=PERCENT,
            description="Loss that was measured for this model, as calibration reports it. Without it an alternative "
            "with maxQualityLossPercent is not used.",
        ),
    ] = None


class Precision(ApiModel):
    """Number formats."""

    preset: Annotated[
        PrecisionPreset,
        Field(
            description="Auto keeps the checkpoint's own format where the device computes in it; INT8 and INT4 follow "
            "the recipe in the model's folder, or round the weights at load.",
        ),
    ] = PrecisionPreset.AUTO
    alternatives: Annotated[
        list[PrecisionAlternative],
        Field(
            max_length=4,
            description="Formats to step down to, in this order, where memory or quota of a class has no room for the "
            "preset; the service returns once there is room. Needs spec.model.shape.",
            json_schema_extra=constrained(list_type="map", keys=("preset",)),
        ),
    ] = Field(default_factory=list)


class CacheReuse(enum.StrEnum):
    """Which keys and values of earlier requests a replica uses again."""

    NONE = "None"
    PREFIX = "Prefix"


class Sparsity(ApiModel):
    """Sparse activation: generated tokens leave out feed-forward blocks that they hardly need."""

    mode: Annotated[
        SparsityMode,
        Field(
            description="Balanced leaves out as much as costs at most 1 % of perplexity, Max at most 3 %, as measured "
            "when the gate in the model's folder was made. For replicas on CPUs; needs a model with a gate.",
        ),
    ] = SparsityMode.OFF


class Cache(ApiModel):
    """The key/value cache of one replica."""

    bits: Annotated[
        Literal[4, 8, 16],
        Field(
            description="Bits per element of stored keys and values. 16: the format of the arithmetic. 4 holds about "
            "3.5 times the tokens of 16 in the same memory; docs/howto/kv-cache.md says how to measure what it costs.",
        ),
    ] = 16
    reuse: Annotated[
        CacheReuse,
        Field(
            description="Prefix: requests of the tenant that begin alike, token by token, share what was computed. The "
            "answers are the same; only the time to the first token tells. Nothing is shared between tenants.",
        ),
    ] = CacheReuse.NONE

    memory: Annotated[
        ByteQuantity | None,
        Field(
            description="Size of the page pool, such as 8Gi. Unset: sized for maxRunningRequests within the memory of "
            "the device.",
        ),
    ] = None


class Limits(ApiModel):
    """Bounds of one replica."""

    max_sequence_tokens: Annotated[
        int | None,
        Field(
            ge=16,
            le=1_048_576,
            description="Prompt plus output per request, in tokens. Unset: what the checkpoint was trained for.",
        ),
    ] = None
    max_running_requests: Annotated[int, Field(ge=1, le=1024, description="Requests computed together.")] = 64
    max_queued_requests: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="Requests that may wait; one more is answered 429 with Retry-After.",
        ),
    ] = 256


class Rollout(ApiModel):
    """What must hold while pods are replaced."""

    min_available: Annotated[
        int,
        Field(
            ge=0,
            le=1000,
            description="Replicas that stay ready through rollouts and node drains.",
        ),
    ] = 1


class Drain(ApiModel):
    """How a replica leaves."""

    timeout_seconds: Annotated[
        int,
        Field(
            ge=1,
            le=3600,
            description="Time to finish running requests; the pod's grace period is this plus 15 seconds.",
        ),
    ] = 60


class EnvVar(ApiModel):
    """A plain environment variable of the runtime container."""

    model_config = ConfigDict(
        json_schema_extra=constrained(ENV_IS_NOT_OURS, ENV_KEEPS_THE_LOADER, ENV_KEEPS_THE_DEVICES)
    )

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=ENV_NAME, description="Name of the variable.")]
    value: Annotated[str, Field(max_length=4096, description="Its value; not a place for secrets.")] = ""


class Resources(ApiModel):
    """CPU and memory of the runtime container; GPUs come from `accelerator`."""

    cpu: Annotated[Quantity | None, Field(description="CPU request, such as 4 or 500m, in quotes.")] = None
    memory: Annotated[ByteQuantity | None, Field(description="Memory request and limit, such as 16Gi.")] = None
    ephemeral_storage: Annotated[ByteQuantity | None, Field(description="Scratch disk request and limit.")] = None


class PodTemplate(ApiModel):
    """The part of the pod that users may shape. Security settings, volumes, accounts and images are not among it."""

    labels: Annotated[
        Labels,
        Field(
            description="More labels for the pods.",
            json_schema_extra=constrained(KEYS_ARE_LABEL_KEYS, LABELS_ARE_FREE),
        ),
    ] = Field(default_factory=dict)
    annotations: Annotated[
        dict[Annotated[str, Field(max_length=317)], Annotated[str, Field(max_length=4096)]],
        Field(
            max_length=32,
            description="More annotations for the pods.",
            json_schema_extra=constrained(KEYS_ARE_LABEL_KEYS, ANNOTATIONS_ARE_FREE),
        ),
    ] = Field(default_factory=dict)
    node_selector: Annotated[
        Labels,
        Field(
            description="Node labels to require besides those of the GPUClass.",
        ),
    ] = Field(default_factory=dict)
    tolerations: Annotated[
        Tolerations,
        Field(
            description="Taints to accept besides those of the GPUClass.",
            json_schema_extra=constrained(TOLERATIONS_NAME_A_TAINT, list_type="atomic"),
        ),
    ] = Field(default_factory=list)
    env: Annotated[
        list[EnvVar],
        Field(
            max_length=32,
            description="More environment variables of the runtime container.",
            json_schema_extra=constrained(list_type="map", keys=("name",)),
        ),
    ] = Field(default_factory=list)
    resources: Resources = Resources()


class CanaryModel(ApiModel):
    """Which checkpoint a canary serves, under the name of the service."""

    uri: ModelUri


class Canary(ApiModel):
    """The same service with some fields replaced, on replicas of its own, with a share of the traffic."""

    model_config = ConfigDict(json_schema_extra=constrained(STEPS_LEAD_UP))

    name: Annotated[
        DnsLabel,
        Field(max_length=24, description="Name; its objects are called after the service and this."),
    ]
    traffic_percent: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="Share of the requests, in percent. 0, a dark launch: only those that ask for it by the header "
            "X-Windlass-Canary.",
        ),
    ]
    replicas: Annotated[int | None, Field(ge=1, le=100, description="Fixed number of replicas, 1 when unset.")] = None
    model: CanaryModel | None = None
    accelerator: Accelerator | None = None
    precision: Precision | None = None
    cache: Cache | None = None
    limits: Limits | None = None
    analysis: CanaryAnalysis | None = None


Canaries = Annotated[
    list[Canary],
    Field(
        max_length=MOST_CANARIES,
        description="Other revisions on trial. Each replaces fields of this spec and takes a share of the traffic.",
        json_schema_extra=constrained(SHARES_ADD_UP, list_type="map", keys=("name",)),
    ),
]


class InferenceServiceSpec(ApiModel):
    """Desired state."""

    model_config = ConfigDict(
        json_schema_extra=constrained(
            ONE_OWNER_OF_REPLICAS,
            FLOOR_CAN_HOLD,
            FLOOR_CAN_HOLD_WHEN_SCALED_IN,
            POWER_NEEDS_A_GPU,
            SMALL_PAGES_ON_ONE_DEVICE,
            ALTERNATIVES_NEED_A_SHAPE,
            SPARSITY_NEEDS_A_CPU,
        )
    )

    model: Model
    replicas: Annotated[
        int | None,
        Field(
            ge=0,
            le=1000,
            description="Fixed number of replicas, 1 when unset. Forbidden together with scaling; "
            "the target of kubectl scale.",
        ),
    ] = None
    scaling: Scaling | None = None
    suspend: Annotated[bool, Field(description="Keep the object, run nothing.")] = False
    accelerator: Accelerator | None = None
    precision: Precision = Precision()
    sparsity: Sparsity = Sparsity()
    cache: Cache = Cache()
    limits: Limits = Limits()
    tier: Annotated[
        Tier,
        Field(
            description="How urgent the service is: the PriorityClass of its pods. The tenant's allowedTiers "
            "must list it.",
        ),
    ] = Tier.STANDARD
    power_profile: Annotated[
        PowerProfile | None,
        Field(
            description="Which of the GPUClass's power profiles the GPUs of this service run with. Unset: what the "
            "class gives the tier, else Balanced. Changing it restarts nothing; without the power agent it has no "
            "effect.",
        ),
    ] = None
    rollout: Rollout = Rollout()
    drain: Drain = Drain()
    pod_template: PodTemplate = PodTemplate()
    canaries: Canaries = Field(default_factory=list)


class Address(ApiModel):
    """Where clients reach the service."""

    url: Annotated[str, Field(max_length=512, description="Base URL, without /v1.")]


class Decision(ApiModel):
    """One choice the planner made, with its reason; the words `windlass explain` prints."""

    topic: Annotated[str, Field(max_length=64, description="What was chosen.")]
    choice: Annotated[str, Field(max_length=256, description="The choice.")]
    reason: Annotated[str, Field(max_length=1024, description="Why.")]


class Failure(ApiModel):
    """The newest failure of a replica."""

    reason: Annotated[str, Field(max_length=128, description="One word for machines.")]
    message: Annotated[str, Field(max_length=2048, description="The words of the replica or of the node.")] = ""
    pod: Annotated[str, Field(max_length=253, description="Which pod.")] = ""
    exit_code: Annotated[int | None, Field(description="Exit code of its process.")] = None
    time: Annotated[str, Field(max_length=32, description="When, RFC 3339.")] = ""


class RolloutStep(ApiModel):
    """Pods that are replaced in the same way, one after the other."""

    action: Annotated[
        StepAction,
        Field(
            description="Surge: the new pod starts, then an old one stops. OneOutOneIn: an old pod stops, then the new "
            "one takes its device."
        ),
    ]
    replicas: Annotated[int, Field(ge=0, description="Pods that this step replaces.")]
    state: Annotated[
        StepState,
        Field(
            description="Done; Running; Waiting for a device that another rollout uses first; Blocked, which needs "
            "somebody to act; Pending until the steps before it are done."
        ),
    ]
    free_devices: Annotated[
        int, Field(ge=0, description="Devices beyond its own that the service holds during the step.")
    ] = 0
    reason: Annotated[str, Field(max_length=1024, description="Why in this way, or what it waits for.")] = ""


class RolloutStatus(ApiModel):
    """How pods are being replaced, or were the last time."""

    revision: Annotated[str, Field(max_length=63, description="Fingerprint of the pod template that is rolled out.")]
    state: Annotated[RolloutState, Field(description="InProgress, Waiting, Blocked or Complete.")]
    started: Annotated[str, Field(max_length=32, description="When it began, RFC 3339; edits on the way keep it.")] = ""
    finished: Annotated[str, Field(max_length=32, description="When the last old pod was replaced, RFC 3339.")] = ""
    progress: Annotated[str, Field(max_length=64, description="Pods replaced of all, such as 2/4.")] = ""
    steps: Annotated[
        list[RolloutStep],
        Field(
            max_length=8,
            description="What was done and what is planned. The plan is made anew with every step and every edit.",
            json_schema_extra=constrained(list_type="atomic"),
        ),
    ] = Field(default_factory=list)


class InferenceServiceStatus(ApiModel):
    """Observed state."""

    observed_generation: Annotated[int, Field(description="metadata.generation this status was computed for.")] = 0
    conditions: Conditions = Field(default_factory=list)
    replicas: Annotated[int, Field(description="Pods that exist, of any revision.")] = 0
    ready_replicas: Annotated[int, Field(description="Pods that serve.")] = 0
    updated_replicas: Annotated[int, Field(description="Pods of the newest revision.")] = 0
    selector: Annotated[str, Field(max_length=512, description="Label selector of the pods, for autoscalers.")] = ""
    address: Address | None = None
    tenant: Annotated[str, Field(max_length=63, description="Tenant that owns the namespace; empty without one.")] = ""
    accelerator_class: Annotated[str, Field(max_length=63, description="GPUClass in use; empty on CPUs.")] = ""
    decisions: Annotated[
        list[Decision],
        Field(
            max_length=16,
            description="What the planner chose, and why.",
            json_schema_extra=constrained(list_type="atomic"),
        ),
    ] = Field(default_factory=list)
    rollout: RolloutStatus | None = None
    last_failure: Failure | None = None
    cost: Cost | None = None
    canaries: Annotated[
        list[CanaryStatus],
        Field(
            max_length=MOST_CANARIES,
            description="What became of each canary.",
            json_schema_extra=constrained(list_type="map", keys=("name",)),
        ),
    ] = Field(default_factory=list)


class InferenceService(ApiModel):
    """One model served to one tenant. Tenant teams write it and get an OpenAI-compatible endpoint."""

    model_config = ConfigDict(
        json_schema_extra=constrained(NAME_FITS_CHILDREN, NAME_STARTS_A_SERVICE, NAME_FITS_CANARIES)
    )

    metadata: ObjectMeta
    spec: InferenceServiceSpec
    status: InferenceServiceStatus = InferenceServiceStatus()
