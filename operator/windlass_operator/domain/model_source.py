"""Where a checkpoint comes from, and what a pod must mount to see it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from windlass_operator.domain.capabilities import Capabilities
from windlass_operator.domain.decision import Decision, Refusal, decide
from windlass_operator.domain.fleet import Platform

MODEL_MOUNT: Final = "/models"
"""Folder of a mounted checkpoint inside the pod."""


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

    @property
    def mounted(self) -> bool:
        """Whether the pod sees the checkpoint through a volume."""
        return self.kind in (SourceKind.CLAIM, SourceKind.IMAGE)


def parse_source(uri: str, platform: Platform) -> ModelSource | Refusal:
    """Read a model URI, or say why it cannot be served there."""
    scheme, _, rest = uri.partition("://")
    if scheme not in set(SourceKind):
        return _unusable(uri, "one of hf://, pvc://, oci:// and file://", "Set spec.model.uri to a known source")
    if platform is Platform.LOCAL and scheme in (SourceKind.CLAIM, SourceKind.IMAGE):
        return _unusable(
            uri,
            "hf:// or file:// on a machine without a cluster",
            "Download the checkpoint and set spec.model.uri to file:// with its folder",
        )
    match SourceKind(scheme):
        case SourceKind.HUB:
            return _parse_hub(uri, rest)
        case SourceKind.CLAIM:
            return _parse_claim(uri, rest)
        case SourceKind.IMAGE:
            return ModelSource(SourceKind.IMAGE, rest, launch_uri=f"file://{MODEL_MOUNT}")
        case SourceKind.FILE:
            return _parse_file(uri, rest, platform)


def _parse_hub(uri: str, rest: str) -> ModelSource | Refusal:
    name, _, _ = rest.partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        return _unusable(uri, "hf://organisation/name or hf://organisation/name@revision", "Correct spec.model.uri")
    return ModelSource(SourceKind.HUB, rest, launch_uri=uri)


def _parse_claim(uri: str, rest: str) -> ModelSource | Refusal:
    claim, _, folder = rest.partition("/")
    path = folder.strip("/")
    if not claim or ".." in path.split("/"):
        return _unusable(uri, "pvc://claim or pvc://claim/folder without ..", "Correct spec.model.uri")
    return ModelSource(SourceKind.CLAIM, claim, path, launch_uri=f"file://{MODEL_MOUNT}")


def _parse_file(uri: str, rest: str, platform: Platform) -> ModelSource | Refusal:
    if platform is Platform.KUBERNETES and not rest.startswith("/"):
        return _unusable(
            uri,
            "an absolute path such as file:///models/chat, because a pod has no folder to start from",
            "Use an absolute path inside the runtime image, or pvc:// or oci://",
        )
    return ModelSource(SourceKind.FILE, rest, launch_uri=uri)


def _unusable(uri: str, expected: str, next_step: str) -> Refusal:
    return Refusal("ModelSourceUnusable", f"spec.model.uri: expected {expected}, found {uri}", next_step)


def check_volume(source: ModelSource, capabilities: Capabilities) -> Refusal | None:
    """Refuse an image on a server that would drop its volume: replicas would start without a model, and fail."""
    version = capabilities.drops_image_volumes
    if source.kind is not SourceKind.IMAGE or not version:
        return None
    return Refusal(
        "ModelSourceUnusable",
        f"spec.model.uri: expected a cluster with image volumes for oci://, found Kubernetes {version} with the "
        "feature gate ImageVolume off, which drops them",
        "Use Kubernetes 1.35 or later, turn the gate on in API server and kubelets, or use pvc:// or hf://",
    )


def explain_source(source: ModelSource) -> Decision:
    """Say how the checkpoint reaches a replica."""
    match source.kind:
        case SourceKind.HUB if "@" not in source.location:
            reason = (
                "every replica downloads the newest revision when it starts, so replicas may differ; "
                "pin one with @revision"
            )
        case SourceKind.HUB:
            reason = "every replica downloads this revision into its own cache; outgoing HTTPS is opened for it"
        case SourceKind.CLAIM:
            reason = f"claim {source.location} is mounted read-only; it must allow as many readers as there are nodes"
        case SourceKind.IMAGE:
            reason = (
                "the image is mounted as a read-only volume (Kubernetes 1.35 or later, or the feature gate ImageVolume)"
            )
        case SourceKind.FILE:
            reason = "the folder is part of the runtime's own file system"
    folder = f"/{source.path}" if source.path else ""
    return decide("model", f"{source.kind.value}://{source.location}{folder}", reason)
