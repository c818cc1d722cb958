"""Choose the GPUClass a service runs on."""

from __future__ import annotations

from dataclasses import dataclass

from windlass_operator.api.meta import Toleration


@dataclass(frozen=True, slots=True)
class GpuChoice:
    """The chosen class, reduced to what a pod needs."""

    name: str
    resource_name: str
    count: int
    """Devices per replica."""
    node_selector: tuple[tuple[str, str], ...]
    tolerations: tuple[Toleration, ...]
