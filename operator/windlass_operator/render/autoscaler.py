"""The HorizontalPodAutoscaler of a service."""

from __future__ import annotations

from typing import Any, Final

from windlass_contract import metric_names
from windlass_operator.api.meta import API_VERSION
from windlass_operator.api.v1alpha1.scaling import MetricType, ScalingMetric
from windlass_operator.domain.plan import ServicePlan
from windlass_operator.domain.quantity import canonical_quantity
from windlass_operator.domain.scaling import ScalingPlan, Sleep
from windlass_operator.render.manifest import Manifest, service_child

POD_METRICS: Final = {
    MetricType.QUEUE_DEPTH: metric_names.REQUESTS_WAITING,
    MetricType.RUNNING_REQUESTS: metric_names.REQUESTS_RUNNING,
    MetricType.CACHE_USE: metric_names.KV_USE_RATIO,
    MetricType.TOKENS_PER_SECOND: metric_names.GENERATED_TOKENS_PER_SECOND,
    MetricType.TIME_TO_FIRST_TOKEN: metric_names.TIME_TO_FIRST_TOKEN_P95,
    MetricType.GPU_UTILIZATION: metric_names.GPU_USE_RATIO,
}
_DIVISORS: Final = {MetricType.CACHE_USE: 100, MetricType.GPU_UTILIZATION: 100, MetricType.TIME_TO_FIRST_TOKEN: 1000}
"""What users write is this many times what is exported: percent against ratios, milliseconds against seconds."""


def render_autoscaler(plan: ServicePlan, scaling: ScalingPlan) -> Manifest:
    """Grows at once, by its own size or four pods a minute at most; shrinks after the delay, by half at most."""
    metrics = [_render_metric(metric) for metric in scaling.metrics]
    if scaling.sleep is Sleep.AUTOSCALER:
        metrics.append(_render_demand(plan, scaling))
    return service_child(
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        plan.key.name,
        plan,
        spec={
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": plan.key.name},
            # An autoscaler that takes no minimum of 0 rests while the operator keeps the number there.
            "minReplicas": scaling.min_replicas if scaling.sleep is Sleep.AUTOSCALER else max(1, scaling.min_replicas),
            "maxReplicas": scaling.max_replicas,
            "metrics": metrics,
            "behavior": render_behavior(scaling),
        },
    )


def render_behavior(scaling: ScalingPlan) -> Manifest:
    """How fast the number may move; the same for every scaler, for all of them end in an autoscaler."""
    tolerance: dict[str, Any] = {}
    if scaling.tolerance_percent is not None:
        tolerance = {"tolerance": canonical_quantity(f"{scaling.tolerance_percent * 10}m")}
    period_s = scaling.scale_up_period_s
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "selectPolicy": "Max",
            "policies": [
                {"type": "Percent", "value": 100, "periodSeconds": period_s},
                {"type": "Pods", "value": 4, "periodSeconds": period_s},
            ],
            **tolerance,
        },
        "scaleDown": {
            "stabilizationWindowSeconds": scaling.scale_down_delay_s,
            "selectPolicy": "Max",
            "policies": [{"type": "Percent", "value": 50, "periodSeconds": 60}],
            **tolerance,
        },
    }


def target_quantity(metric: ScalingMetric) -> str:
    """Return the target in the unit that is exported: 80 percent become 800m."""
    divisor = _DIVISORS.get(metric.type, 1)
    return canonical_quantity(f"{metric.target * (1000 // divisor)}m" if divisor > 1 else str(metric.target))


def _render_metric(metric: ScalingMetric) -> dict[str, Any]:
    if metric.type is MetricType.CPU_UTILIZATION:
        return {
            "type": "Resource",
            "resource": {
                "name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": metric.target},
            },
        }
    return {
        "type": "Pods",
        "pods": {
            "metric": {"name": POD_METRICS[metric.type]},
            "target": {"type": "AverageValue", "averageValue": target_quantity(metric)},
        },
    }


def _render_demand(plan: ServicePlan, scaling: ScalingPlan) -> dict[str, Any]:
    """Requests of the whole service: the one metric that exists without a pod."""
    return {
        "type": "Object",
        "object": {
            "describedObject": {"apiVersion": API_VERSION, "kind": "InferenceService", "name": plan.key.name},
            "metric": {"name": metric_names.SERVICE_DEMAND},
            "target": {"type": "AverageValue", "averageValue": str(scaling.requests_per_replica)},
        },
    }
