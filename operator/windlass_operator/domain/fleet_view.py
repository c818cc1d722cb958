"""A snapshot with the look-ups that plans repeat, each made once.

Planning a thousand services from one view costs one pass over tenants, nodes and quotas, not one pass per service.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping, Sequence
from typing import TypeVar

from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import Allocation, InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.alternative_quota import Reservation
from windlass_operator.domain.batch_workers import derive_workers
from windlass_operator.domain.canary_plan import derive_canaries
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.preemption import BUDGET_S
from windlass_operator.domain.quota import ClassTerms, Grant, Request
from windlass_operator.domain.rollout import is_rolling
from windlass_operator.domain.schedule import apply_schedules, next_change_of_all
from windlass_operator.domain.snapshot import Key, Snapshot, Workload
from windlass_operator.domain.suggestion import Suggestion
from windlass_operator.domain.supply import Supply
from windlass_operator.domain.tenancy import claims

_NOTHING_RUNS = Workload()
T = TypeVar("T", Tenant, GPUClass)

Circle = tuple[str, str]
"""Who shares GPUs: ("cohort", its name), or ("tenant", its name) for a tenant without a cohort."""


def circle_of(tenant: Tenant) -> Circle:
    """With whom a tenant shares GPUs."""
    return ("cohort", tenant.spec.cohort) if tenant.spec.cohort else ("tenant", tenant.metadata.name)


def _same_specs(now: Mapping[str, T], before: Mapping[str, T]) -> bool:
    """Whether objects differ in their statuses at most."""
    return now is before or (
        now.keys() == before.keys()
        and all(
            item is before[name] or (item.spec == before[name].spec and _age(item) == _age(before[name]))
            for name, item in now.items()
        )
    )


def _age(item: Tenant | GPUClass) -> str:
    return item.metadata.creation_timestamp


def _reads_more(service: InferenceService) -> bool:
    """Whether what it asks for depends on other services or on the hour too."""
    accelerator = service.spec.accelerator
    claims = accelerator is not None and accelerator.allocation is not Allocation.DEVICE_PLUGIN
    return claims or bool(service.spec.precision.alternatives)


class FleetView:
    """What plans ask of one snapshot."""

    def __init__(self, snapshot: Snapshot, settings: FleetSettings, now: datetime.datetime | None = None) -> None:
        """`now`: the moment of which schedules are read; None leaves them out of account."""
        self.observed = snapshot
        self.snapshot = snapshot if now is None else apply_schedules(snapshot, now)
        self.now = now
        self.settings = settings
        self.supply = Supply(snapshot)
        self.grants: dict[Circle, Mapping[Key, Grant]] = {}
        """Shares of each circle's GPUs, filled by the first plan that needs them."""
        self.reservations: dict[str, Reservation] = {}
        """What each tenant sets aside for alternatives of claims, filled like `grants`."""
        self.requests: dict[Key, Request | None] = {}
        """What each service asks of its quota, filled by the first plan that needs it; None: nothing."""
        self.suggestions: dict[Key, tuple[Suggestion, ...]] = {}
        """What would let refused services run, filled by their first plan."""
        self.waits_for_budget: set[Circle] = set()
        """Circles in which a tenant waits until budgets allow to take more, filled together with `grants`."""

    def advance_to(self, now: datetime.datetime) -> bool:
        """Become the view of a later moment; False where a schedule or a budget changes before it and ends this one."""
        changes = [change for change in (self._changes, self.budgets_change_at) if change is not None]
        if self.now is None or now < self.now or any(now >= change for change in changes):
            return False
        self.now = now
        return True

    def inherit(self, earlier: FleetView) -> None:
        """Take over whose namespaces are, and what services asked of their quotas in an earlier view, where nothing
        that they read is another.

        A change of one service then costs its own request, not those of everybody who shares its GPUs.
        """
        now, before = self.snapshot, earlier.snapshot
        if now.tenants is before.tenants:
            self.claims, self.owners, self.quotas = earlier.claims, earlier.owners, earlier.quotas
        if (
            now.nodes is not before.nodes
            or now.capabilities is not before.capabilities
            or self.settings is not earlier.settings
            or not _same_specs(now.tenants, before.tenants)
            or not _same_specs(now.gpu_classes, before.gpu_classes)
        ):
            return
        for key, request in earlier.requests.items():
            service, runs = now.services.get(key), now.workloads.get(key)
            if (
                service is not None
                and service is before.services.get(key)
                and runs is before.workloads.get(key)
                and not (runs is not None and runs.takings)  # how long ago they were matters
                and not _reads_more(service)
            ):
                self.requests[key] = request

    def variant(self, snapshot: Snapshot, changed: Key) -> FleetView:
        """The view of a world in which one object of ours has another spec; keeps what that cannot touch."""
        other = FleetView(snapshot, self.settings)
        other.now, other.supply = self.now, self.supply
        other.requests = {key: request for key, request in self.requests.items() if key != changed}
        return other

    @property
    def now_s(self) -> float:
        """The moment in seconds since 1970, from which budgets of taken replicas count; 0.0 without one."""
        return 0.0 if self.now is None else self.now.timestamp()

    def tenant_of(self, namespace: str) -> Tenant | None:
        """The Tenant that owns a namespace."""
        return self.owners.get(namespace)

    def workload_of(self, key: Key) -> Workload:
        """What runs for a service; an empty workload when nothing does."""
        return self.snapshot.workloads.get(key, _NOTHING_RUNS)

    def services_of(self, tenant: Tenant) -> Mapping[Key, InferenceService]:
        """Services in the namespaces a Tenant owns, canaries and workers of batches among them."""
        return self._services.get(tenant.metadata.name, {})

    def remnants_of(self, tenant: Tenant) -> Mapping[Key, Workload]:
        """What still runs in a Tenant's namespaces for services that are gone, or that this version cannot read."""
        return self._remnants.get(tenant.metadata.name, {})

    @functools.cached_property
    def _remnants(self) -> Mapping[str, Mapping[Key, Workload]]:
        remnants: dict[str, dict[Key, Workload]] = {}
        for key, workload in self.snapshot.workloads.items():
            tenant = self.tenant_of(key.namespace)
            if tenant is not None and key not in self.services_of(tenant):
                remnants.setdefault(tenant.metadata.name, {})[key] = workload
        return remnants

    def held_by(self, tenant: str) -> Mapping[str, int]:
        """Devices that pods of a tenant hold or wait for, per class."""
        return self._held.get(tenant, {})

    @functools.cached_property
    def _held(self) -> Mapping[str, Mapping[str, int]]:
        held: dict[str, dict[str, int]] = {}
        for key, workload in self.snapshot.workloads.items():
            tenant = self.tenant_of(key.namespace)
            if tenant is not None and workload.gpu_class:
                classes = held.setdefault(tenant.metadata.name, {})
                for name, count in ((workload.gpu_class, workload.devices), *workload.devices_left_behind):
                    classes[name] = classes.get(name, 0) + count
        return held

    def members(self, circle: Circle) -> Sequence[Tenant]:
        """Tenants that share GPUs, in the order of their names."""
        return self._circles.get(circle, ())

    @functools.cached_property
    def _circles(self) -> Mapping[Circle, Sequence[Tenant]]:
        circles: dict[Circle, list[Tenant]] = {}
        for _, tenant in sorted(self.snapshot.tenants.items()):
            circles.setdefault(circle_of(tenant), []).append(tenant)
        return circles

    @functools.cached_property
    def budgets_change_at(self) -> datetime.datetime | None:
        """When the oldest taken replica that counts against a budget counts no more; None without one."""
        if self.now is None:
            return None
        ends = [taking.at_s + BUDGET_S for workload in self.snapshot.workloads.values() for taking in workload.takings]
        later = [end for end in ends if end > self.now_s]
        return datetime.datetime.fromtimestamp(min(later), datetime.UTC) if later else None

    @functools.cached_property
    def moving(self) -> Mapping[Key, InferenceService]:
        """Services whose pods are being replaced, wait for their turn, or leave."""
        return {key: service for key, service in self.snapshot.services.items() if _moves(self.workload_of(key))}

    @functools.cached_property
    def _changes(self) -> datetime.datetime | None:
        return None if self.now is None else next_change_of_all(self.observed.services.values(), self.now)

    @functools.cached_property
    def claims(self) -> Mapping[str, tuple[Tenant, ...]]:
        """Every listed namespace and the Tenants that list it; the first owns it."""
        return claims(self.snapshot.tenants)

    @functools.cached_property
    def owners(self) -> Mapping[str, Tenant]:
        """Every listed namespace and the Tenant that owns it."""
        return {namespace: claimants[0] for namespace, claimants in self.claims.items()}

    @functools.cached_property
    def quotas(self) -> Mapping[str, Mapping[str, ClassTerms]]:
        """What each Tenant says about each class that it lists."""
        return {
            name: {
                gpu.name: ClassTerms(gpu.nominal, gpu.borrowing_limit, gpu.lending_limit)
                for gpu in tenant.spec.quota.gpus
            }
            for name, tenant in self.snapshot.tenants.items()
        }

    @functools.cached_property
    def claiming(self) -> frozenset[str]:
        """Names of tenants with services that claim devices, which set quota of several classes aside."""
        return frozenset(
            name
            for name, services in self._services.items()
            if any(_claims_devices(service) for service in services.values())
        )

    @functools.cached_property
    def _services(self) -> Mapping[str, Mapping[Key, InferenceService]]:
        services: dict[str, dict[Key, InferenceService]] = {}
        for key, service in self.snapshot.services.items():
            tenant = self.tenant_of(key.namespace)
            if tenant is not None:
                mine = services.setdefault(tenant.metadata.name, {})
                mine[key] = service
                # What a canary holds counts as any service's does.
                mine.update({key._replace(name=item.metadata.name): item for item in derive_canaries(service)})
        for key, batch in self.snapshot.batches.items():
            tenant = self.tenant_of(key.namespace)
            if tenant is not None:
                # Not over one that stands among the services: there it has the edit that a plan tries.
                workers = derive_workers(batch, self.snapshot.runs.get(key))
                services.setdefault(tenant.metadata.name, {}).setdefault(key, workers)
        return services


def _claims_devices(service: InferenceService) -> bool:
    accelerator = service.spec.accelerator
    return accelerator is not None and accelerator.allocation is Allocation.RESOURCE_CLAIM


def _moves(workload: Workload) -> bool:
    return workload.paused or workload.leaving > 0 or is_rolling(workload)
