"""Tenants' limits reach the gateway as the Tenant has them."""

from __future__ import annotations

from support.builders import build_tenant
from windlass_contract.endpoints import TenantRates
from windlass_operator.domain.rates import plan_rates, rates_of_service
from windlass_operator.domain.snapshot import Key


def test_only_tenants_with_limits_are_listed_in_the_order_of_their_names() -> None:
    tenants = {
        "zeta": build_tenant("zeta", rates={"requestsPerMinute": 60, "burstSeconds": 5}),
        "free": build_tenant("free"),
        "idle": build_tenant("idle", rates={"burstSeconds": 5}),
        "acme": build_tenant("acme", rates={"tokensPerMinute": 1000, "concurrentRequests": 4}),
    }

    assert plan_rates(tenants) == (
        TenantRates("acme", tokens_per_minute=1000, concurrent_requests=4),
        TenantRates("zeta", requests_per_minute=60, burst_s=5.0),
    )


def test_a_service_has_the_limits_that_its_tenant_sets_for_it() -> None:
    limits = {"namespace": "team-a", "name": "chat", "concurrentRequests": 2}
    tenant = build_tenant(rates={"burstSeconds": 5, "services": [limits]})

    assert rates_of_service(Key("InferenceService", "team-a", "chat"), tenant) == TenantRates(
        "acme", concurrent_requests=2, burst_s=5.0
    )
    assert rates_of_service(Key("InferenceService", "team-b", "chat"), tenant) is None
    assert plan_rates({"acme": tenant}) == (), "the tenant itself has no limit"
