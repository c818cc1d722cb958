"""Where a checkpoint comes from, and what a pod must mount to see it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class SourceKind(enum.StrEnum):
    """URI schemes of `spec.model.uri`."""

    HUB = "hf"
    CLAIM = "pvc"
    IMAGE = "oci"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A parsed `spec.model.uri`."""

    kind: SourceKind
    location: str
    """Hub name with revision, claim name, image reference or path."""
    path: str = ""
    """Folder inside a claim; empty for its root and for every other kind."""
    launch_uri: str = ""
    """What the replica opens: mounted sources arrive as `file://`."""
