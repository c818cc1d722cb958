"""Canaries of an InferenceService: how they are judged, and what became of them. What they change is in the kind."""

from __future__ import annotations

import enum
from typing import Annotated, Final

from pydantic import ConfigDict, Field

from windlass_operator.api.meta import ApiModel
from windlass_operator.api.rules import constrained, rule

MOST_CANARIES: Final = 4


class CanaryMetricType(enum.StrEnum):
    """What a canary is judged by."""

    ERROR_RATE = "ErrorRate"
    TIME_TO_FIRST_TOKEN = "TimeToFirstToken"
    TOKENS_PER_SECOND = "TokensPerSecond"
    QUALITY_PROBE = "QualityProbe"


class Comparison(enum.StrEnum):
    """What a threshold is measured from."""

    ABSOLUTE = "Absolute"
    STABLE = "Stable"


class CanaryPhase(enum.StrEnum):
    """How far a canary is."""

    PENDING = "Pending"
    """Not ready yet: no traffic."""
    RUNNING = "Running"
    """Takes its traffic; nobody judges it."""
    ANALYSING = "Analysing"
    SUCCEEDED = "Succeeded"
    """Passed; it goes on running and being judged until somebody promotes or removes it."""
    ABORTED = "Aborted"
    """Failed: no traffic, no replicas, until its spec changes."""


class Verdict(enum.StrEnum):
    """What one check found."""

    PASSED = "Passed"
    FAILED = "Failed"
    NO_DATA = "NoData"
    """Too few requests, or nobody who could tell: neither good nor bad."""


PERCENTAGES_END_AT_100: Final = rule(
    "!(self.type in ['ErrorRate', 'QualityProbe']) || self.threshold <= 100",
    "at most 100 percent",
    found="string(self.threshold)",
    field=".threshold",
)
PROBES_COMPARE_THEMSELVES: Final = rule(
    "self.type != 'QualityProbe' || !has(self.comparison) || self.comparison == 'Absolute'",
    "no comparison with QualityProbe, which compares with the stable revision by itself",
    field=".comparison",
)
STEPS_ARE_DISTINCT: Final = rule(
    "!has(self.steps) || self.steps.all(step, self.steps.exists_one(other, other == step))",
    "each share once",
    found="'one share twice'",
    field=".steps",
)
PROBES_HAVE_PROMPTS: Final = rule(
    "self.metrics.all(metric, metric.type != 'QualityProbe') || (has(self.prompts) && self.prompts.size() > 0)",
    "prompts for the metric QualityProbe",
    found="'none'",
    field=".prompts",
)


class CanaryMetric(ApiModel):
    """One measure and the bound it has to keep."""

    model_config = ConfigDict(json_schema_extra=constrained(PERCENTAGES_END_AT_100, PROBES_COMPARE_THEMSELVES))

    type: Annotated[
        CanaryMetricType,
        Field(
            description="ErrorRate: percent of requests that fail. TimeToFirstToken: 95th percentile in milliseconds. "
            "TokensPerSecond: mean speed of one stream. QualityProbe: percent of the stable revision's words that the "
            "canary repeats when both are asked the same prompts.",
        ),
    ]
    threshold: Annotated[
        int,
        Field(
            ge=0,
            le=1_000_000,
            description="Absolute: most percent or milliseconds for ErrorRate and TimeToFirstToken, fewest tokens per "
            "second or percent for TokensPerSecond and QualityProbe. Stable: percentage points (ErrorRate) or percent "
            "(others) by which the canary may be worse.",
        ),
    ]
    comparison: Annotated[
        Comparison | None,
        Field(description="Absolute, also when unset: the value itself. Stable: the stable revision at that time."),
    ] = None


class CanaryAnalysis(ApiModel):
    """Judge the canary in intervals, and abort it when it is worse than allowed. No data is neither good nor bad."""

    model_config = ConfigDict(json_schema_extra=constrained(STEPS_ARE_DISTINCT, PROBES_HAVE_PROMPTS))

    metrics: Annotated[
        list[CanaryMetric],
        Field(
            min_length=1,
            max_length=4,
            description="All of them have to hold.",
            json_schema_extra=constrained(list_type="map", keys=("type",)),
        ),
    ]
    interval_seconds: Annotated[
        int | None,
        Field(ge=5, le=3600, description="Time between two checks, and the time each looks back; 60 when unset."),
    ] = None
    start_delay_seconds: Annotated[
        int | None, Field(ge=0, le=3600, description="Time from ready to the first check; one interval when unset.")
    ] = None
    deadline_seconds: Annotated[
        int | None,
        Field(
            ge=10,
            le=604_800,
            description="Time from ready within which all checks have to pass, else the canary is aborted; 3600 when "
            "unset.",
        ),
    ] = None
    failure_limit: Annotated[
        int | None,
        Field(ge=1, le=100, description="Failed checks in a row that abort the canary; 2 when unset."),
    ] = None
    passes: Annotated[
        int | None,
        Field(ge=1, le=1000, description="Passed checks that complete a step, and the analysis; 5 when unset."),
    ] = None
    min_requests: Annotated[
        int | None,
        Field(ge=1, le=1_000_000, description="Requests in an interval below which there is no data; 20 when unset."),
    ] = None
    steps: Annotated[
        list[Annotated[int, Field(ge=1, le=100, json_schema_extra={"format": "int32"})]],
        Field(
            max_length=10,
            description="Shares of the traffic to go through before trafficPercent, in percent and in rising order.",
            json_schema_extra=constrained(list_type="atomic"),
        ),
    ] = Field(default_factory=list)
    prompts: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1024)]],
        Field(
            max_length=16,
            description="What QualityProbe asks both revisions, at temperature 0.",
            json_schema_extra=constrained(list_type="atomic"),
        ),
    ] = Field(default_factory=list)


class CanaryMeasure(ApiModel):
    """One metric at the newest check."""

    type: Annotated[CanaryMetricType, Field(description="What was measured.")]
    verdict: Annotated[Verdict, Field(description="Passed, Failed or NoData.")]
    value: Annotated[str, Field(max_length=32, description="The canary's, a decimal; empty without data.")] = ""
    stable: Annotated[str, Field(max_length=32, description="The stable revision's, where it was measured.")] = ""
    bound: Annotated[str, Field(max_length=32, description="What the value had to keep.")] = ""
    samples: Annotated[int, Field(description="Requests or prompts of the canary behind the value.")] = 0


class CanaryAnalysisStatus(ApiModel):
    """How the analysis stands."""

    since: Annotated[str, Field(max_length=32, description="When the canary became ready, RFC 3339.")] = ""
    checked: Annotated[str, Field(max_length=32, description="When it was last checked, RFC 3339.")] = ""
    step: Annotated[int, Field(description="Steps completed.")] = 0
    passed: Annotated[int, Field(description="Passed checks in this step.")] = 0
    failed: Annotated[int, Field(description="Failed checks in a row.")] = 0
    measures: Annotated[
        list[CanaryMeasure],
        Field(
            max_length=4,
            description="What the newest check found.",
            json_schema_extra=constrained(list_type="atomic"),
        ),
    ] = Field(default_factory=list)


class CanaryStatus(ApiModel):
    """What became of one canary."""

    name: Annotated[str, Field(max_length=63, description="Its name.")]
    phase: Annotated[CanaryPhase, Field(description="Pending, Running, Analysing, Succeeded or Aborted.")] = (
        CanaryPhase.PENDING
    )
    traffic_percent: Annotated[int, Field(description="Share of the traffic it gets now.")] = 0
    replicas: Annotated[int, Field(description="Pods that exist.")] = 0
    ready_replicas: Annotated[int, Field(description="Pods that serve.")] = 0
    accelerator_class: Annotated[str, Field(max_length=63, description="GPUClass in use; empty on CPUs.")] = ""
    reason: Annotated[str, Field(max_length=128, description="One word for machines.")] = ""
    message: Annotated[str, Field(max_length=1024, description="One sentence for people.")] = ""
    spec_hash: Annotated[
        str, Field(max_length=64, description="The spec that was judged; another one starts anew.")
    ] = ""
    analysis: CanaryAnalysisStatus | None = None
