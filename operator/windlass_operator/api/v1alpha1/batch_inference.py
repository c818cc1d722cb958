"""BatchInference: a file of requests answered once, on an Indexed Job. Namespaced; tenant teams write it."""

from __future__ import annotations

import enum
from typing import Annotated, Final

from pydantic import ConfigDict, Field

from windlass_operator.api.meta import ApiModel, Conditions, ObjectMeta
from windlass_operator.api.patterns import CLAIM_PATH
from windlass_operator.api.rules import constrained, rule
from windlass_operator.api.v1alpha1.inference_service import (
    NAME_FITS_CHILDREN,
    NAME_STARTS_A_SERVICE,
    Accelerator,
    Cache,
    Decision,
    Failure,
    Limits,
    Model,
    PodTemplate,
    PrecisionPreset,
    Tier,
)

PATH_STAYS_INSIDE: Final = rule(
    "!self.matches('(^|/)[.][.]?(/|$)')",
    "pvc://claim/path, without . or .. in the path",
)
WORKERS_HAVE_SHARDS: Final = rule(
    "self.parallelism <= self.shards",
    "at most shards, because a worker without a shard has nothing to do",
    found="string(self.parallelism) + ' with shards ' + string(self.shards)",
    field=".parallelism",
)
FILES_STAY: Final = rule(
    "self.input == oldSelf.input && self.results == oldSelf.results && self.model.uri == oldSelf.model.uri",
    "input, results and model.uri as they were, because a checkpoint belongs to them; create another object instead",
)

ClaimPath = Annotated[
    str,
    Field(min_length=8, max_length=512, pattern=CLAIM_PATH, json_schema_extra=constrained(PATH_STAYS_INSIDE)),
]


class BatchPrecision(ApiModel):
    """Number formats."""

    preset: Annotated[
        PrecisionPreset,
        Field(description="As in an InferenceService. A batch keeps one to its end."),
    ] = PrecisionPreset.AUTO


class BatchInferenceSpec(ApiModel):
    """Desired state."""

    model_config = ConfigDict(json_schema_extra=constrained(WORKERS_HAVE_SHARDS, FILES_STAY))

    model: Model
    input: Annotated[
        ClaimPath,
        Field(
            description="The requests, as OpenAI's batch API has them (JSONL): pvc://claim/path. The claim must allow "
            "as many readers as there are nodes."
        ),
    ]
    results: Annotated[
        ClaimPath,
        Field(
            description="Folder for the checkpoint and then completed/output.jsonl and completed/errors.jsonl, of this "
            "batch alone: pvc://claim/path. With several workers the claim must allow as many writers "
            "(ReadWriteMany)."
        ),
    ]
    shards: Annotated[
        int,
        Field(
            ge=1,
            le=1000,
            description="Parts of the batch; a request belongs to the one that its custom_id hashes to.",
        ),
    ] = 1
    parallelism: Annotated[
        int, Field(ge=1, le=1000, description="Workers at once; each holds GPUs as a replica of a service does.")
    ] = 1
    retries_per_shard: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="How often a shard is begun again after its worker failed. Pods that a node drain or a "
            "preemption ends do not count.",
        ),
    ] = 3
    attempts_per_request: Annotated[
        int,
        Field(
            ge=1,
            le=100,
            description="Failed answers after which a request goes to the error file; refusals go at once.",
        ),
    ] = 3
    ttl_seconds_after_finished: Annotated[
        int,
        Field(
            ge=0,
            le=31_536_000,
            description="How long the Job, its pods and what they read stay once the batch is over. The results stay.",
        ),
    ] = 86_400
    suspend: Annotated[bool, Field(description="Run nothing and keep the checkpoint.")] = False
    accelerator: Accelerator | None = None
    precision: BatchPrecision = BatchPrecision()
    cache: Cache = Cache()
    limits: Limits = Limits()
    tier: Annotated[
        Tier,
        Field(description="How urgent the batch is: the PriorityClass of its pods. The tenant must allow it."),
    ] = Tier.BATCH
    pod_template: PodTemplate = PodTemplate()


class BatchPhase(enum.StrEnum):
    """How far a batch is."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


OVER: Final = frozenset({BatchPhase.SUCCEEDED, BatchPhase.FAILED})
"""Phases that a batch never leaves."""


class BatchInferenceStatus(ApiModel):
    """Observed state."""

    observed_generation: Annotated[int, Field(description="metadata.generation this status was computed for.")] = 0
    conditions: Conditions = Field(default_factory=list)
    phase: Annotated[
        BatchPhase,
        Field(description="Pending, Running, Suspended, Succeeded or Failed. The last two are for good."),
    ] = BatchPhase.PENDING
    job: Annotated[str, Field(max_length=63, description="The Job that runs it.")] = ""
    shards_done: Annotated[int, Field(ge=0, description="Shards whose worker succeeded.")] = 0
    shards_failed: Annotated[int, Field(ge=0, description="Shards that failed for good.")] = 0
    failed_shards: Annotated[str, Field(max_length=1024, description="Which ones, such as 1,3-5.")] = ""
    workers: Annotated[int, Field(ge=0, description="Pods that have not ended.")] = 0
    tenant: Annotated[str, Field(max_length=63, description="Tenant that owns the namespace; empty without one.")] = ""
    accelerator_class: Annotated[str, Field(max_length=63, description="GPUClass in use; empty on CPUs.")] = ""
    started: Annotated[str, Field(max_length=32, description="When the Job began or went on, RFC 3339.")] = ""
    finished: Annotated[str, Field(max_length=32, description="When the batch was over, RFC 3339.")] = ""
    decisions: Annotated[
        list[Decision],
        Field(
            max_length=16,
            description="What the planner chose, and why.",
            json_schema_extra=constrained(list_type="atomic"),
        ),
    ] = Field(default_factory=list)
    last_failure: Failure | None = None


class BatchInference(ApiModel):
    """A file of requests, each answered once. Survives the loss of workers and nodes, and yields GPUs to services."""

    model_config = ConfigDict(json_schema_extra=constrained(NAME_FITS_CHILDREN, NAME_STARTS_A_SERVICE))

    metadata: ObjectMeta
    spec: BatchInferenceSpec
    status: BatchInferenceStatus = BatchInferenceStatus()
