"""A snapshot with the look-ups that plans repeat, each made once.

Planning a thousand services from one view costs one pass over tenants, nodes and quotas, not one pass per service.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping

from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.quota import Grant
from windlass_operator.domain.schedule import apply_schedules, next_change_of_all
from windlass_operator.domain.snapshot import Key, Snapshot, Workload
from windlass_operator.domain.supply import Supply
from windlass_operator.domain.tenancy import owners

_NOTHING_RUNS = Workload()


class FleetView:
    """What plans ask of one snapshot."""

    def __init__(self, snapshot: Snapshot, settings: FleetSettings, now: datetime.datetime | None = None) -> None:
        """`now`: the moment of which schedules are read; None leaves them out of account."""
        self.observed = snapshot
        self.snapshot = snapshot if now is None else apply_schedules(snapshot, now)
        self.now = now
        self.settings = settings
        self.supply = Supply(snapshot)
        self.grants: dict[str, Mapping[Key, Grant]] = {}
        """Shares of each tenant's quota, filled by the first plan that needs them."""

    def advance_to(self, now: datetime.datetime) -> bool:
        """Become the view of a later moment; False where a schedule begins or ends before it, so that this one ends."""
        if self.now is None or now < self.now or (self._changes is not None and now >= self._changes):
            return False
        self.now = now
        return True

    def tenant_of(self, namespace: str) -> Tenant | None:
        """The Tenant that owns a namespace."""
        return self._owners.get(namespace)

    def workload_of(self, key: Key) -> Workload:
        """What runs for a service; an empty workload when nothing does."""
        return self.snapshot.workloads.get(key, _NOTHING_RUNS)

    def services_of(self, tenant: Tenant) -> Mapping[Key, InferenceService]:
        """Services in the namespaces a Tenant owns."""
        return self._services.get(tenant.metadata.name, {})

    @functools.cached_property
    def _changes(self) -> datetime.datetime | None:
        return None if self.now is None else next_change_of_all(self.observed.services.values(), self.now)

    @functools.cached_property
    def _owners(self) -> Mapping[str, Tenant]:
        return owners(self.snapshot.tenants)

    @functools.cached_property
    def _services(self) -> Mapping[str, Mapping[Key, InferenceService]]:
        services: dict[str, dict[Key, InferenceService]] = {}
        for key, service in self.snapshot.services.items():
            tenant = self.tenant_of(key.namespace)
            if tenant is not None:
                services.setdefault(tenant.metadata.name, {})[key] = service
        return services
