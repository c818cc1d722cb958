"""Children of a Tenant."""

from __future__ import annotations

from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import TenantPlan
from windlass_operator.render.manifest import Manifest


def render_tenant(plan: TenantPlan, settings: FleetSettings) -> tuple[Manifest, ...]:
    """Namespaces first, then what goes into each."""
    raise NotImplementedError
