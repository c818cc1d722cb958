"""What commands that look at a live cluster make of what they could read (`cluster.kubernetes_reader`)."""

from __future__ import annotations

from typing import Final

from windlass_operator.cluster.kubernetes_reader import Picture
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.settings import parse_settings

PLANNED_FROM: Final = ("Tenant", "GPUClass", "InferenceService", "BatchInference")
"""Kinds without which a plan would be a guess."""


def settings_of(picture: Picture) -> FleetSettings:
    """The settings of the operator that runs there, or its defaults."""
    if picture.environment is None:
        return FleetSettings()
    ours = {name: value for name, value in picture.environment.items() if name.startswith("WINDLASS_FLEET_")}
    return parse_settings(ours).fleet


def unread_kinds(picture: Picture) -> list[str]:
    """Kinds that could be read nowhere, and without which nothing is planned."""
    return [gap.kind for gap in picture.gaps if gap.kind in PLANNED_FROM and not gap.namespaces]


def notes_on(picture: Picture) -> list[str]:
    """What a plan does not know, in words."""
    notes = [
        f"{gap.kind} objects were read in {', '.join(gap.namespaces)} only"
        if gap.namespaces
        else f"{gap.kind} objects may not be read; nothing is told of them"
        for gap in picture.gaps
    ]
    if picture.snapshot.nodes is None:
        notes.append("free devices are unknown, because nodes or pods may not be read everywhere")
    if picture.environment is None:
        notes.append("the operator's settings cannot be read; its defaults are assumed")
    return notes
