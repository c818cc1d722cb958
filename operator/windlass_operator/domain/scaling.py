"""Decide how many replicas run and who owns that number."""

from __future__ import annotations

from dataclasses import dataclass

from windlass_operator.api.v1alpha1.inference_service import InferenceServiceSpec, ScalingMetric
from windlass_operator.domain.decision import Decision, Refusal, decide
from windlass_operator.domain.fleet import Platform


@dataclass(frozen=True, slots=True)
class ScalingPlan:
    """What the autoscaler is told."""

    min_replicas: int
    max_replicas: int
    """The user's maximum, or less where the tenant's quota ends earlier."""
    metrics: tuple[ScalingMetric, ...]
    scale_down_delay_s: int


@dataclass(frozen=True, slots=True)
class ReplicaRange:
    """How many replicas a spec asks for."""

    least: int
    most: int


def check_scaling(spec: InferenceServiceSpec) -> Refusal | None:
    """Refuse what the schema's rules forbid too, for objects that never passed them."""
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


def plan_scaling(spec: InferenceServiceSpec, granted: int, platform: Platform) -> ScalingPlan | None:
    """Hand the number to an autoscaler, within what the quota grants; None where a fixed number holds."""
    if spec.scaling is None or spec.suspend or platform is Platform.LOCAL or granted == 0:
        return None
    return ScalingPlan(
        min(spec.scaling.min_replicas, granted),
        min(spec.scaling.max_replicas, granted),
        tuple(spec.scaling.metrics),
        spec.scaling.scale_down_delay_seconds,
    )


def explain_replicas(
    spec: InferenceServiceSpec, scaling: ScalingPlan | None, replicas: int, platform: Platform
) -> Decision:
    """Say how many replicas run and who decides."""
    if spec.suspend:
        return decide("replicas", "0", "spec.suspend is true")
    if scaling is not None:
        metrics = ", ".join(f"{metric.type.value} {metric.target}" for metric in scaling.metrics)
        return decide(
            "replicas",
            f"{scaling.min_replicas} to {scaling.max_replicas}",
            f"an autoscaler owns the number and aims at "
            f"{metrics} per replica; lower demand must last {scaling.scale_down_delay_s} s before it shrinks",
        )
    if spec.scaling is not None and platform is Platform.LOCAL:
        return decide(
            "replicas", str(replicas), "spec.scaling needs a cluster's autoscaler; this machine runs minReplicas"
        )
    return decide("replicas", str(replicas), "spec.replicas" if spec.replicas is not None else "the default")
