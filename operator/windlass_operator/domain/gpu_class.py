"""Choose the GPUClass a service runs on.

Preference is the user's order, with two bends: classes with a usable node come before classes without, and the class a
service runs on stays first while it works, because moving restarts every replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from windlass_operator.api.meta import Toleration
from windlass_operator.api.v1alpha1.gpu_class import GPUClass, GPUClassSpec
from windlass_operator.api.v1alpha1.inference_service import InferenceServiceSpec, PrecisionPreset
from windlass_operator.domain.decision import Refusal
from windlass_operator.domain.quantity import parse_bytes
from windlass_operator.domain.snapshot import Workload
from windlass_operator.domain.supply import Supply

BF16_SINCE: Final = (8, 0)
"""First compute capability whose tensor cores compute BF16."""


@dataclass(frozen=True, slots=True)
class GpuChoice:
    """The chosen class, reduced to what a pod needs."""

    name: str
    resource_name: str
    count: int
    """Devices per replica."""
    node_selector: tuple[tuple[str, str], ...]
    tolerations: tuple[Toleration, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A class the service could run on."""

    name: str
    spec: GPUClassSpec
    nodes: int | None
    """Ready, schedulable nodes; None while nodes are unknown."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A listed class the service cannot run on."""

    name: str
    reason: str
    cause: str
    """CamelCase word for machines."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Every listed class, judged. `candidates` has the best first."""

    candidates: tuple[Candidate, ...]
    skipped: tuple[Skipped, ...]


def rank_classes(
    spec: InferenceServiceSpec, gpu_classes: Mapping[str, GPUClass], supply: Supply, workload: Workload
) -> Ranking:
    """Judge the classes of `spec.accelerator`, which must be set."""
    assert spec.accelerator is not None
    names = tuple(dict.fromkeys(spec.accelerator.classes))
    verdicts = [_judge(name, spec, gpu_classes, supply) for name in names]
    candidates = [verdict for verdict in verdicts if isinstance(verdict, Candidate)]
    candidates.sort(key=lambda candidate: _preference(candidate, workload))
    return Ranking(tuple(candidates), tuple(verdict for verdict in verdicts if isinstance(verdict, Skipped)))


def _preference(candidate: Candidate, workload: Workload) -> int:
    if _keeps(candidate, workload):
        return 0
    return 2 if candidate.nodes == 0 else 1


def _keeps(candidate: Candidate, workload: Workload) -> bool:
    return workload.gpu_class == candidate.name and (candidate.nodes != 0 or workload.ready > 0)


def _judge(
    name: str, spec: InferenceServiceSpec, gpu_classes: Mapping[str, GPUClass], supply: Supply
) -> Candidate | Skipped:
    gpu_class = gpu_classes.get(name)
    if gpu_class is None:
        return Skipped(name, f"there is no GPUClass {name}", "UnknownGPUClass")
    cache, memory = spec.cache.memory, gpu_class.spec.memory
    if cache is not None and parse_bytes(cache) >= parse_bytes(memory):
        return Skipped(name, f"spec.cache.memory {cache} leaves nothing of its {memory} for the model", "CacheTooLarge")
    if spec.precision.preset is PrecisionPreset.BF16 and not computes_bf16(gpu_class.spec):
        capability = gpu_class.spec.compute_capability
        return Skipped(name, f"compute capability {capability} has no BF16", "PrecisionUnsupported")
    return Candidate(name, gpu_class.spec, supply.nodes(name))


def describe(candidate: Candidate, supply: Supply, workload: Workload) -> str:
    """Say what speaks for a class."""
    name, nodes = candidate.name, candidate.nodes
    if _keeps(candidate, workload):
        return "its replicas run there already, and moving would restart them"
    if nodes is None:
        return "nodes are unknown here"
    if nodes == 0:
        return "no ready node carries it, so pods wait until one appears"
    free = max(0, supply.free(name) or 0)
    return f"{nodes} ready {'node' if nodes == 1 else 'nodes'}, {free} of {supply.devices(name)} devices free"


def choose(candidate: Candidate, count: int) -> GpuChoice:
    """Reduce a class to what a pod needs."""
    spec = candidate.spec
    return GpuChoice(
        candidate.name,
        spec.resource,
        count,
        tuple(sorted(spec.node_selector.items())),
        tuple(spec.tolerations),
    )


def refuse_ranking(ranking: Ranking) -> Refusal:
    """Say why no listed class will do. `ranking` has no candidates."""
    causes = {skipped.cause for skipped in ranking.skipped}
    cause = causes.pop() if len(causes) == 1 else "NoUsableGPUClass"
    details = "; ".join(f"{skipped.name}: {skipped.reason}" for skipped in ranking.skipped)
    steps = {
        "UnknownGPUClass": "List an existing class in spec.accelerator.classes, or ask the platform team to create it",
        "CacheTooLarge": "Lower spec.cache.memory, or list a class with more memory",
        "PrecisionUnsupported": "Set spec.precision.preset to Auto or FP16, or list a newer class",
    }
    return Refusal(
        cause,
        f"no class of spec.accelerator.classes can be used: {details}",
        steps.get(cause, "List a class in spec.accelerator.classes that exists and fits"),
    )


def computes_bf16(spec: GPUClassSpec) -> bool:
    """Whether the class computes BF16 at full speed."""
    major, _, minor = spec.compute_capability.partition(".")
    return (int(major), int(minor)) >= BF16_SINCE
