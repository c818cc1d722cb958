"""Say in words what speaks for a GPUClass, and why none of those listed will do."""

from __future__ import annotations

from windlass_operator.domain.decision import Refusal
from windlass_operator.domain.gpu_class import Candidate, Ranking, keeps
from windlass_operator.domain.snapshot import Workload
from windlass_operator.domain.supply import Supply


def describe(candidate: Candidate, supply: Supply, workload: Workload) -> str:
    """Say what speaks for a class."""
    if keeps(candidate, workload):
        return f"{_describe_merit(candidate)}its replicas run there already, and moving would restart them"
    if candidate.claimed:
        return (
            f"{_describe_merit(candidate)}the scheduler looks for its devices first{_describe_offer(candidate, supply)}"
        )
    return f"{_describe_merit(candidate)}{_describe_nodes(candidate, supply)}"


def _describe_merit(candidate: Candidate) -> str:
    if not candidate.by_need:
        return ""
    price = candidate.spec.price_per_hour
    words = "its price is not stated" if price is None else f"{price} per hour"
    return f"meets spec.accelerator.requirements, {words}; "


def _describe_offer(candidate: Candidate, supply: Supply) -> str:
    offers, count = supply.claimable(candidate.name), candidate.count
    if offers is None:
        return ""
    devices = sum(len(offer.devices) for offer in offers.values())
    if not candidate.nodes:
        largest = max((len(offer.devices) for offer in offers.values()), default=0)
        found = f"the largest offers {largest}" if largest else "none offers any"
        return f"; no ready node offers {count} of them to claims, {found}, so pods wait until one appears"
    free = sum(len(offer.free) for offer in offers.values())
    where = "1 ready node offers" if len(offers) == 1 else f"{len(offers)} ready nodes offer"
    return f"; {where} {devices} to claims, {free} of them free"


def _describe_nodes(candidate: Candidate, supply: Supply) -> str:
    name, nodes = candidate.name, candidate.nodes
    if nodes is None:
        return "nodes are unknown here"
    if nodes == 0 and (largest := supply.largest_node(name)):
        return (
            f"no ready node has {candidate.count} of its devices, the largest has {largest}, "
            "so pods wait until one appears"
        )
    if nodes == 0:
        return "no ready node carries it, so pods wait until one appears"
    free = max(0, supply.free(name) or 0)
    words = f"{nodes} ready {'node' if nodes == 1 else 'nodes'}, {free} of {supply.devices(name)} devices free"
    if candidate.count == 1:
        return words
    slots = max(0, supply.slots(name, candidate.count) or 0)
    return f"{words}, which hold {slots} {'replica' if slots == 1 else 'replicas'} of {candidate.count} devices"


def refuse_ranking(ranking: Ranking) -> Refusal:
    """Say why no listed class will do. `ranking` has no candidates."""
    if not ranking.skipped:
        return Refusal(
            "RequirementsNotMet",
            "no class meets spec.accelerator.requirements: there is no GPUClass",
            "Ask the platform team to create one",
        )
    causes = {skipped.cause for skipped in ranking.skipped}
    mixed = "RequirementsNotMet" if ranking.by_need else "NoUsableGPUClass"
    cause = causes.pop() if len(causes) == 1 else mixed
    details = "; ".join(f"{skipped.name}: {skipped.reason}" for skipped in ranking.skipped)
    steps = {
        "UnknownGPUClass": "List an existing class in spec.accelerator.classes, or ask the platform team to create it",
        "CacheTooLarge": "Lower spec.cache.memory, or list a class with more memory",
        "PrecisionUnsupported": "Set spec.precision.preset to Auto or FP16, or list a newer class",
        "CacheUnbounded": "Set spec.cache.memory or spec.model.shape, or use a class without time slices",
        "CountNotSupported": "Set spec.accelerator.count to 1, or use a class of whole GPUs",
        "NotClaimable": "Set spec.accelerator.allocation to DevicePlugin, or use a class with a deviceClassName",
        "SharingNotAccepted": "Set spec.accelerator.sharing to MIG or TimeSliced, or use a class of whole GPUs",
        "RequirementsNotMet": "Lower spec.accelerator.requirements, or ask the platform team for such a class",
    }
    if ranking.by_need:
        words = "no class meets spec.accelerator.requirements"
        otherwise = "Lower what the service asks for"
    else:
        words = "no class of spec.accelerator.classes can be used"
        otherwise = "List a class in spec.accelerator.classes that exists and fits"
    remedy = next((skipped.remedy for skipped in ranking.skipped if skipped.remedy), "")
    return Refusal(cause, f"{words}: {details}", steps.get(cause, remedy or otherwise))
