"""What `load_documents` returns: frozen objects, where each was written, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from windlass_operator.api.v1alpha1.batch_inference import BatchInference
from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.errors import Problem

STDIN_NAME: Final = "<stdin>"


@dataclass(frozen=True, slots=True)
class Source:
    """Where an object was written."""

    file: str
    line: int
    lines: Mapping[str, int] = field(default_factory=dict)
    """Line of every field that was written, by its path, `spec.model.uri`."""

    def line_of(self, path: str) -> int:
        """Line of a field, or of its nearest ancestor that was written."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, self.line)

    @property
    def folder(self) -> Path:
        """What relative `file://` paths of the object start from; the working directory for standard input."""
        return Path() if self.file == STDIN_NAME else Path(self.file).parent


Identity = tuple[str, str, str]
"""Kind, namespace (empty for cluster-scoped kinds), name."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What some files hold. Objects with problems are left out; `problems` says why."""

    services: tuple[InferenceService, ...] = ()
    tenants: tuple[Tenant, ...] = ()
    gpu_classes: tuple[GPUClass, ...] = ()
    batches: tuple[BatchInference, ...] = ()
    foreign: tuple[dict[str, Any], ...] = ()
    """Documents of kinds that are not ours, as they are."""
    problems: tuple[Problem, ...] = ()
    """What must change, in order of files and lines."""
    warnings: tuple[Problem, ...] = ()
    """What is allowed but will not work with the other objects of these files."""
    sources: Mapping[Identity, Source] = field(default_factory=dict)

    @property
    def tenants_work(self) -> tuple[InferenceService | BatchInference, ...]:
        """What tenant teams write: services, then batches."""
        return (*self.services, *self.batches)

    def source_of(self, item: InferenceService | Tenant | GPUClass | BatchInference) -> Source:
        """Where the object was written."""
        return self.sources[identity_of(item)]


def identity_of(item: InferenceService | Tenant | GPUClass | BatchInference) -> Identity:
    """Tell objects apart as the API server does."""
    return type(item).__name__, item.metadata.namespace, item.metadata.name
