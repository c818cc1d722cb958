"""The ScaledObject of a service, where KEDA drives its number of replicas: the same intent, as PromQL queries."""

from __future__ import annotations

import math
from typing import Any, Final

from windlass_contract import metric_names
from windlass_operator.api.v1alpha1.scaling import MetricType, ScalingMetric
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import ServicePlan
from windlass_operator.domain.quantity import parse_quantity
from windlass_operator.domain.scaling import ScalingPlan, Sleep
from windlass_operator.render.autoscaler import render_behavior, target_quantity
from windlass_operator.render.manifest import Manifest, service_child

POLL_S: Final = 15
"""Between two looks of KEDA while nothing runs, and the time after which a failed query counts."""
WINDOW: Final = "1m"


def render_scaled_object(plan: ServicePlan, scaling: ScalingPlan, settings: FleetSettings) -> Manifest:
    """KEDA makes an autoscaler of it, whose behaviour is that of our own."""
    triggers = [_render_trigger(plan, metric, settings) for metric in scaling.metrics]
    if scaling.sleep is Sleep.KEDA:
        triggers.append(_ask(_demand_query(plan), str(scaling.requests_per_replica), settings))
    fallback = {}
    if scaling.fallback is not None and any("serverAddress" in trigger["metadata"] for trigger in triggers):
        failures = max(1, math.ceil(scaling.fallback.after_seconds / POLL_S))
        # More replicas than that may be running: they are kept.
        behavior = "currentReplicasIfHigher"
        fallback = {
            "fallback": {
                "failureThreshold": failures,
                "replicas": scaling.fallback.replicas,
                "behavior": behavior,
            }
        }
    return service_child(
        "keda.sh/v1alpha1",
        "ScaledObject",
        plan.key.name,
        plan,
        spec={
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": plan.key.name},
            "pollingInterval": POLL_S,
            "cooldownPeriod": scaling.scale_down_delay_s,
            "minReplicaCount": scaling.min_replicas,
            "maxReplicaCount": scaling.max_replicas,
            "advanced": {
                # Whoever takes the number over from KEDA finds it as it is.
                "restoreToOriginalReplicaCount": False,
                "horizontalPodAutoscalerConfig": {"behavior": render_behavior(scaling)},
            },
            **fallback,
            "triggers": triggers,
        },
    )


def _render_trigger(plan: ServicePlan, metric: ScalingMetric, settings: FleetSettings) -> dict[str, Any]:
    if metric.type is MetricType.CPU_UTILIZATION:
        return {"type": "cpu", "metricType": "Utilization", "metadata": {"value": str(metric.target)}}
    threshold = f"{float(parse_quantity(target_quantity(metric))):g}"
    return _ask(pod_query(plan, metric.type), threshold, settings)


def _ask(query: str, threshold: str, settings: FleetSettings) -> dict[str, Any]:
    return {
        "type": "prometheus",
        "metadata": {
            "serverAddress": settings.prometheus_url,
            "query": query,
            "threshold": threshold,
            # An empty answer is a failure, not a zero: a fleet must not shrink because nobody was scraped.
            "ignoreNullValues": "false",
        },
    }


def pod_query(plan: ServicePlan, metric: MetricType) -> str:
    """PromQL for the sum over the service's pods; KEDA divides it by their number."""
    of_pods = f'namespace="{plan.key.namespace}",pod=~"{plan.key.name}-[a-z0-9]+-[a-z0-9]{{5}}"'
    match metric:
        case MetricType.TOKENS_PER_SECOND:
            rate = f"sum(rate({metric_names.GENERATED_TOKENS_TOTAL}{{{of_pods}}}[{WINDOW}]))"
            return f"{rate} or 0 * sum({metric_names.REQUESTS_RUNNING}{{{of_pods}}})"
        case MetricType.TIME_TO_FIRST_TOKEN:
            buckets = f"{metric_names.TIME_TO_FIRST_TOKEN}_bucket{{{of_pods}}}"
            quantile = f"histogram_quantile(0.95, sum by (pod, le) (rate({buckets}[{WINDOW}]))) >= 0"
            idle = f"sum by (pod) ({metric_names.REQUESTS_RUNNING}{{{of_pods}}}) == 0"
            return f"sum(({quantile}) or ({idle}))"
        case MetricType.GPU_UTILIZATION:
            return f"sum(avg by (pod) (DCGM_FI_DEV_GPU_UTIL{{{of_pods}}})) / 100"
    return f"sum({_GAUGES[metric]}{{{of_pods}}})"


def _demand_query(plan: ServicePlan) -> str:
    """Prometheus renames a metric's own labels where the target has some of the same name."""
    service = f'namespace="{plan.key.namespace}",service="{plan.key.name}"'
    renamed = f'exported_namespace="{plan.key.namespace}",exported_service="{plan.key.name}"'
    name = metric_names.GATEWAY_DEMAND
    # A gateway that is scraped and shows no demand has none; one that is not scraped is a failure.
    any_gateway = f"0 * sum({metric_names.GATEWAY_IN_FLIGHT})"
    return f"sum({name}{{{service}}} or {name}{{{renamed}}}) or {any_gateway}"


_GAUGES: Final = {
    MetricType.QUEUE_DEPTH: metric_names.REQUESTS_WAITING,
    MetricType.RUNNING_REQUESTS: metric_names.REQUESTS_RUNNING,
    MetricType.CACHE_USE: metric_names.KV_USE_RATIO,
}
