"""`spec.scaling` of an InferenceService: what its number of replicas follows, and within which bounds."""

from __future__ import annotations

import enum
from typing import Annotated, Final

from pydantic import ConfigDict, Field

from windlass_operator.api.meta import ApiModel, DnsLabel
from windlass_operator.api.patterns import TIME_OF_DAY, TIME_ZONE
from windlass_operator.api.rules import constrained, rule

MAX_REPLICAS: Final = 1000

PERCENT_IS_AT_MOST_100: Final = rule(
    "!(self.type in ['CacheUse', 'CPUUtilization', 'GPUUtilization']) || self.target <= 100",
    "at most 100 percent",
    found="string(self.target)",
    field=".target",
)
SCALING_HAS_ROOM: Final = rule(
    "self.maxReplicas >= self.minReplicas",
    "at least minReplicas",
    found="string(self.maxReplicas) + ' below ' + string(self.minReplicas)",
    field=".maxReplicas",
)
SCHEDULES_HAVE_ROOM: Final = rule(
    "!has(self.schedules) || self.schedules.all(item, "
    "(has(item.maxReplicas) ? item.maxReplicas : self.maxReplicas)"
    " >= (has(item.minReplicas) ? item.minReplicas : self.minReplicas))",
    "schedules whose minReplicas is at most their maxReplicas; one that is not set is that of scaling",
    found="string(self.schedules.filter(item, (has(item.maxReplicas) ? item.maxReplicas : self.maxReplicas)"
    " < (has(item.minReplicas) ? item.minReplicas : self.minReplicas))[0].name)",
    field=".schedules",
)
SCHEDULE_CHANGES_SOMETHING: Final = rule(
    "has(self.minReplicas) || has(self.maxReplicas)", "minReplicas or maxReplicas", found="'neither'"
)
FALLBACK_HAS_ROOM: Final = rule(
    "!has(self.fallback) || self.fallback.replicas <= self.maxReplicas",
    "at most maxReplicas",
    found="string(self.fallback.replicas) + ' above ' + string(self.maxReplicas)",
    field=".fallback.replicas",
)
ZERO_NEEDS_A_METRIC_THAT_ENDS: Final = rule(
    "self.metrics.all(item, !(item.type in ['CPUUtilization', 'GPUUtilization']))"
    " || (self.minReplicas > 0 && (!has(self.schedules)"
    " || self.schedules.all(item, !has(item.minReplicas) || item.minReplicas > 0)))",
    "metrics other than CPUUtilization and GPUUtilization with minReplicas 0, because a replica without requests"
    " uses some of both",
    found="string(self.metrics.filter(item, item.type in ['CPUUtilization', 'GPUUtilization'])[0].type)",
    field=".metrics",
)


class MetricType(enum.StrEnum):
    """What a replica count follows."""

    QUEUE_DEPTH = "QueueDepth"
    RUNNING_REQUESTS = "RunningRequests"
    CACHE_USE = "CacheUse"
    TOKENS_PER_SECOND = "TokensPerSecond"
    TIME_TO_FIRST_TOKEN = "TimeToFirstToken"
    GPU_UTILIZATION = "GPUUtilization"
    CPU_UTILIZATION = "CPUUtilization"


class Weekday(enum.StrEnum):
    """A day of the week, in the schedule's time zone."""

    MONDAY = "Monday"
    TUESDAY = "Tuesday"
    WEDNESDAY = "Wednesday"
    THURSDAY = "Thursday"
    FRIDAY = "Friday"
    SATURDAY = "Saturday"
    SUNDAY = "Sunday"


class ScalingMetric(ApiModel):
    """One metric and the value per replica to aim at."""

    model_config = ConfigDict(json_schema_extra=constrained(PERCENT_IS_AT_MOST_100))

    type: Annotated[
        MetricType,
        Field(
            description="QueueDepth: requests waiting. RunningRequests: requests computed. CacheUse: key/value pages "
            "in use. TokensPerSecond: tokens generated. TimeToFirstToken: 95th percentile over the last minute. "
            "GPUUtilization: as the exporter of the GPUs reports it to Prometheus. CPUUtilization: processor time "
            "against the request.",
        ),
    ]
    target: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000,
            description="Average per replica: requests for QueueDepth and RunningRequests, percent (at most 100) for "
            "CacheUse, GPUUtilization and CPUUtilization, tokens per second for TokensPerSecond, milliseconds for "
            "TimeToFirstToken.",
        ),
    ]


class Schedule(ApiModel):
    """Other bounds at certain hours. Hours are wall-clock time of the zone, through changes to summer time too."""

    model_config = ConfigDict(json_schema_extra=constrained(SCHEDULE_CHANGES_SOMETHING))

    name: Annotated[DnsLabel, Field(description="Name of the schedule; status names the one that holds.")]
    time_zone: Annotated[
        str,
        Field(
            max_length=64, pattern=TIME_ZONE, description="Zone of the IANA database, such as Europe/Berlin or Etc/UTC."
        ),
    ]
    days: Annotated[
        list[Weekday],
        Field(
            max_length=7,
            description="Days on which it begins; empty means every day.",
            json_schema_extra=constrained(list_type="set"),
        ),
    ] = Field(default_factory=list)
    start: Annotated[str, Field(max_length=5, pattern=TIME_OF_DAY, description="When it begins, such as 08:00.")]
    end: Annotated[
        str,
        Field(
            max_length=5,
            pattern=TIME_OF_DAY,
            description="When it ends; at or before start means on the next day.",
        ),
    ]
    min_replicas: Annotated[
        int | None, Field(ge=0, le=MAX_REPLICAS, description="minReplicas meanwhile. Unset: that of scaling.")
    ] = None
    max_replicas: Annotated[
        int | None, Field(ge=1, le=MAX_REPLICAS, description="maxReplicas meanwhile. Unset: that of scaling.")
    ] = None


class Fallback(ApiModel):
    """What to run when metrics stay away. A fleet never shrinks for want of them."""

    replicas: Annotated[
        int,
        Field(ge=1, le=MAX_REPLICAS, description="Replicas at least until metrics are back; more that run are kept."),
    ]
    after_seconds: Annotated[
        int, Field(ge=0, le=86_400, description="How long metrics must be missing; until then the number is held.")
    ] = 180


class Hold(ApiModel):
    """How the gateway treats requests while no replica runs."""

    timeout_seconds: Annotated[
        int,
        Field(ge=1, le=3600, description="How long a request may wait for a replica; then 503 with Retry-After."),
    ] = 300
    max_requests: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="Requests that may wait in each gateway; one more is answered 503 with Retry-After.",
        ),
    ] = 256


class Scaling(ApiModel):
    """Metric-driven replica count. While set, the autoscaler owns the number of replicas."""

    model_config = ConfigDict(
        json_schema_extra=constrained(
            SCALING_HAS_ROOM, SCHEDULES_HAVE_ROOM, FALLBACK_HAS_ROOM, ZERO_NEEDS_A_METRIC_THAT_ENDS
        )
    )

    min_replicas: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_REPLICAS,
            description="Replicas that stay without demand. With 0 the gateway holds requests until one runs.",
        ),
    ] = 1
    max_replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS, description="Replicas at most, whatever the demand.")]
    metrics: Annotated[
        list[ScalingMetric],
        Field(
            min_length=1,
            max_length=7,
            description="What the number follows; the metric that asks for most wins.",
            json_schema_extra=constrained(list_type="map", keys=("type",)),
        ),
    ] = Field(default=[ScalingMetric(type=MetricType.QUEUE_DEPTH, target=4)])
    scale_down_delay_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=3600,
            description="How long a lower demand must last.",
        ),
    ] = 300
    tolerance_percent: Annotated[
        int | None,
        Field(
            ge=0,
            le=100,
            description="How far a metric may be from its target without a change. Unset, and on clusters that do not "
            "know it: 10.",
        ),
    ] = None
    schedules: Annotated[
        list[Schedule],
        Field(
            max_length=16,
            description="Other bounds at certain hours; where several hold, the first counts.",
            json_schema_extra=constrained(list_type="map", keys=("name",)),
        ),
    ] = Field(default_factory=list)
    fallback: Fallback | None = None
    hold: Hold = Hold()
