"""Choose what the gateway is told about limits of tenants and of their services."""

from __future__ import annotations

from collections.abc import Mapping

from windlass_contract.endpoints import TenantRates
from windlass_operator.api.v1alpha1.tenant import Rates, ServiceRates, Tenant
from windlass_operator.domain.snapshot import Key


def plan_rates(tenants: Mapping[str, Tenant]) -> tuple[TenantRates, ...]:
    """The limits of every tenant that has some, in the order of their names."""
    found = ((name, tenant.spec.rates) for name, tenant in sorted(tenants.items()))
    return tuple(_describe(name, rates, rates.burst_seconds) for name, rates in found if is_limited(rates))


def rates_of_service(key: Key, tenant: Tenant) -> TenantRates | None:
    """The limits of one service, beside those of its tenant."""
    rates = tenant.spec.rates
    for item in rates.services:
        if (item.namespace, item.name) == (key.namespace, key.name):
            return _describe(tenant.metadata.name, item, rates.burst_seconds)
    return None


def is_limited(rates: Rates | ServiceRates) -> bool:
    """Whether any limit is set."""
    return any((rates.requests_per_minute, rates.tokens_per_minute, rates.concurrent_requests))


def _describe(tenant: str, rates: Rates | ServiceRates, burst_s: int) -> TenantRates:
    return TenantRates(
        tenant=tenant,
        requests_per_minute=rates.requests_per_minute,
        tokens_per_minute=rates.tokens_per_minute,
        concurrent_requests=rates.concurrent_requests,
        burst_s=float(burst_s),
    )
