"""Decide what tenants and GPU classes amount to: the platform team's side of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.tenant import GpuUse, Isolation, Subject, Tenant
from windlass_operator.domain.decision import Decision, Refusal, decide
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.priority import denied_priority_classes
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


def plan_tenant(tenant: Tenant, snapshot: Snapshot, settings: FleetSettings) -> TenantPlan:
    """Decide what one tenant gets."""
    verdicts = plan_ownership(tenant, snapshot.tenants, settings)
    namespaces = tuple(verdict.namespace for verdict in verdicts if verdict.problem is None)
    denied = denied_priority_classes(tenant)
    return TenantPlan(
        key=Key("Tenant", "", tenant.metadata.name),
        generation=tenant.metadata.generation,
        namespaces=namespaces,
        hard=_plan_hard(tenant, snapshot.gpu_classes),
        denied_priority_classes=denied,
        subjects=tuple(tenant.spec.subjects),
        isolation=tenant.spec.isolation,
        gpus=_count_use(tenant, namespaces, snapshot),
        services=sum((service.metadata.namespace or "default") in namespaces for service in snapshot.services.values()),
        decisions=_explain(tenant, namespaces, denied),
        problems=(
            *(verdict.problem for verdict in verdicts if verdict.problem is not None),
            *_unknown_classes(tenant, snapshot),
        ),
    )


def _plan_hard(tenant: Tenant, gpu_classes: Mapping[str, GPUClass]) -> dict[str, str]:
    """Bounds of each namespace. Several classes can share one resource, so the planner alone tells classes apart."""
    quota = tenant.spec.quota
    devices = {gpu_class.spec.resource: 0 for gpu_class in gpu_classes.values()}
    for gpu in quota.gpus:
        if gpu.name in gpu_classes:
            devices[gpu_classes[gpu.name].spec.resource] += gpu.nominal
    hard = {f"requests.{resource}": str(count) for resource, count in devices.items()}
    if quota.cpu is not None:
        hard["requests.cpu"] = quota.cpu
    if quota.memory is not None:
        hard["requests.memory"] = hard["limits.memory"] = quota.memory
    if quota.services is not None:
        hard["count/inferenceservices.windlass.dev"] = str(quota.services)
    return dict(sorted(hard.items()))


def _count_use(tenant: Tenant, namespaces: tuple[str, ...], snapshot: Snapshot) -> tuple[GpuUse, ...]:
    nominal = {gpu.name: gpu.nominal for gpu in tenant.spec.quota.gpus}
    used = dict.fromkeys(nominal, 0)
    for key, workload in snapshot.workloads.items():
        if key.namespace in namespaces and workload.gpu_class:
            used[workload.gpu_class] = used.get(workload.gpu_class, 0) + workload.devices
    return tuple(GpuUse(name=name, nominal=nominal.get(name, 0), used=count) for name, count in sorted(used.items()))


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
    if denied:
        decisions.append(
            decide(
                "tiers",
                ", ".join(tier.value for tier in tenant.spec.allowed_tiers),
                f"pods with {', '.join(denied)} are refused by a ResourceQuota of zero pods",
            )
        )
    return tuple(decisions)


def plan_gpu_class(gpu_class: GPUClass, snapshot: Snapshot) -> GpuClassPlan:
    """Count what one class offers."""
    name = gpu_class.metadata.name
    supply = Supply(replace(snapshot, gpu_classes={**snapshot.gpu_classes, name: gpu_class}))
    return GpuClassPlan(
        key=Key("GPUClass", "", name),
        generation=gpu_class.metadata.generation,
        nodes=supply.nodes(name),
        gpus=supply.devices(name),
        allocated=supply.held(name),
    )
