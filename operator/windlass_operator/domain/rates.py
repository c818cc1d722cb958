"""Choose what the gateway is told about tenants' limits."""

from __future__ import annotations

from collections.abc import Mapping

from windlass_contract.endpoints import TenantRates
from windlass_operator.api.v1alpha1.tenant import Rates, Tenant


def plan_rates(tenants: Mapping[str, Tenant]) -> tuple[TenantRates, ...]:
    """The limits of every tenant that has some, in the order of their names."""
    return tuple(
        TenantRates(
            tenant=name,
            requests_per_minute=rates.requests_per_minute,
            tokens_per_minute=rates.tokens_per_minute,
            concurrent_requests=rates.concurrent_requests,
            burst_s=float(rates.burst_seconds),
        )
        for name, rates in sorted((name, tenant.spec.rates) for name, tenant in tenants.items())
        if is_limited(rates)
    )


def is_limited(rates: Rates) -> bool:
    """Whether any limit is set."""
    return any((rates.requests_per_minute, rates.tokens_per_minute, rates.concurrent_requests))
