"""Objects a fleet needs once: the PriorityClasses of the three tiers."""

from __future__ import annotations

from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.render.manifest import Manifest


def render_fleet(settings: FleetSettings) -> tuple[Manifest, ...]:
    """Three PriorityClasses."""
    raise NotImplementedError
