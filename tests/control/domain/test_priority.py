"""Tiers: their PriorityClasses, and who may use them."""

from __future__ import annotations

from support.builders import build_tenant
from windlass_operator.api.v1alpha1.inference_service import Tier
from windlass_operator.domain.priority import check_tier, denied_priority_classes, priority_class_of


def test_tiers_become_priority_classes():
    assert [priority_class_of(tier) for tier in Tier] == ["windlass-realtime", "windlass-standard", "windlass-batch"]


def test_a_tier_that_was_not_granted_is_refused_with_those_that_were():
    refusal = check_tier(Tier.REALTIME, build_tenant())

    assert refusal is not None
    assert refusal.reason == "TierNotAllowed"
    assert refusal.message == "spec.tier is Realtime, Tenant acme may use Standard, Batch"


def test_granted_tiers_pass_and_without_tenants_all_do():
    assert check_tier(Tier.BATCH, build_tenant()) is None
    assert check_tier(Tier.REALTIME, None) is None


def test_the_denied_classes_are_those_not_granted():
    assert denied_priority_classes(build_tenant(allowedTiers=["Batch"])) == ("windlass-realtime", "windlass-standard")
