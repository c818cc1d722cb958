"""The HorizontalPodAutoscaler of a service."""

from __future__ import annotations

from typing import Any, Final

from windlass_contract import metric_names
from windlass_operator.api.v1alpha1.inference_service import MetricType, ScalingMetric
from windlass_operator.domain.plan import ServicePlan
from windlass_operator.domain.quantity import canonical_quantity
from windlass_operator.domain.scaling import ScalingPlan
from windlass_operator.render.manifest import Manifest, service_child

_POD_METRICS: Final = {
    MetricType.QUEUE_DEPTH: metric_names.REQUESTS_WAITING,
    MetricType.RUNNING_REQUESTS: metric_names.REQUESTS_RUNNING,
    MetricType.CACHE_USE: metric_names.KV_USE_RATIO,
}


def render_autoscaler(plan: ServicePlan, scaling: ScalingPlan) -> Manifest:
    """Grows at once, by its own size or four pods a minute at most; shrinks after the delay, by half at most."""
    return service_child(
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        plan.key.name,
        plan,
        spec={
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": plan.key.name},
            "minReplicas": scaling.min_replicas,
            "maxReplicas": scaling.max_replicas,
            "metrics": [_render_metric(metric) for metric in scaling.metrics],
            "behavior": {
                "scaleUp": {
                    "stabilizationWindowSeconds": 0,
                    "selectPolicy": "Max",
                    "policies": [
                        {"type": "Percent", "value": 100, "periodSeconds": 60},
                        {"type": "Pods", "value": 4, "periodSeconds": 60},
                    ],
                },
                "scaleDown": {
                    "stabilizationWindowSeconds": scaling.scale_down_delay_s,
                    "selectPolicy": "Max",
                    "policies": [{"type": "Percent", "value": 50, "periodSeconds": 60}],
                },
            },
        },
    )


def _render_metric(metric: ScalingMetric) -> dict[str, Any]:
    if metric.type is MetricType.CPU_UTILIZATION:
        return {
            "type": "Resource",
            "resource": {
                "name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": metric.target},
            },
        }
    # A share is given in percent and exported as a ratio: 80 becomes 800m.
    value = f"{metric.target * 10}m" if metric.type is MetricType.CACHE_USE else str(metric.target)
    return {
        "type": "Pods",
        "pods": {
            "metric": {"name": _POD_METRICS[metric.type]},
            "target": {"type": "AverageValue", "averageValue": canonical_quantity(value)},
        },
    }
