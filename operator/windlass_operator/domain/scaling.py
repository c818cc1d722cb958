"""Decide how many replicas run, who owns that number, and what they do while nothing is known or nobody asks."""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass
from typing import Final

from windlass_operator.api.meta import Condition
from windlass_operator.api.v1alpha1.inference_service import InferenceServiceSpec, InferenceServiceStatus
from windlass_operator.api.v1alpha1.scaling import Fallback, MetricType, Scaling, ScalingMetric
from windlass_operator.domain.capabilities import Capabilities
from windlass_operator.domain.decision import Decision, Refusal, decide
from windlass_operator.domain.fleet import FleetSettings, Platform
from windlass_operator.domain.schedule import unknown_time_zones

METRICS_LOST: Final = "AutoscalerProblem"
"""Reason of the condition ScalingActive while the autoscaler cannot act."""
SCALE_UP_PERIODS_S: Final = (60, 120, 300, 600, 1200, 1800)
"""Steps, so that a start that takes a second longer changes nothing; 1800 is the most an autoscaler takes."""


class Scaler(enum.StrEnum):
    """Which object drives the number of replicas."""

    AUTOSCALER = "HorizontalPodAutoscaler"
    SCALED_OBJECT = "ScaledObject"


class Sleep(enum.StrEnum):
    """Who takes the last replica away, and starts the first one."""

    NEVER = "Never"
    AUTOSCALER = "Autoscaler"
    KEDA = "KEDA"
    OPERATOR = "Operator"
    """The autoscaler knows no zero: it rests while the operator keeps the number at 0."""


@dataclass(frozen=True, slots=True)
class ScalingPlan:
    """What the autoscaler is told."""

    min_replicas: int
    """0 where the service may sleep."""
    max_replicas: int
    """The user's maximum, or less where the tenant's quota ends earlier."""
    metrics: tuple[ScalingMetric, ...]
    scale_down_delay_s: int
    scaler: Scaler = Scaler.AUTOSCALER
    sleep: Sleep = Sleep.NEVER
    requests_per_replica: int = 64
    """How many held requests start one replica."""
    scale_up_period_s: int = 60
    """Replicas started within this time count against the next growth: they are capacity that comes."""
    tolerance_percent: int | None = None
    """None: the cluster's own."""
    fallback: Fallback | None = None
    falls_back: bool = False
    """Whether `min_replicas` is that of the fallback now."""


@dataclass(frozen=True, slots=True)
class ReplicaRange:
    """How many replicas a spec asks for."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class ScalerChoice:
    """Who drives the number, and why."""

    scaler: Scaler
    reason: str


def check_scaling(spec: InferenceServiceSpec) -> Refusal | None:
    """Refuse what the schema's rules forbid too, for objects that never passed them, and zones nobody knows."""
    if spec.scaling is None:
        return None
    if spec.replicas is not None:
        return Refusal(
            "ConflictingReplicas",
            f"spec.replicas {spec.replicas} and spec.scaling are both set, one may own the number",
            "Remove spec.replicas or spec.scaling",
        )
    if spec.scaling.min_replicas > spec.scaling.max_replicas:
        return Refusal(
            "InvalidScaling",
            f"spec.scaling.minReplicas {spec.scaling.min_replicas} is above maxReplicas {spec.scaling.max_replicas}",
            "Lower minReplicas or raise maxReplicas",
        )
    unknown = unknown_time_zones(spec.scaling)
    if unknown:
        return Refusal(
            "UnknownTimeZone",
            f"spec.scaling.schedules: expected time zones of the IANA database, found {', '.join(unknown)}",
            "Name a zone such as Europe/Berlin or Etc/UTC",
        )
    return None


def replica_range(spec: InferenceServiceSpec, platform: Platform) -> ReplicaRange:
    """Read the wanted number of replicas from a spec."""
    if spec.suspend:
        return ReplicaRange(0, 0)
    if spec.scaling is None:
        fixed = 1 if spec.replicas is None else spec.replicas
        return ReplicaRange(fixed, fixed)
    if platform is Platform.LOCAL:
        return ReplicaRange(spec.scaling.min_replicas, spec.scaling.min_replicas)
    return ReplicaRange(spec.scaling.min_replicas, spec.scaling.max_replicas)


def plan_scaling(
    spec: InferenceServiceSpec,
    granted: int,
    settings: FleetSettings,
    capabilities: Capabilities,
    *,
    startup_s: int = 0,
    metrics_lost_s: float | None = None,
) -> ScalingPlan | None:
    """Hand the number to an autoscaler, within what the quota grants; None where a fixed number holds.

    `startup_s`: how long a replica takes to start, as measured. `metrics_lost_s`: for how long the autoscaler has
    lacked its metrics; None while it has them.
    """
    if spec.scaling is None or spec.suspend or settings.platform is Platform.LOCAL or granted == 0:
        return None
    scaling = spec.scaling
    most = min(scaling.max_replicas, granted)
    least = min(scaling.min_replicas, granted)
    falls_back = is_fallback_due(scaling.fallback, metrics_lost_s)
    scaler = choose_scaler(settings, capabilities).scaler
    if scaling.fallback is not None and falls_back:
        least = max(least, min(scaling.fallback.replicas, most))
    return ScalingPlan(
        least,
        most,
        tuple(scaling.metrics),
        scaling.scale_down_delay_seconds,
        scaler=scaler,
        sleep=choose_sleep(scaling, scaler, capabilities),
        requests_per_replica=requests_per_replica(scaling, spec.limits.max_running_requests),
        scale_up_period_s=choose_scale_up_period(startup_s),
        tolerance_percent=scaling.tolerance_percent if capabilities.knows_tolerance else None,
        fallback=scaling.fallback,
        falls_back=falls_back,
    )


def choose_scaler(settings: FleetSettings, capabilities: Capabilities) -> ScalerChoice:
    """Our own adapter first, since it needs nothing else; KEDA where it has a Prometheus to ask."""
    custom = capabilities.custom_metrics
    keda_works = capabilities.has_keda and bool(settings.prometheus_url)
    if settings.autoscaler == Scaler.SCALED_OBJECT and keda_works:
        return ScalerChoice(
            Scaler.SCALED_OBJECT, f"the operator's settings name it; KEDA asks {settings.prometheus_url}"
        )
    if settings.autoscaler == Scaler.AUTOSCALER:
        return ScalerChoice(Scaler.AUTOSCALER, f"the operator's settings name it; {_whose(capabilities)}")
    if custom.ours or not keda_works:
        return ScalerChoice(Scaler.AUTOSCALER, f"{_whose(capabilities)}{_why_not_keda(settings, capabilities)}")
    return ScalerChoice(
        Scaler.SCALED_OBJECT,
        f"the cluster has KEDA, which asks {settings.prometheus_url}, and {_whose(capabilities)}",
    )


def _whose(capabilities: Capabilities) -> str:
    owner = capabilities.custom_metrics
    if owner.ours:
        return f"custom.metrics.k8s.io is served by our metrics adapter {owner.service}"
    if owner.service:
        return (
            f"custom.metrics.k8s.io is served by {owner.service}, which needs the rules that "
            "`windlass metrics-adapter rules` prints"
        )
    return "nobody serves custom.metrics.k8s.io: install the chart with metricsAdapter.enabled"


def _why_not_keda(settings: FleetSettings, capabilities: Capabilities) -> str:
    if capabilities.has_keda and not capabilities.custom_metrics.ours and not settings.prometheus_url:
        return "; not KEDA: the operator's setting prometheusUrl names no Prometheus for it"
    return ""


def choose_sleep(scaling: Scaling, scaler: Scaler, capabilities: Capabilities) -> Sleep:
    """Who scales to zero: the autoscaler where it can and our adapter tells it of held requests."""
    if scaling.min_replicas > 0:
        return Sleep.NEVER
    if scaler is Scaler.SCALED_OBJECT:
        return Sleep.KEDA
    return Sleep.AUTOSCALER if capabilities.scales_to_zero and capabilities.custom_metrics.ours else Sleep.OPERATOR


def requests_per_replica(scaling: Scaling, max_running_requests: int) -> int:
    """How many requests one replica is started for: the target of RunningRequests, else what it computes at once."""
    targets = [metric.target for metric in scaling.metrics if metric.type is MetricType.RUNNING_REQUESTS]
    return min([*targets, max_running_requests])


def choose_scale_up_period(startup_s: int) -> int:
    """Return the time within which growth is bounded: not shorter than a replica takes to start.

    A queue goes on growing while replicas load. Without this bound each look at it would start more of them.
    """
    return next((step for step in SCALE_UP_PERIODS_S if step >= startup_s), SCALE_UP_PERIODS_S[-1])


def is_fallback_due(fallback: Fallback | None, metrics_lost_s: float | None) -> bool:
    """Whether metrics have been away for so long that the fallback holds."""
    return fallback is not None and metrics_lost_s is not None and metrics_lost_s >= fallback.after_seconds


def metrics_lost_since(status: InferenceServiceStatus) -> datetime.datetime | None:
    """Return since when the autoscaler cannot act, by the service's own status; None while it can."""
    lost = next((item for item in status.conditions if _tells_of_loss(item)), None)
    if lost is None or not lost.last_transition_time:
        return None
    return datetime.datetime.fromisoformat(lost.last_transition_time)


def fallback_due_at(
    scaling: Scaling | None, status: InferenceServiceStatus, now: datetime.datetime
) -> datetime.datetime | None:
    """Return when the fallback begins to hold; None where it holds already, or will not."""
    since = metrics_lost_since(status)
    if scaling is None or scaling.fallback is None or since is None:
        return None
    due = since + datetime.timedelta(seconds=scaling.fallback.after_seconds)
    return due if due > now else None


def _tells_of_loss(condition: Condition) -> bool:
    return (condition.type, condition.status, condition.reason) == ("ScalingActive", "False", METRICS_LOST)


def explain_replicas(
    spec: InferenceServiceSpec, scaling: ScalingPlan | None, replicas: int, platform: Platform, schedule: str = ""
) -> Decision:
    """Say how many replicas run and who decides; `schedule`: which hours hold, in words."""
    if spec.suspend:
        return decide("replicas", "0", "spec.suspend is true")
    if scaling is not None:
        metrics = ", ".join(f"{metric.type.value} {metric.target}" for metric in scaling.metrics)
        more = [f"; {words}" for words in (schedule, _explain_sleep(scaling), _explain_fallback(scaling)) if words]
        return decide(
            "replicas",
            f"{scaling.min_replicas} to {scaling.max_replicas}",
            f"an autoscaler owns the number and aims at "
            f"{metrics} per replica; lower demand must last {scaling.scale_down_delay_s} s before it shrinks"
            + "".join(more),
        )
    if spec.scaling is not None and platform is Platform.LOCAL:
        asleep = ", and as many as waiting requests need once somebody asks" if spec.scaling.min_replicas == 0 else ""
        reason = f"spec.scaling needs a cluster's autoscaler; this machine runs minReplicas{asleep}"
        return decide("replicas", str(replicas), reason)
    if spec.scaling is not None:
        return decide("replicas", str(replicas), "the tenant's quota has no room for a replica now")
    return decide("replicas", str(replicas), "spec.replicas" if spec.replicas is not None else "the default")


def _explain_sleep(scaling: ScalingPlan) -> str:
    if scaling.sleep is Sleep.NEVER:
        return ""
    who = {Sleep.AUTOSCALER: "the autoscaler", Sleep.KEDA: "KEDA", Sleep.OPERATOR: "the operator"}[scaling.sleep]
    return (
        f"{who} takes the last replica away when nobody asks; the gateway holds requests meanwhile, "
        f"and {scaling.requests_per_replica} of them start one replica"
    )


def _explain_fallback(scaling: ScalingPlan) -> str:
    if not scaling.falls_back or scaling.fallback is None:
        return ""
    return f"metrics are missing, so at least {scaling.min_replicas} run as spec.scaling.fallback says"


def explain_scaler(settings: FleetSettings, capabilities: Capabilities) -> Decision:
    """Say which object drives the number, as discovery found the cluster."""
    choice = choose_scaler(settings, capabilities)
    return decide("autoscaler", choice.scaler.value, choice.reason)
