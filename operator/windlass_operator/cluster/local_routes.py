"""Turn what runs on this machine into the gateway's routing table."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import replace

from windlass_contract.endpoints import Canary, Replica, Route, RoutingTable, digest_key
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.canary_plan import canary_key
from windlass_operator.domain.rates import plan_rates, rates_of_service
from windlass_operator.domain.routes import hold_of, routed_canaries
from windlass_operator.domain.snapshot import Key
from windlass_operator.domain.tenancy import tenant_of


def plan_routes(
    services: Mapping[Key, InferenceService],
    tenants: Mapping[str, Tenant],
    session_keys: Mapping[str, str],
    replicas_of: Callable[[Key], tuple[Replica, ...]],
) -> RoutingTable:
    """List every service. `session_keys`: owner (see `key_owner`) -> a key made for this run."""
    routes = tuple(
        replace(
            _route(key, services[key], tenants, session_keys, replicas_of(key)),
            canaries=tuple(
                Canary(name, weight, replicas_of(canary_key(key, name)))
                for name, weight in routed_canaries(services[key])
            ),
        )
        for key in sorted(services)
    )
    return RoutingTable(routes, plan_rates(tenants))


def key_owner(namespace: str, tenants: Mapping[str, Tenant]) -> str:
    """Whose keys open the services of a namespace: a tenant's name, or `namespace/NAME` where no tenant answers for
    it.
    """
    tenant = tenant_of(namespace, tenants)
    return tenant.metadata.name if tenant is not None else f"namespace/{namespace}"


def owners_without_keys(services: Mapping[Key, InferenceService], tenants: Mapping[str, Tenant]) -> tuple[str, ...]:
    """Owners that need a key made for this run: tenants that list none, and namespaces without a tenant."""
    keyless = {name for name, tenant in tenants.items() if not tenant.spec.access.keys}
    unowned = {f"namespace/{key.namespace}" for key in services if tenant_of(key.namespace, tenants) is None}
    return tuple(sorted(keyless | unowned))


def _route(
    key: Key,
    service: InferenceService,
    tenants: Mapping[str, Tenant],
    session_keys: Mapping[str, str],
    replicas: tuple[Replica, ...],
) -> Route:
    tenant = tenant_of(key.namespace, tenants)
    digests = [access.sha256 for access in tenant.spec.access.keys] if tenant is not None else []
    session_key = session_keys.get(key_owner(key.namespace, tenants))
    if session_key is not None:
        digests.append(digest_key(session_key))
    hold = hold_of(service)
    return Route(
        key.namespace,
        key.name,
        tenant.metadata.name if tenant is not None else "",
        tuple(digests),
        replicas,
        hold_s=float(hold.timeout_seconds) if hold else 0.0,
        max_held=hold.max_requests if hold else 0,
        weight=tenant.spec.weight if tenant is not None else 1,
        rates=rates_of_service(key, tenant) if tenant is not None else None,
    )


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replace a file as a whole, readable by its owner only: readers see the old text or the new one, never a part."""
    aside = path.with_name(path.name + ".new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(aside, path)
