"""Decide whose a namespace is. The oldest Tenant that lists a namespace owns it, so a newcomer cannot take one over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.decision import Decision, Refusal, decide
from windlass_operator.domain.fleet import FleetSettings

CLUSTER_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease"})


@dataclass(frozen=True, slots=True)
class Ownership:
    """What became of one namespace a Tenant lists."""

    namespace: str
    problem: Refusal | None = None
    """None: the namespace is the tenant's."""


def tenant_of(namespace: str, tenants: Mapping[str, Tenant]) -> Tenant | None:
    """The Tenant that owns a namespace; None when no Tenant lists it."""
    claims = [tenant for tenant in tenants.values() if namespace in tenant.spec.namespaces]
    return min(claims, key=_age, default=None)


def claims(tenants: Mapping[str, Tenant]) -> dict[str, tuple[Tenant, ...]]:
    """Every listed namespace and the Tenants that list it; the first owns it."""
    found: dict[str, tuple[Tenant, ...]] = {}
    for tenant in sorted(tenants.values(), key=_age):
        for namespace in dict.fromkeys(tenant.spec.namespaces):
            found[namespace] = (*found.get(namespace, ()), tenant)
    return found


def owners(tenants: Mapping[str, Tenant]) -> dict[str, Tenant]:
    """Every listed namespace and the Tenant that owns it."""
    return {namespace: claimants[0] for namespace, claimants in claims(tenants).items()}


def _age(tenant: Tenant) -> tuple[str, str]:
    return tenant.metadata.creation_timestamp, tenant.metadata.name


def plan_ownership(
    tenant: Tenant,
    tenants: Mapping[str, Tenant],
    settings: FleetSettings,
) -> tuple[Ownership, ...]:
    """Judge every namespace a Tenant lists, in the order of the list."""
    claims = {**tenants, tenant.metadata.name: tenant}
    return tuple(
        Ownership(namespace, _dispute(namespace, tenant, claims, settings))
        for namespace in dict.fromkeys(tenant.spec.namespaces)
    )


def owned_namespaces(tenant: Tenant, owned: Mapping[str, Tenant], settings: FleetSettings) -> tuple[str, ...]:
    """Namespaces that are a Tenant's, in the order of its list. `owned`: what `owners` says."""
    reserved = reserved_namespaces(settings)
    return tuple(
        namespace
        for namespace in dict.fromkeys(tenant.spec.namespaces)
        if namespace not in reserved and owned[namespace].metadata.name == tenant.metadata.name
    )


def reserved_namespaces(settings: FleetSettings) -> frozenset[str]:
    """Namespaces of the platform itself; a tenant's policies there would cut off the cluster."""
    return CLUSTER_NAMESPACES | {settings.gateway_namespace, settings.metrics_namespace, settings.dns_namespace}


def _dispute(
    namespace: str,
    tenant: Tenant,
    tenants: Mapping[str, Tenant],
    settings: FleetSettings,
) -> Refusal | None:
    name = tenant.metadata.name
    if namespace in reserved_namespaces(settings):
        return Refusal(
            "NamespaceReserved",
            f"namespace {namespace} belongs to the platform and cannot be Tenant {name}'s",
            f"Remove {namespace} from spec.namespaces of Tenant {name}",
        )
    owner = tenant_of(namespace, tenants)
    if owner is None or owner.metadata.name == name:
        return None
    return Refusal(
        "NamespaceConflict",
        f"namespace {namespace} belongs to the older Tenant {owner.metadata.name}",
        f"Remove {namespace} from spec.namespaces of Tenant {name} or of Tenant {owner.metadata.name}",
    )


def check_tenancy(namespace: str, owner: Tenant | None, settings: FleetSettings) -> Refusal | None:
    """Refuse a service that no tenant answers for, in a fleet that has tenants."""
    if owner is None:
        return Refusal(
            "NoTenant",
            f"no Tenant lists namespace {namespace}",
            f"Ask the platform team to add {namespace} to spec.namespaces of a Tenant",
        )
    if namespace in reserved_namespaces(settings):
        return Refusal(
            "NamespaceReserved",
            f"namespace {namespace} belongs to the platform",
            "Create the service in a tenant's namespace",
        )
    return None


def explain_tenancy(namespace: str, claimed: Mapping[str, Sequence[Tenant]]) -> Decision:
    """Say whose a service is. `claimed`: what `claims` says; empty in a cluster without Tenants."""
    if not claimed:
        reason = "there is no Tenant object, so the whole cluster counts as one tenant without quotas"
        return decide("tenant", "none", reason)
    if namespace not in claimed:
        return decide("tenant", "none", f"no Tenant lists namespace {namespace}")
    owner, *rivals = (tenant.metadata.name for tenant in claimed[namespace])
    if rivals:
        also = ", ".join(sorted(rivals))
        reason = f"it is the oldest Tenant that lists namespace {namespace}; also listed by {also}"
        return decide("tenant", owner, reason)
    return decide("tenant", owner, f"Tenant {owner} lists namespace {namespace}")
