"""The PodDisruptionBudget of a service."""

from __future__ import annotations

from windlass_operator.domain.plan import ServicePlan
from windlass_operator.render.manifest import Manifest, service_child


def render_disruption_budget(plan: ServicePlan) -> Manifest:
    """A budget that never protects broken pods: those may always be evicted."""
    return service_child(
        "policy/v1",
        "PodDisruptionBudget",
        plan.key.name,
        plan,
        spec={
            "minAvailable": plan.rollout.min_available,
            "selector": {"matchLabels": plan.selector},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    )
