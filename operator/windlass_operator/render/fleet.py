"""Objects a fleet needs once: the PriorityClasses of the three tiers."""

from __future__ import annotations

from windlass_operator.api.v1alpha1.inference_service import Tier
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.priority import priority_class_of
from windlass_operator.render.manifest import Manifest, build_manifest, product_labels


def render_fleet(settings: FleetSettings) -> tuple[Manifest, ...]:
    """Three PriorityClasses, the most urgent first."""
    return (
        _priority_class(Tier.REALTIME, settings.realtime_priority, "PreemptLowerPriority"),
        _priority_class(Tier.STANDARD, settings.standard_priority, "PreemptLowerPriority"),
        _priority_class(Tier.BATCH, settings.batch_priority, "Never"),
    )


def _priority_class(tier: Tier, value: int, preemption: str) -> Manifest:
    return build_manifest(
        "scheduling.k8s.io/v1",
        "PriorityClass",
        priority_class_of(tier),
        object_labels=product_labels("tenancy"),
        value=value,
        preemptionPolicy=preemption,
        description=f"InferenceServices of tier {tier.value}.",
    )
