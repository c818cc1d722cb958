"""Decide how many replicas run and who owns that number."""

from __future__ import annotations

from dataclasses import dataclass

from windlass_operator.api.v1alpha1.inference_service import ScalingMetric


@dataclass(frozen=True, slots=True)
class ScalingPlan:
    """What the autoscaler is told."""

    min_replicas: int
    max_replicas: int
    """The user's maximum, or less where the tenant's quota ends earlier."""
    metrics: tuple[ScalingMetric, ...]
    scale_down_delay_s: int
