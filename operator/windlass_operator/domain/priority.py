"""Decide which tiers a tenant may use and what they are called in a cluster."""

from __future__ import annotations

from typing import Final

from windlass_operator.api.v1alpha1.inference_service import Tier
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.decision import Decision, Refusal, decide

_MEANING: Final = {
    Tier.REALTIME: "it may preempt Standard and Batch",
    Tier.STANDARD: "it may preempt Batch and yields to Realtime",
    Tier.BATCH: "it preempts nobody and yields to all",
}


def priority_class_of(tier: Tier) -> str:
    """Name of a tier's PriorityClass."""
    return f"windlass-{tier.value.lower()}"


def denied_priority_classes(tenant: Tenant) -> tuple[str, ...]:
    """PriorityClasses of the tiers a tenant may not use."""
    return tuple(priority_class_of(tier) for tier in Tier if tier not in tenant.spec.allowed_tiers)


def check_tier(tier: Tier, tenant: Tenant | None) -> Refusal | None:
    """Refuse a tier that the tenant was not granted."""
    if tenant is None or tier in tenant.spec.allowed_tiers:
        return None
    allowed = ", ".join(item.value for item in tenant.spec.allowed_tiers)
    return Refusal(
        "TierNotAllowed",
        f"spec.tier is {tier.value}, Tenant {tenant.metadata.name} may use {allowed}",
        f"Set spec.tier to one of {allowed}, or ask the platform team to add {tier.value} to spec.allowedTiers",
    )


def explain_priority(tier: Tier) -> Decision:
    """Say what the tier means when room is short."""
    return decide("priority", priority_class_of(tier), f"tier {tier.value}: {_MEANING[tier]}")
