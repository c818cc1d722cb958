"""Find the smallest changes that would let a refused or waiting service run, each proven by planning with the change.

Nothing here guesses: a remedy proposes a range of edits, and the smallest edit whose world admits the service is the
suggestion. Edits come as merge patches, so that people, programs and tests apply what was proven.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from windlass_operator.api.v1alpha1.inference_service import InferenceService, PrecisionPreset
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.admission import Admission, admit, check_service, key_of
from windlass_operator.domain.decision import Refusal
from windlass_operator.domain.fleet_view import FleetView, circle_of
from windlass_operator.domain.fragmentation import count_missing
from windlass_operator.domain.gpu_class import Candidate
from windlass_operator.domain.quota import URGENCY, Grant, Wait
from windlass_operator.domain.snapshot import Key, Snapshot
from windlass_operator.domain.suggestion import Change, Remedy, Suggestion, next_step

SERVICES_AT_MOST: Final = 100
"""GPU services that share one set of books, up to which a reconcile looks for suggestions: each trial shares anew."""
_NEIGHBOURS_AT_MOST = 8
CLAIMS_WAIT: Final = "cannot allocate all claims"
"""The scheduler's words for pods whose claims no node satisfies."""
_ADVISED = frozenset({"QuotaExceeded", "QuotaLimited"})
"""Quota refusals whose next step is the smallest change; the others end in another way first."""


def suggest(service: InferenceService, verdict: Admission, view: FleetView) -> tuple[Suggestion, ...]:
    """Every remedy that helps a refused service, the smallest first; empty when none does or it is not refused."""
    if verdict.refusal is None or verdict.refusal.passing or service.spec.accelerator is None:
        return ()
    if check_service(service, view) is not None:
        return ()
    found = [*_by_class(service, view), *_by_precision(service, view)]
    grant, tenant = verdict.grant, view.tenant_of(key_of(service).namespace)
    if tenant is not None and grant is not None and grant.short and grant.wait is Wait.ROOM:
        found += _by_tenant(grant, tenant, service, view)
        found += _by_replicas(grant, service, view)
        found += _by_neighbour(grant, tenant, service, view)
    return _smallest_first(found)


def suggest_for_pods(service: InferenceService, verdict: Admission, view: FleetView) -> tuple[Suggestion, ...]:
    """What helps pods of an admitted service that no node has room for."""
    workload, accelerator = view.workload_of(key_of(service)), service.spec.accelerator
    if verdict.refusal is not None or verdict.candidate is None or accelerator is None or not workload.unplaced:
        return ()
    lacking = (
        "cannot allocate all claims" if verdict.candidate.claimed else f"Insufficient {verdict.candidate.spec.resource}"
    )
    if lacking not in workload.pending_reason:
        return ()
    found = [*_by_freeing(verdict.candidate, workload.unplaced, view), *_by_other_class(service, view)]
    devices = workload.unplaced * accelerator.count
    placed = workload.wanted - workload.unplaced
    if service.spec.scaling is None and placed > 0:
        change = Change(key_of(service), {"spec": _replicas_patch(service, placed)})
        found.append(Suggestion(Remedy.LOWER_REPLICAS, f"lower {_replicas_order(service, placed)}", devices, change))
    return _smallest_first(found)


def advise(refusal: Refusal | None, suggestions: tuple[Suggestion, ...], *, shares_quota: bool) -> Refusal | None:
    """Put the smallest changes into a refusal's next step."""
    if refusal is None or not suggestions or (shares_quota and refusal.reason not in _ADVISED):
        return refusal
    return replace(refusal, next_step=next_step(suggestions))


def applied(change: Change, snapshot: Snapshot) -> Snapshot:
    """The world with one object edited."""
    key = change.key
    if key.kind == "Tenant":
        tenant = _edit(snapshot.tenants[key.name], change.patch)
        return replace(snapshot, tenants={**snapshot.tenants, key.name: tenant})
    if key not in snapshot.services:
        return snapshot  # a canary, which is no object of its own: an edit of it is not tried, so never suggested
    service = _edit(snapshot.services[key], change.patch)
    return replace(snapshot, services={**snapshot.services, key: service})


# -- remedies ----------------------------------------------------------------------------------------------------------


def _by_class(service: InferenceService, view: FleetView) -> Iterator[Suggestion]:
    """Accept one more class."""
    accelerator = service.spec.accelerator
    if accelerator is None or accelerator.classes is None:
        return
    for name in sorted(set(view.snapshot.gpu_classes) - set(accelerator.classes)):
        classes = [*accelerator.classes, name]
        change = Change(key_of(service), {"spec": {"accelerator": {"classes": classes}}})
        if len(classes) <= 8 and view.supply.nodes(name, accelerator.count) != 0 and _admits(change, service, view):
            yield Suggestion(Remedy.LIST_CLASS, f"add {name} to spec.accelerator.classes", 0, change)
            return


def _by_freeing(candidate: Candidate, replicas: int, view: FleetView) -> Iterator[Suggestion]:
    """Free devices where the fewest are missing: a replica needs all of its devices on one node."""
    name, supply = candidate.name, view.supply
    where = ",".join(f"{key}={value}" for key, value in sorted(candidate.spec.node_selector.items()))
    if candidate.count == 1:
        yield Suggestion(Remedy.FREE_DEVICES, f"free {replicas} x {name} on nodes with {where}", replicas)
        return
    free, capacity = supply.free_by_node(name), supply.capacity(name)
    if candidate.claimed:
        offers = supply.claimable(name) or {}
        free = {node: len(offer.free) for node, offer in offers.items()}
        capacity = {node: len(offer.devices) for node, offer in offers.items()}
    missing = count_missing(free, capacity, candidate.count, replicas)
    if missing is None:
        order = f"add a node with {where} and {candidate.count} devices"
        yield Suggestion(Remedy.FREE_DEVICES, order, replicas * candidate.count)
    elif missing:
        nodes = ", ".join(f"{count} on {node}" for node, count in missing.items())
        order = f"free {sum(missing.values())} x {name} ({nodes}): each replica needs {candidate.count} on one node"
        yield Suggestion(Remedy.FREE_DEVICES, order, sum(missing.values()))


def _by_other_class(service: InferenceService, view: FleetView) -> Iterator[Suggestion]:
    """Move to a class that has free devices for every replica."""
    accelerator, workload = service.spec.accelerator, view.workload_of(key_of(service))
    assert accelerator is not None
    needed = max(workload.unplaced, workload.wanted)
    for name in sorted(view.snapshot.gpu_classes):
        if name in (accelerator.classes or ()) or (view.supply.slots(name, accelerator.count) or 0) < needed:
            continue
        change = Change(key_of(service), {"spec": {"accelerator": {"classes": [name], "requirements": None}}})
        if _admits(change, service, view):
            yield Suggestion(Remedy.LIST_CLASS, f"set spec.accelerator.classes to [{name}]", 0, change)
            return


def _by_precision(service: InferenceService, view: FleetView) -> Iterator[Suggestion]:
    """Accept another number format."""
    for preset in PrecisionPreset:
        if preset is service.spec.precision.preset:
            continue
        change = Change(key_of(service), {"spec": {"precision": {"preset": preset.value}}})
        if _admits(change, service, view):
            yield Suggestion(Remedy.CHANGE_PRECISION, f"set spec.precision.preset to {preset.value}", 0, change)
            return


def _by_replicas(grant: Grant, service: InferenceService, view: FleetView) -> Iterator[Suggestion]:
    """Ask for fewer replicas, but for one at least."""
    if service.spec.scaling is not None and service.spec.scaling.schedules:
        return  # which number counts depends on the hour

    def lower(by: int) -> Suggestion:
        count = grant.least - by
        change = Change(key_of(service), {"spec": _replicas_patch(service, count)})
        order = f"lower {_replicas_order(service, count)}"
        return Suggestion(Remedy.LOWER_REPLICAS, order, by * grant.devices_per_replica, change)

    yield from _smallest(range(1, grant.least), lower, service, view)


def _by_neighbour(grant: Grant, tenant: Tenant, service: InferenceService, view: FleetView) -> Iterator[Suggestion]:
    """Take replicas from another service of the tenant; of several that help the one that loses fewest."""
    found: list[Suggestion] = []
    for key, other in _neighbours(grant, tenant, service, view):
        replicas = 1 if other.spec.replicas is None else other.spec.replicas
        size = other.spec.accelerator.count if other.spec.accelerator else 1

        def lower(
            by: int, key: Key = key, other: InferenceService = other, replicas: int = replicas, size: int = size
        ) -> Suggestion:
            patch = {"spec": _replicas_patch(other, replicas - by)}
            order = f"lower spec.replicas of {key.namespace}/{key.name} from {replicas} to {replicas - by}"
            return Suggestion(Remedy.LOWER_NEIGHBOUR, order, by * size, Change(key, patch))

        found += _smallest(range(1, replicas + 1), lower, service, view)
    yield from sorted(found, key=lambda item: item.devices)[:1]


def _neighbours(
    grant: Grant, tenant: Tenant, service: InferenceService, view: FleetView
) -> list[tuple[Key, InferenceService]]:
    """Services of the tenant that have devices of the class in a fixed number; the least urgent and youngest first."""
    grants = view.grants[circle_of(tenant)]
    running = [
        (key, other)
        for key, other in view.services_of(tenant).items()
        if key != key_of(service)
        and other.spec.scaling is None
        and not other.spec.suspend
        and key in grants
        and grants[key].gpu_class == grant.gpu_class
        and grants[key].replicas
    ]
    running.sort(key=lambda item: (item[1].metadata.creation_timestamp, item[0]), reverse=True)
    running.sort(key=lambda item: -URGENCY[item[1].spec.tier])
    return running[:_NEIGHBOURS_AT_MOST]


def _by_tenant(grant: Grant, tenant: Tenant, service: InferenceService, view: FleetView) -> Iterator[Suggestion]:
    """Let the tenant borrow more, or own more."""
    name, gpu_class = tenant.metadata.name, grant.gpu_class
    listed = {gpu.name: gpu for gpu in tenant.spec.quota.gpus}
    missing = _most_missing(tenant, view)

    def quota(nominal: int, borrowing_limit: int | None) -> Change:
        mine: dict[str, Any] = {"name": gpu_class, "nominal": nominal}
        if gpu_class in listed and listed[gpu_class].lending_limit is not None:
            mine["lendingLimit"] = listed[gpu_class].lending_limit
        if borrowing_limit is not None:
            mine["borrowingLimit"] = borrowing_limit
        others = [gpu.model_dump(by_alias=True, exclude_none=True) for gpu in listed.values() if gpu.name != gpu_class]
        return Change(Key("Tenant", "", name), {"spec": {"quota": {"gpus": [*others, mine]}}})

    def borrow(more: int) -> Suggestion:
        limit = (grant.borrowing_limit or 0) + more
        order = f"raise borrowingLimit of {gpu_class} in Tenant {name} from {grant.borrowing_limit} to {limit}"
        return Suggestion(Remedy.RAISE_BORROWING_LIMIT, order, more, quota(grant.nominal, limit))

    def own(more: int) -> Suggestion:
        nominal = grant.nominal + more
        limit = grant.borrowing_limit if gpu_class in listed and tenant.spec.cohort else None
        order = f"raise nominal of {gpu_class} in Tenant {name} from {grant.nominal} to {nominal}"
        if gpu_class not in listed:
            order = f"add {gpu_class} with nominal {nominal} to spec.quota.gpus of Tenant {name}"
        return Suggestion(Remedy.RAISE_NOMINAL, order, more, quota(nominal, limit))

    if tenant.spec.cohort and gpu_class in listed and grant.borrowing_limit is not None:
        yield from _smallest(range(1, missing + 1), borrow, service, view)
    yield from _smallest(range(1, missing + 1), own, service, view)


def _most_missing(tenant: Tenant, view: FleetView) -> int:
    """Devices with which every service of the tenant would run: others that wait may be served first."""
    requests = (view.requests.get(key) for key in view.services_of(tenant))
    return sum(
        max(request.least * request.devices_per_replica, request.held_devices)
        for request in requests
        if request is not None
    )


# -- proof -------------------------------------------------------------------------------------------------------------


def _smallest(
    sizes: range, build: Callable[[int], Suggestion], service: InferenceService, view: FleetView
) -> Iterator[Suggestion]:
    """The smallest size whose change admits the service: a larger one never admits less."""

    def helps(size: int) -> bool:
        change = build(size).change
        return change is not None and _admits(change, service, view)

    if sizes and helps(sizes[-1]):
        yield build(sizes[bisect.bisect_left(sizes, True, key=helps)])


def _admits(change: Change, service: InferenceService, view: FleetView) -> bool:
    """Plan the service in the changed world. Waiting for pods that finish anyway counts as admitted."""
    key = key_of(service)
    snapshot = view.snapshot
    if snapshot.services.get(key) is not service:
        snapshot = replace(snapshot, services={**snapshot.services, key: service})
    world = applied(change, snapshot)
    verdict = admit(world.services[key], view.variant(world, change.key))
    return verdict.refusal is None or verdict.refusal.passing


# -- edits -------------------------------------------------------------------------------------------------------------


def _edit(item: Any, patch: Mapping[str, Any]) -> Any:
    return type(item).model_validate(_merged(item.model_dump(by_alias=True, exclude_unset=True), patch))


def _merged(document: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """RFC 7396: mappings merge, null removes, everything else replaces."""
    merged = {key: value for key, value in document.items() if patch.get(key, value) is not None}
    for key, value in patch.items():
        if isinstance(value, Mapping):
            below = document.get(key)
            merged[key] = _merged(below if isinstance(below, Mapping) else {}, value)
        elif value is not None:
            merged[key] = value
    return merged


def _replicas_patch(service: InferenceService, replicas: int) -> dict[str, Any]:
    """Fewer replicas, with a floor that can still hold."""
    patch: dict[str, Any] = (
        {"replicas": replicas} if service.spec.scaling is None else {"scaling": {"minReplicas": replicas}}
    )
    if service.spec.rollout.min_available > replicas > 0 or (service.spec.scaling and replicas == 0):
        patch["rollout"] = {"minAvailable": replicas}
    return patch


def _replicas_order(service: InferenceService, replicas: int) -> str:
    field = "spec.replicas" if service.spec.scaling is None else "spec.scaling.minReplicas"
    lower_floor = service.spec.rollout.min_available > replicas > 0
    return f"{field} to {replicas}" + (f" and spec.rollout.minAvailable to {replicas}" if lower_floor else "")


def _smallest_first(suggestions: list[Suggestion]) -> tuple[Suggestion, ...]:
    order = list(Remedy)
    return tuple(sorted(suggestions, key=lambda item: (item.devices, order.index(item.remedy), item.order)))
