"""Which keys to reconcile after a change: the object itself, and the others whose plan reads it. Pure.

Cheap enough to be generous: the queue keeps one entry per key, and a reconcile that changes nothing writes nothing.
What must not happen is a ring: objects that only report (a service's status) wake nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from windlass_operator.api.v1alpha1.batch_inference import BatchInference
from windlass_operator.api.v1alpha1.canary import CanaryPhase
from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import Accelerator, Allocation, InferenceService, RolloutState
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.cluster.kubernetes_kinds import SUPPLY
from windlass_operator.domain.batch_workers import is_over
from windlass_operator.domain.canary_plan import canary_key, canary_of
from windlass_operator.domain.rollout_turns import claim_of
from windlass_operator.domain.snapshot import Key, Node, Snapshot


@dataclass(frozen=True, slots=True)
class Claim:
    """What other objects see of one; two equal claims need to wake nobody else."""

    exists: bool
    generation: int = 0
    gpu_class: str = ""
    devices: int = 0
    canaries: tuple[tuple[str, str, int, bool], ...] = ()
    """Name, class and devices of each canary, and whether it gives them back for good."""
    claim: int = 0
    """Devices that a rollout will take and does not hold yet."""
    wants_more: bool = False
    """Whether its load asks for more than it may have; then lenders' own devices come back."""
    over: bool = False
    """Whether a batch asks for nothing any more, for good."""


def claim_on_others(key: Key, snapshot: Snapshot) -> Claim:
    """Return what others see of `key`."""
    if key.kind == "InferenceService":
        service, workload = snapshot.services.get(key), snapshot.workloads.get(key)
        held = (workload.gpu_class, workload.devices) if workload else ("", 0)
        generation = service.metadata.generation if service else 0
        claim = claim_of(workload) if workload else 0
        wants_more = workload is not None and workload.wants_more
        canaries = _canaries(key, snapshot)
        return Claim(service is not None, generation, *held, canaries=canaries, claim=claim, wants_more=wants_more)
    if key.kind == "BatchInference":
        batch, workload = snapshot.batches.get(key), snapshot.workloads.get(key)
        held = (workload.gpu_class, workload.devices) if workload else ("", 0)
        over = batch is not None and is_over(batch, snapshot.runs.get(key))
        return Claim(batch is not None, batch.metadata.generation if batch else 0, *held, over=over)
    if key.kind == "Tenant":
        tenant = snapshot.tenants.get(key.name)
        return Claim(tenant is not None, tenant.metadata.generation if tenant else 0)
    gpu_class = snapshot.gpu_classes.get(key.name)
    return Claim(gpu_class is not None, gpu_class.metadata.generation if gpu_class else 0)


def _canaries(key: Key, snapshot: Snapshot) -> tuple[tuple[str, str, int, bool], ...]:
    """Also of canaries that left the spec, and of a service that is gone: their pods hold devices until they end."""
    service = snapshot.services.get(key)
    states = service.status.canaries if service is not None else []
    aborted = {state.name for state in states if state.phase is CanaryPhase.ABORTED}
    names = {item.name for item in service.spec.canaries} if service is not None else set()
    names |= {canary_of(other) for other in snapshot.canaries.get(key, ())}
    held = ((name, snapshot.workloads.get(canary_key(key, name))) for name in sorted(names))
    return tuple(
        (name, runs.gpu_class if runs else "", runs.devices if runs else 0, name in aborted) for name, runs in held
    )


def keys_to_wake(key: Key, before: Snapshot, after: Snapshot, told: Claim | None = None) -> frozenset[Key]:
    """Return every key whose plan may come out differently now. `before`: the picture of the last call.

    `told`: what others were last told of this key. Our own writes are in the picture at once, so that `before`, taken
    for another key, may show them although nobody was woken for them.
    """
    if key.kind == "Node":
        return frozenset(_wake_for_node(before, after, key.name))
    if key.kind in SUPPLY:
        return frozenset(_wake_for_devices(before, after))
    if (told or claim_on_others(key, before)) == claim_on_others(key, after):
        return frozenset({key, *_wake_for_places(key, before, after)})
    return frozenset({key, *(other for picture in (before, after) for other in _dependents(key, picture))})


def _wake_for_places(key: Key, before: Snapshot, after: Snapshot) -> Iterator[Key]:
    """The classes whose devices lie elsewhere now, and rollouts where claims have changed. No other plan reads where: a
    burst of pods wakes no services.
    """
    pictures = [picture.workloads.get(key) for picture in (before, after)]
    old, new = ((one.devices_by_node, one.claimed) if one is not None else ((), ()) for one in pictures)
    if old == new:
        return
    for workload in pictures:
        if workload is not None:
            names = {workload.gpu_class, *(name for name, _ in workload.claimed)} - {""}
            yield from (Key("GPUClass", "", name) for name in names)
    if old[1] != new[1]:
        yield from _rollouts(after)  # a claim gives its devices back some time after its pod is gone


def _dependents(key: Key, snapshot: Snapshot) -> Iterator[Key]:
    if key.kind == "InferenceService":
        yield from _wake_for_service(key, snapshot)
    elif key.kind == "BatchInference":
        yield from _wake_for_batch(key, snapshot)
    elif key.kind == "Tenant" and key.name in snapshot.tenants:
        yield from _wake_for_tenant(snapshot.tenants[key.name], snapshot)
    elif key.kind == "GPUClass":
        yield from _wake_for_gpu_class(key.name, snapshot)


def _wake_for_service(key: Key, snapshot: Snapshot) -> Iterator[Key]:
    """Its tenant counts it, the classes it uses count its devices, who shares its tenant's GPUs plans with them, and
    rollouts and services of elastic precision wait for devices that it frees.
    """
    service = snapshot.services.get(key)
    classes = _classes(service) | {name for _, name, _, _ in _canaries(key, snapshot) if name}
    yield from _wake_sharers(key, classes, service is not None and bool(_accelerators(service)), snapshot)


def _wake_for_batch(key: Key, snapshot: Snapshot) -> Iterator[Key]:
    """The same for a batch's workers."""
    batch = snapshot.batches.get(key)
    yield from _wake_sharers(key, _classes(batch), batch is not None and bool(_accelerators(batch)), snapshot)


def _wake_sharers(key: Key, classes: frozenset[str], has_gpu: bool, snapshot: Snapshot) -> Iterator[Key]:
    workload = snapshot.workloads.get(key)
    if workload is not None and workload.gpu_class:
        classes |= {workload.gpu_class, *(name for name, _ in workload.claimed)}
    yield from (Key("GPUClass", "", name) for name in classes)
    for tenant in snapshot.tenants.values():
        if key.namespace in tenant.spec.namespaces:
            yield _tenant_key(tenant)
            if classes or has_gpu:
                yield from _wake_circle(tenant, snapshot)
    if classes:
        yield from _rollouts(snapshot)
        yield from _stuck(snapshot)


def _wake_circle(tenant: Tenant, snapshot: Snapshot) -> Iterator[Key]:
    """Everybody who shares GPUs with a tenant, and all of their services that use some."""
    members = _members(tenant, snapshot)
    yield from (_tenant_key(member) for member in members)
    yield from _services_of(members, snapshot, with_gpu=True)


def _members(tenant: Tenant, snapshot: Snapshot) -> list[Tenant]:
    cohort = tenant.spec.cohort
    return [tenant, *(other for other in snapshot.tenants.values() if cohort and other.spec.cohort == cohort)]


def _rollouts(snapshot: Snapshot) -> Iterator[Key]:
    """GPU services with pods to replace. Not only those of the same class: classes may share nodes."""
    for key, service in snapshot.services.items():
        rollout = service.status.rollout
        if service.spec.accelerator is not None and rollout is not None and rollout.state is not RolloutState.COMPLETE:
            yield key


def _stuck(snapshot: Snapshot) -> Iterator[Key]:
    """Services that would take devices in another number format, and of which no pod has any."""
    for key, service in snapshot.services.items():
        runs = snapshot.workloads.get(key)
        if service.spec.precision.alternatives and runs is not None and runs.unplaced and not runs.ready:
            yield key


def _wake_for_tenant(tenant: Tenant, snapshot: Snapshot) -> Iterator[Key]:
    """Its services, tenants that claim one of its namespaces too, and all who share its GPUs."""
    yield from _services_of([tenant], snapshot, with_gpu=False)
    if tenant.spec.cohort:
        yield from _wake_circle(tenant, snapshot)
    claimed = set(tenant.spec.namespaces)
    yield from (_tenant_key(other) for other in snapshot.tenants.values() if claimed & set(other.spec.namespaces))


def _wake_for_gpu_class(name: str, snapshot: Snapshot) -> Iterator[Key]:
    """Services that name the class or choose among all, and tenants whose quota names it."""
    yield from (key for key, user in _users(snapshot) if name in _classes(user) or _chooses_by_need(user))
    for tenant in snapshot.tenants.values():
        if any(quota.name == name for quota in tenant.spec.quota.gpus):
            yield _tenant_key(tenant)


def _wake_for_node(before: Snapshot, after: Snapshot, name: str) -> Iterator[Key]:
    """The classes that the node belongs or belonged to, and the services that name them."""
    for picture in (before, after):
        node = (picture.nodes or {}).get(name)
        for gpu_class in after.gpu_classes.values():
            if node is not None and _selects(gpu_class, node):
                yield Key("GPUClass", "", gpu_class.metadata.name)
                yield from _wake_for_gpu_class(gpu_class.metadata.name, after)


def _wake_for_devices(before: Snapshot, after: Snapshot) -> Iterator[Key]:
    """Classes that can be claimed, and services that claim some: whose devices changed is not asked."""
    if before.published is after.published:
        return
    for name, gpu_class in after.gpu_classes.items():
        if gpu_class.spec.device_class_name is not None:
            yield Key("GPUClass", "", name)
    for key, service in _users(after):
        if any(accelerator.allocation is Allocation.RESOURCE_CLAIM for accelerator in _accelerators(service)):
            yield key


_User = InferenceService | BatchInference


def _users(snapshot: Snapshot) -> Iterator[tuple[Key, _User]]:
    yield from snapshot.services.items()
    yield from snapshot.batches.items()


def _classes(service: _User | None) -> frozenset[str]:
    if service is None:
        return frozenset()
    return frozenset(name for accelerator in _accelerators(service) for name in accelerator.classes or ())


def _chooses_by_need(service: _User) -> bool:
    return any(accelerator.requirements is not None for accelerator in _accelerators(service))


def _accelerators(service: _User) -> list[Accelerator]:
    """What a service with its canaries, or a batch, asks for."""
    canaries = service.spec.canaries if isinstance(service, InferenceService) else ()
    asked = (service.spec.accelerator, *(canary.accelerator for canary in canaries))
    return [accelerator for accelerator in asked if accelerator is not None]


def _services_of(tenants: Iterable[Tenant], snapshot: Snapshot, with_gpu: bool) -> Iterator[Key]:
    namespaces = {namespace for tenant in tenants for namespace in tenant.spec.namespaces}
    for key, service in _users(snapshot):
        if key.namespace in namespaces and (_accelerators(service) or not with_gpu):
            yield key


def _selects(gpu_class: GPUClass, node: Node) -> bool:
    return gpu_class.spec.node_selector.items() <= node.labels.items()


def _tenant_key(tenant: Tenant) -> Key:
    return Key("Tenant", "", tenant.metadata.name)
