"""Whose turn it is: rollouts of many services that would start a pod in the same free device go one after the other.

A rollout that surges claims one device until it is done. A claim that no pod stands for yet is invisible to whoever
counts devices, so it is counted here. Who waits for a device keeps the place of its start, so nobody waits for ever:
rollouts end, or their new pod holds or queues for a device, and then there is no claim any more.
"""

from __future__ import annotations

from dataclasses import dataclass

from windlass_operator.api.v1alpha1.inference_service import InferenceService, RolloutState
from windlass_operator.domain.fleet_view import FleetView
from windlass_operator.domain.rollout import HOPELESS_RESTARTS, is_rolling
from windlass_operator.domain.snapshot import Key, Workload


@dataclass(frozen=True, slots=True)
class Share:
    """Devices, counted twice: as nodes have them, and as the tenant's quota grants them."""

    devices: int = 0
    """Of the class, or of classes on the same nodes."""
    quota: int = 0
    """Of the same class and tenant."""


@dataclass(frozen=True, slots=True)
class Turns:
    """What other rollouts do to the devices that one could surge into."""

    claimed: Share = Share()
    """Taken soon by rollouts ahead of this one; no pod stands for it yet."""
    lent: Share = Share()
    """Held by pods beyond the wanted number, so that whoever has them passes them on."""


def claim_of(workload: Workload) -> int:
    """Pods that a running rollout may start now and that do not exist yet."""
    if not is_surging(workload) or not workload.gpu_class:
        return 0
    return max(0, workload.max_surge - max(0, workload.replicas - workload.wanted))


def is_surging(workload: Workload) -> bool:
    """Whether a rollout has its turn: it may start a pod beyond the wanted number, or has done so."""
    return workload.max_surge > 0 and not workload.paused and is_rolling(workload)


def observe_turns(key: Key, gpu_class: str, view: FleetView) -> Turns:
    """Sum what other rollouts claim and hold, for a service that wants to replace a pod on a class."""
    neighbours = [
        (other, service)
        for other, service in view.moving.items()
        if other != key and view.supply.share_devices(gpu_class, view.workload_of(other).gpu_class)
    ]
    claimed = [(other, _claim_ahead(key, other, view) * _devices_per_replica(service)) for other, service in neighbours]
    lent = [(other, _lends(view.workload_of(other)) * _devices_per_replica(service)) for other, service in neighbours]
    return Turns(_share(key, gpu_class, claimed, view), _share(key, gpu_class, lent, view))


def _share(key: Key, gpu_class: str, counts: list[tuple[Key, int]], view: FleetView) -> Share:
    tenant = view.tenant_of(key.namespace)
    return Share(
        sum(count for _, count in counts),
        sum(
            count
            for other, count in counts
            if view.workload_of(other).gpu_class == gpu_class
            and tenant is not None
            and view.tenant_of(other.namespace) is tenant
        ),
    )


def _claim_ahead(key: Key, other: Key, view: FleetView) -> int:
    """Running rollouts are ahead of one that has not begun; among equals the first to start is."""
    running, runs = is_surging(view.workload_of(key)), is_surging(view.workload_of(other))
    if running and not runs:
        return 0
    if running == runs and _place(other, view) > _place(key, view):
        return 0
    return claim_of(view.workload_of(other)) if runs else int(_waits(view.snapshot.services[other]))


def _lends(workload: Workload) -> int:
    """Pods beyond the wanted number that have a device and will pass it on. A new pod that gets nowhere will not."""
    hopeless = workload.overdue or workload.restarts >= HOPELESS_RESTARTS
    staying = min(workload.replicas, workload.wanted) if hopeless else workload.replicas
    return max(0, staying + workload.leaving - workload.wanted - workload.unplaced)


def _waits(service: InferenceService) -> bool:
    rollout = service.status.rollout
    return rollout is not None and rollout.state is RolloutState.WAITING


def _place(key: Key, view: FleetView) -> tuple[str, Key]:
    """Who started first is ahead; one that has not started yet comes last."""
    service = view.snapshot.services.get(key)
    rollout = service.status.rollout if service is not None else None
    started = "" if rollout is None or rollout.state is RolloutState.COMPLETE else rollout.started
    return started or "~", key


def _devices_per_replica(service: InferenceService) -> int:
    return service.spec.accelerator.count if service.spec.accelerator is not None else 0
