"""Choose the GPUClass a service runs on.

Preference is the user's order, or the price where the user states needs instead of names, with three bends: classes
with a usable node come before classes without, the class a service runs on stays first while it works, because moving
restarts every replica, and a service that accepts smaller number formats first takes classes with free devices.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from windlass_operator.api.meta import Toleration
from windlass_operator.api.v1alpha1.gpu_class import GPUClass, GPUClassSpec, Placement
from windlass_operator.api.v1alpha1.inference_service import Allocation, InferenceServiceSpec
from windlass_operator.domain.device_claim import Alternative, find_unclaimable, plan_alternatives
from windlass_operator.domain.elastic_precision import AS_STORED, Format, acceptable_formats
from windlass_operator.domain.gpu_need import (
    cheapest_first,
    computes,
    describe_memory,
    find_unaccepted_sharing,
    find_uncountable,
    find_unmet_requirement,
    usable_bytes,
)
from windlass_operator.domain.model_fit import judge_fit, suggest
from windlass_operator.domain.precision import choose_precision
from windlass_operator.domain.quantity import parse_bytes
from windlass_operator.domain.snapshot import Workload
from windlass_operator.domain.supply import Supply


@dataclass(frozen=True, slots=True)
class GpuChoice:
    """The chosen class, reduced to what a pod needs."""

    name: str
    resource_name: str
    count: int
    """Devices per replica."""
    node_selector: tuple[tuple[str, str], ...]
    tolerations: tuple[Toleration, ...]
    packs: bool = False
    """Whether replicas prefer nodes that run others of the class."""
    alternatives: tuple[Alternative, ...] = ()
    """What the replica claims, the preferred first; empty: it asks a device plugin for `resource_name`."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A class the service could run on."""

    name: str
    spec: GPUClassSpec
    nodes: int | None
    """Ready, schedulable nodes with enough devices for a replica; None while nodes are unknown."""
    count: int = 1
    """Devices per replica."""
    by_need: bool = False
    """Whether it was found by needs and price, not by name."""
    format: Format = AS_STORED
    """The first acceptable number format that fits."""
    claimed: tuple[Candidate, ...] = ()
    """Where devices are claimed: this class and those that would do instead. Empty: a device plugin gives them."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A listed class the service cannot run on."""

    name: str
    reason: str
    cause: str
    """CamelCase word for machines."""
    remedy: str = ""
    """What would make it usable, as an order; empty: the cause tells enough."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Every listed class, or where needs are stated every class there is, judged. `candidates` has the best first."""

    candidates: tuple[Candidate, ...]
    skipped: tuple[Skipped, ...]
    by_need: bool = False
    """Whether needs were stated instead of names: then order is price."""


def rank_classes(
    spec: InferenceServiceSpec,
    gpu_classes: Mapping[str, GPUClass],
    supply: Supply,
    workload: Workload,
    *,
    least: int = 1,
    may_return: bool = False,
    may_leave: bool = True,
) -> Ranking:
    """Judge the classes of `spec.accelerator`, which must be set.

    least       replicas that it cannot do without
    may_return  whether a service that runs in a smaller number format than its preset may move back now
    may_leave   whether a service whose pods all wait for devices may look for them elsewhere
    """
    assert spec.accelerator is not None
    listed, claims = spec.accelerator.classes, spec.accelerator.allocation is Allocation.RESOURCE_CLAIM
    names = cheapest_first(gpu_classes) if listed is None else tuple(dict.fromkeys(listed))
    verdicts = [_judge(name, spec, gpu_classes, supply) for name in names]
    candidates = [verdict for verdict in verdicts if isinstance(verdict, Candidate)]
    if claims:
        candidates = _claim(candidates)
    else:
        back = _find_return(candidates, supply, workload) if may_return else frozenset()
        roomy = _find_roomy(spec, candidates, supply, max(1, least))
        elsewhere = (roomy or frozenset()) - {workload.gpu_class} if may_leave and _is_stuck(workload) else frozenset()
        order = {
            one.name: _place(one, elsewhere) if elsewhere else _preference(one, workload, back, roomy)
            for one in candidates
        }
        candidates.sort(key=lambda candidate: (order[candidate.name], candidate.format.step))
    skipped = tuple(verdict for verdict in verdicts if isinstance(verdict, Skipped))
    return Ranking(tuple(candidates), skipped, by_need=listed is None)


def _claim(candidates: list[Candidate]) -> list[Candidate]:
    """The first class with those that would do instead: one pod template has one number format."""
    best = min((candidate.format.step for candidate in candidates), default=0)
    alike = [candidate for candidate in candidates if candidate.format.step == best]
    return [replace(first, claimed=tuple(alike)) for first in alike[:1]]


def _find_return(candidates: list[Candidate], supply: Supply, workload: Workload) -> frozenset[str]:
    """Classes with a larger number format than where the service runs, and free devices for all of its replicas."""
    kept = next((candidate for candidate in candidates if keeps(candidate, workload)), None)
    if kept is None:
        return frozenset()
    needed = max(workload.wanted, workload.replicas)
    larger = [candidate for candidate in candidates if candidate.format.step < kept.format.step and candidate.nodes]
    return frozenset(one.name for one in larger if (supply.slots(one.name, one.count) or 0) >= needed > 0)


def _find_roomy(
    spec: InferenceServiceSpec, candidates: list[Candidate], supply: Supply, replicas: int
) -> frozenset[str] | None:
    """Classes with free devices for some replicas; None where that is no reason to prefer one: every format is as good,
    and pods wait for their turn.
    """
    if len(acceptable_formats(spec)) == 1:
        return None
    return frozenset(one.name for one in candidates if (supply.slots(one.name, one.count) or 0) >= replicas)


def _is_stuck(workload: Workload) -> bool:
    """Whether nothing serves and nothing of its own will make room for the pods that wait."""
    return workload.unplaced > 0 and workload.ready == 0 and workload.leaving == 0


def within(ranking: Ranking, listed: Container[str]) -> Ranking:
    """Leave out of a claim what a tenant's quota does not list. A claim of which nothing is left stays as it is."""
    if not ranking.candidates or not ranking.candidates[0].claimed:
        return ranking
    allowed = tuple(one for one in ranking.candidates[0].claimed if one.name in listed)
    return replace(ranking, candidates=(replace(allowed[0], claimed=allowed),)) if allowed else ranking


def _preference(candidate: Candidate, workload: Workload, back: Container[str], roomy: Container[str] | None) -> int:
    if candidate.name in back:
        return -1
    return 0 if keeps(candidate, workload) else _place(candidate, roomy)


def _place(candidate: Candidate, roomy: Container[str] | None) -> int:
    """Order among classes that it does not run on."""
    if candidate.nodes == 0:
        return 3
    return 1 if roomy is None or candidate.name in roomy else 2


def keeps(candidate: Candidate, workload: Workload) -> bool:
    """Whether a service runs on a class and stays there, as long as that works."""
    return workload.gpu_class == candidate.name and (candidate.nodes != 0 or workload.ready > 0)


def _judge(
    name: str, spec: InferenceServiceSpec, gpu_classes: Mapping[str, GPUClass], supply: Supply
) -> Candidate | Skipped:
    gpu_class, accelerator = gpu_classes.get(name), spec.accelerator
    assert accelerator is not None
    if gpu_class is None:
        return Skipped(name, f"there is no GPUClass {name}", "UnknownGPUClass")
    if unaccepted := find_unaccepted_sharing(accelerator, gpu_class.spec):
        return Skipped(name, unaccepted, "SharingNotAccepted")
    if uncountable := find_uncountable(accelerator.count, gpu_class.spec):
        return Skipped(name, uncountable, "CountNotSupported")
    if accelerator.allocation is Allocation.RESOURCE_CLAIM and (unclaimable := find_unclaimable(gpu_class.spec)):
        return Skipped(name, unclaimable, "NotClaimable")
    if accelerator.requirements is not None and (
        unmet := find_unmet_requirement(accelerator.requirements, gpu_class.spec)
    ):
        return Skipped(name, unmet, "RequirementsNotMet")
    cache, memory, count = spec.cache.memory, describe_memory(gpu_class.spec), accelerator.count
    if cache is not None and parse_bytes(cache) >= usable_bytes(gpu_class.spec) * count:
        memory = memory if count == 1 else f"{count} x {memory}"
        return Skipped(name, f"spec.cache.memory {cache} leaves nothing of its {memory} for the model", "CacheTooLarge")
    if gpu_class.spec.sharing is not None and cache is None and spec.model.shape is None:
        return Skipped(
            name, "pods share its memory, and nothing bounds the key/value cache of a replica", "CacheUnbounded"
        )
    found = _find_format(spec, gpu_class.spec)
    if found is None:
        return _skip_for_format(name, spec, gpu_class.spec, gpu_classes)
    by_need = accelerator.classes is None
    nodes = supply.nodes(name, count)
    if accelerator.allocation is Allocation.RESOURCE_CLAIM and supply.claimable(name) is not None:
        nodes = supply.claimable_nodes(name, count)
    return Candidate(name, gpu_class.spec, nodes, count, by_need=by_need, format=found)


def _find_format(spec: InferenceServiceSpec, gpu: GPUClassSpec) -> Format | None:
    """The first acceptable number format that the class computes and its memory holds."""
    for found in acceptable_formats(spec):
        precision, _ = choose_precision(found.preset, gpu)
        fit = judge_fit(spec, precision, gpu)
        if computes(gpu, precision) and (fit is None or fit.fits):
            return found
    return None


def _skip_for_format(
    name: str, spec: InferenceServiceSpec, gpu: GPUClassSpec, gpu_classes: Mapping[str, GPUClass]
) -> Skipped:
    """Say what is wrong with the smallest format; larger ones have the same trouble."""
    precision, _ = choose_precision(acceptable_formats(spec)[-1].preset, gpu)
    if not computes(gpu, precision):
        return Skipped(name, f"compute capability {gpu.compute_capability} has no BF16", "PrecisionUnsupported")
    fit = judge_fit(spec, precision, gpu)
    assert fit is not None
    return Skipped(name, fit.arithmetic, "ModelDoesNotFit", suggest(spec, gpu, precision, gpu_classes))


def choose(candidate: Candidate) -> GpuChoice:
    """Reduce a class, and those that would do instead, to what a pod needs."""
    spec = candidate.spec
    tolerations = [item for one in candidate.claimed or (candidate,) for item in one.spec.tolerations]
    return GpuChoice(
        candidate.name,
        spec.resource,
        candidate.count,
        tuple(sorted(spec.node_selector.items())),
        tuple(tolerations),
        spec.placement is Placement.PACK,
        plan_alternatives((one.name, one.spec) for one in candidate.claimed),
    )
