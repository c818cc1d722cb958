"""Children of an InferenceService, complete and in the order they are applied."""

from __future__ import annotations

from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import ServicePlan
from windlass_operator.render.manifest import Manifest


def render_service(plan: ServicePlan, settings: FleetSettings) -> tuple[Manifest, ...]:
    """Objects of a plan whose action is Apply, none for Remove. A plan on Hold has no objects to render: ValueError."""
    raise NotImplementedError
