"""Choose the GPUClass a service runs on, and count what a class has left.

Preference is the user's order, with two bends: classes with a usable node come before classes without, and the class a
service runs on stays first while it works, because moving restarts every replica.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from windlass_operator.api.meta import Toleration
from windlass_operator.api.v1alpha1.gpu_class import GPUClass, GPUClassSpec
from windlass_operator.api.v1alpha1.inference_service import InferenceServiceSpec, PrecisionPreset
from windlass_operator.domain.decision import Refusal
from windlass_operator.domain.quantity import parse_bytes
from windlass_operator.domain.snapshot import Node, Snapshot, Workload

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
    reason: str
    """Why it stands where it stands."""


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


def rank_classes(spec: InferenceServiceSpec, snapshot: Snapshot, workload: Workload) -> Ranking:
    """Judge the classes of `spec.accelerator`, which must be set."""
    assert spec.accelerator is not None
    names = tuple(dict.fromkeys(spec.accelerator.classes))
    verdicts = [_judge(name, spec, snapshot, workload) for name in names]
    candidates = [verdict for verdict in verdicts if isinstance(verdict, Candidate)]
    candidates.sort(key=lambda candidate: _preference(candidate, workload))
    return Ranking(tuple(candidates), tuple(verdict for verdict in verdicts if isinstance(verdict, Skipped)))


def _preference(candidate: Candidate, workload: Workload) -> int:
    if _keeps(candidate.name, candidate.nodes, workload):
        return 0
    return 2 if candidate.nodes == 0 else 1


def _keeps(name: str, nodes: int | None, workload: Workload) -> bool:
    return workload.gpu_class == name and (nodes != 0 or workload.ready > 0)


def _judge(name: str, spec: InferenceServiceSpec, snapshot: Snapshot, workload: Workload) -> Candidate | Skipped:
    gpu_class = snapshot.gpu_classes.get(name)
    if gpu_class is None:
        return Skipped(name, f"there is no GPUClass {name}", "UnknownGPUClass")
    cache, memory = spec.cache.memory, gpu_class.spec.memory
    if cache is not None and parse_bytes(cache) >= parse_bytes(memory):
        return Skipped(name, f"spec.cache.memory {cache} leaves nothing of its {memory} for the model", "CacheTooLarge")
    if spec.precision.preset is PrecisionPreset.BF16 and not computes_bf16(gpu_class.spec):
        return Skipped(
            name, f"compute capability {gpu_class.spec.compute_capability} has no BF16", "PrecisionUnsupported"
        )
    nodes = count_nodes(gpu_class, snapshot)
    return Candidate(name, gpu_class.spec, nodes, _describe(name, nodes, gpu_class, snapshot, workload))


def _describe(name: str, nodes: int | None, gpu_class: GPUClass, snapshot: Snapshot, workload: Workload) -> str:
    if _keeps(name, nodes, workload):
        return "its replicas run there already, and moving would restart them"
    if nodes is None:
        return "nodes are unknown here"
    if nodes == 0:
        return "no ready node carries it, so pods wait until one appears"
    free = max(0, free_devices(gpu_class, snapshot) or 0)
    return f"{nodes} ready {'node' if nodes == 1 else 'nodes'}, {free} of {count_devices(gpu_class, snapshot)} devices free"


def choose(candidate: Candidate, count: int) -> GpuChoice:
    """Reduce a class to what a pod needs."""
    spec = candidate.spec
    return GpuChoice(
        candidate.name,
        spec.resource_name,
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


def matching_nodes(gpu_class: GPUClass, nodes: Iterable[Node]) -> list[Node]:
    """Ready, schedulable nodes that carry the class and offer its resource."""
    wanted = gpu_class.spec.node_selector.items()
    return [
        node
        for node in nodes
        if node.ready
        and node.schedulable
        and node.allocatable.get(gpu_class.spec.resource_name, 0) > 0
        and all(node.labels.get(key) == value for key, value in wanted)
    ]


def count_nodes(gpu_class: GPUClass, snapshot: Snapshot) -> int | None:
    """Usable nodes of a class; None while nodes are unknown."""
    return None if snapshot.nodes is None else len(matching_nodes(gpu_class, snapshot.nodes.values()))


def count_devices(gpu_class: GPUClass, snapshot: Snapshot) -> int:
    """Devices on the usable nodes of a class."""
    nodes = matching_nodes(gpu_class, (snapshot.nodes or {}).values())
    return sum(node.allocatable[gpu_class.spec.resource_name] for node in nodes)


def free_devices(gpu_class: GPUClass, snapshot: Snapshot) -> int | None:
    """Devices of a class that no replica of ours holds or waits for; negative while more wait than exist.

    Classes may select the same nodes; replicas of any such class count as users of this one, so the figure is never too
    high for that reason. Devices held by other pods are unknown here. None while nodes are unknown.
    """
    if snapshot.nodes is None:
        return None
    names = {node.name for node in matching_nodes(gpu_class, snapshot.nodes.values())}
    rivals = {
        name
        for name, other in snapshot.gpu_classes.items()
        if other.spec.resource_name == gpu_class.spec.resource_name
        and names & {node.name for node in matching_nodes(other, snapshot.nodes.values())}
    } | {gpu_class.metadata.name}
    held = sum(workload.devices for workload in snapshot.workloads.values() if workload.gpu_class in rivals)
    return count_devices(gpu_class, snapshot) - held
