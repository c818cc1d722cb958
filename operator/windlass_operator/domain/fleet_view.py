"""A snapshot with the look-ups that plans repeat, each made once.

Planning a thousand services from one view costs one pass over tenants, nodes and quotas, not one pass per service.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.quota import Grant
from windlass_operator.domain.snapshot import Key, Snapshot, Workload
from windlass_operator.domain.supply import Supply
from windlass_operator.domain.tenancy import owners

_NOTHING_RUNS = Workload()


class FleetView:
    """What plans ask of one snapshot."""

    def __init__(self, snapshot: Snapshot, settings: FleetSettings) -> None:
        self.snapshot = snapshot
        self.settings = settings
        self.supply = Supply(snapshot)
        self.grants: dict[str, Mapping[Key, Grant]] = {}
        """Shares of each tenant's quota, filled by the first plan that needs them."""

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
