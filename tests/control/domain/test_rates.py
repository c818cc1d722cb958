"""Tenants' limits reach the gateway as the Tenant has them."""

from __future__ import annotations

from support.builders import build_tenant
from windlass_contract.endpoints import TenantRates
from windlass_operator.domain.rates import plan_rates


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
