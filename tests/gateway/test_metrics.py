"""Series of the gateway stay bounded under a load of many tenants, services and statuses."""

from __future__ import annotations

from windlass_contract import metric_names
from windlass_contract.endpoints import Route
from windlass_gateway.metrics import Metrics

TENANTS = 1000
SERVICES = 5
STATUSES = (200, 400, 404, 429, 499, 502, 503, 504)


def build_route(tenant: int, service: int) -> Route:
    return Route(f"team-{tenant}", f"s{service}", f"tenant-{tenant}", (), ())


def test_a_thousand_tenants_make_no_more_series_than_a_hundred_and_one() -> None:
    metrics = Metrics()

    for tenant in range(TENANTS):
        for service in range(SERVICES):
            for status in STATUSES:
                with metrics.watch(build_route(tenant, service)) as outcome:
                    outcome.status = status

    lines = [line for line in metrics.render().decode().splitlines() if not line.startswith("#")]
    requests = [line for line in lines if line.startswith(f"{metric_names.GATEWAY_REQUESTS_TOTAL}{{")]
    named = metric_names.MAX_TENANT_LABELS * SERVICES
    assert len(requests) == (named + 1) * len(STATUSES)
    assert len(lines) < (named + 1) * 60
    hidden = (TENANTS - metric_names.MAX_TENANT_LABELS) * SERVICES
    other = metric_names.OTHER_TENANT
    total = f'code="200",namespace="{other}",service="{other}",tenant="{other}"}} {hidden}.0'
    assert [line for line in requests if line.endswith(total)]
