"""Decide who may use which service through the gateway of a cluster, and how its traffic is shared out.

Replicas are not listed: the gateway follows the endpoints of the named Services, which change far more often.
"""

from __future__ import annotations

from collections.abc import Iterator

from windlass_contract.endpoints import Canary, Route, RoutingTable
from windlass_operator.api.v1alpha1.canary import CanaryPhase
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.scaling import Hold
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.canary import find_status
from windlass_operator.domain.canary_plan import object_name
from windlass_operator.domain.rates import plan_rates, rates_of_service
from windlass_operator.domain.schedule import lowest_minimum
from windlass_operator.domain.snapshot import Key, Snapshot
from windlass_operator.domain.tenancy import owners


def plan_routes(snapshot: Snapshot) -> RoutingTable:
    """List the services of every tenant with keys; nobody could use the others."""
    owned = owners(snapshot.tenants)
    tenants = ((key, owned.get(key.namespace)) for key in sorted(snapshot.services))
    return RoutingTable(
        tuple(
            _route(key, tenant, snapshot.services[key])
            for key, tenant in tenants
            if tenant is not None and tenant.spec.access.keys
        ),
        plan_rates(snapshot.tenants),
    )


def _route(key: Key, tenant: Tenant, service: InferenceService) -> Route:
    digests = tuple(access.sha256 for access in tenant.spec.access.keys)
    hold = hold_of(service)
    canaries = tuple(
        Canary(name, weight, endpoints=object_name(key.name, name)) for name, weight in routed_canaries(service)
    )
    return Route(
        key.namespace,
        key.name,
        tenant.metadata.name,
        digests,
        (),
        canaries=canaries,
        endpoints=key.name,
        hold_s=float(hold.timeout_seconds) if hold else 0.0,
        max_held=hold.max_requests if hold else 0,
        weight=tenant.spec.weight,
        rates=rates_of_service(key, tenant),
    )


def hold_of(service: InferenceService) -> Hold | None:
    """How requests wait for the service; None where it never sleeps, and nobody would wake it."""
    scaling = service.spec.scaling
    return scaling.hold if scaling is not None and not service.spec.suspend and lowest_minimum(scaling) == 0 else None


def routed_canaries(service: InferenceService) -> Iterator[tuple[str, int]]:
    """Name and weight of every canary that may take requests, also those without a share: clients may ask for them."""
    for canary in service.spec.canaries:
        state = find_status(service.status.canaries, canary.name)
        if state is not None and state.phase not in (CanaryPhase.PENDING, CanaryPhase.ABORTED):
            yield canary.name, state.traffic_percent
