"""Decide what tenants and GPU classes amount to: the platform team's side of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.tenant import GpuQuota, GpuUse, Isolation, Subject, Tenant
from windlass_operator.domain.decision import Decision, Refusal, decide
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.fleet_view import FleetView
from windlass_operator.domain.fragmentation import Fragmentation
from windlass_operator.domain.priority import denied_priority_classes
from windlass_operator.domain.quota_use import count_use, most_devices
from windlass_operator.domain.snapshot import Key, Snapshot
from windlass_operator.domain.supply import Supply
from windlass_operator.domain.tenancy import plan_ownership


@dataclass(frozen=True, slots=True)
class TenantPlan:
    """Everything about one Tenant that is decided."""

    key: Key
    generation: int
    namespaces: tuple[str, ...]
    """Namespaces that are this tenant's; what others own or the platform reserves is left out."""
    hard: Mapping[str, str]
    """ResourceQuota of each namespace."""
    denied_priority_classes: tuple[str, ...]
    """PriorityClasses no pod of the tenant may use."""
    subjects: tuple[Subject, ...]
    isolation: Isolation
    gpus: tuple[GpuUse, ...]
    services: int
    decisions: tuple[Decision, ...]
    problems: tuple[Refusal, ...] = ()
    """What could not be granted; the rest is carried out."""


@dataclass(frozen=True, slots=True)
class GpuClassPlan:
    """What one GPUClass amounts to."""

    key: Key
    generation: int
    nodes: int | None
    """Ready, schedulable nodes; None while nodes are unknown."""
    gpus: int
    allocated: int
    fragmentation: Fragmentation


def plan_tenant(tenant: Tenant, snapshot: Snapshot, settings: FleetSettings) -> TenantPlan:
    """Decide what one tenant gets."""
    name = tenant.metadata.name
    if snapshot.tenants.get(name) is not tenant:
        snapshot = replace(snapshot, tenants={**snapshot.tenants, name: tenant})
    return plan_tenant_in_view(tenant, FleetView(snapshot, settings))


def plan_tenant_in_view(tenant: Tenant, view: FleetView) -> TenantPlan:
    """Decide for a tenant of the view's snapshot; many tenants share the view's look-ups."""
    snapshot = view.snapshot
    verdicts = plan_ownership(tenant, snapshot.tenants, view.settings)
    namespaces = tuple(verdict.namespace for verdict in verdicts if verdict.problem is None)
    denied = denied_priority_classes(tenant)
    return TenantPlan(
        key=Key("Tenant", "", tenant.metadata.name),
        generation=tenant.metadata.generation,
        namespaces=namespaces,
        hard=_plan_hard(tenant, view),
        denied_priority_classes=denied,
        subjects=tuple(tenant.spec.subjects),
        isolation=tenant.spec.isolation,
        gpus=count_use(tenant, view),
        services=sum((service.metadata.namespace or "default") in namespaces for service in snapshot.services.values()),
        decisions=_explain(tenant, namespaces, denied),
        problems=(
            *(verdict.problem for verdict in verdicts if verdict.problem is not None),
            *_unknown_classes(tenant, snapshot),
        ),
    )


def _plan_hard(tenant: Tenant, view: FleetView) -> dict[str, str]:
    """Bounds of each namespace. Several classes can share one resource, so the planner alone tells classes apart."""
    quota, gpu_classes = tenant.spec.quota, view.snapshot.gpu_classes
    devices = {name: 0 for gpu_class in gpu_classes.values() for name in _counted_as(gpu_class)}
    for gpu in quota.gpus:
        for name in _counted_as(gpu_classes[gpu.name]) if gpu.name in gpu_classes else ():
            devices[name] += most_devices(tenant, gpu.name, view)
    hard = {name: str(count) for name, count in devices.items()}
    if quota.cpu is not None:
        hard["requests.cpu"] = quota.cpu
    if quota.memory is not None:
        hard["requests.memory"] = hard["limits.memory"] = quota.memory
    if quota.services is not None:
        hard["count/inferenceservices.windlass.dev"] = str(quota.services)
    return dict(sorted(hard.items()))


def _counted_as(gpu_class: GPUClass) -> tuple[str, ...]:
    """Names under which a ResourceQuota counts devices of a class: requested from a plugin, and claimed."""
    requested = f"requests.{gpu_class.spec.resource}"
    claimed = gpu_class.spec.device_class_name
    return (requested,) if claimed is None else (requested, f"{claimed}.deviceclass.resource.k8s.io/devices")


def _unknown_classes(tenant: Tenant, snapshot: Snapshot) -> tuple[Refusal, ...]:
    return tuple(
        Refusal(
            "UnknownGPUClass",
            f"spec.quota.gpus grants {gpu.nominal} of {gpu.name}, but there is no GPUClass {gpu.name}",
            f"Create GPUClass {gpu.name} or correct the name",
        )
        for gpu in tenant.spec.quota.gpus
        if gpu.name not in snapshot.gpu_classes
    )


def _explain(tenant: Tenant, namespaces: tuple[str, ...], denied: tuple[str, ...]) -> tuple[Decision, ...]:
    gpus = ", ".join(f"{gpu.nominal} x {gpu.name}" for gpu in tenant.spec.quota.gpus) or "none"
    decisions = [
        decide(
            "namespaces", ", ".join(namespaces) or "none", "listed in spec.namespaces and claimed by no older Tenant"
        ),
        decide("GPU quota", gpus, "a sum over all namespaces; classes that are not listed grant nothing"),
        decide(
            "isolation",
            tenant.spec.isolation.value,
            "only the gateway, the metrics scraper and the tenant's own namespaces may connect"
            if tenant.spec.isolation is Isolation.ISOLATED
            else "only services are protected, by their own policies",
        ),
    ]
    if tenant.spec.cohort:
        limits = ", ".join(_limits(gpu) for gpu in tenant.spec.quota.gpus) or "nothing"
        reason = f"{limits}; of what is lent it is due {tenant.spec.weight} parts"
        decisions.append(decide("cohort", tenant.spec.cohort, reason))
    if denied:
        decisions.append(
            decide(
                "tiers",
                ", ".join(tier.value for tier in tenant.spec.allowed_tiers),
                f"pods with {', '.join(denied)} are refused by a ResourceQuota of zero pods",
            )
        )
    return tuple(decisions)


def _limits(gpu: GpuQuota) -> str:
    borrow = "any number" if gpu.borrowing_limit is None else f"up to {gpu.borrowing_limit}"
    lend = "all" if gpu.lending_limit is None else f"up to {gpu.lending_limit}"
    return f"borrows {borrow} and lends {lend} of {gpu.name}"


def _count_nodes(gpu_class: GPUClass, supply: Supply) -> int | None:
    """Nodes with devices; those with the labels where only a driver of claims could offer them and what it offers is
    unknown. None: nodes are unknown.
    """
    name = gpu_class.metadata.name
    if supply.nodes(name) is None:
        return None
    nodes = len(supply.offered(name))
    only_claimed = nodes == 0 and gpu_class.spec.device_class_name is not None and supply.claimable(name) is None
    return supply.labelled(name) if only_claimed else nodes


def plan_gpu_class(gpu_class: GPUClass, snapshot: Snapshot) -> GpuClassPlan:
    """Count what one class offers."""
    name = gpu_class.metadata.name
    supply = Supply(replace(snapshot, gpu_classes={**snapshot.gpu_classes, name: gpu_class}))
    return GpuClassPlan(
        key=Key("GPUClass", "", name),
        generation=gpu_class.metadata.generation,
        nodes=_count_nodes(gpu_class, supply),
        gpus=sum(supply.offered(name).values()),
        allocated=supply.held(name),
        fragmentation=supply.fragmentation(name),
    )
