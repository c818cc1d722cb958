"""Whose turn it is: rollouts of many services that would start a pod in the same free device go one after the other.

A rollout that surges claims one device until it is done. A claim that no pod stands for yet is invisible to whoever
counts devices, so it is counted here. Who waits for a device keeps the place of its start, so nobody waits for ever:
rollouts end, or their new pod holds or queues for a device, and then there is no claim any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from windlass_operator.api.v1alpha1.inference_service import InferenceService, RolloutState
from windlass_operator.domain.fleet_view import FleetView
from windlass_operator.domain.rollout import HOPELESS_RESTARTS, is_rolling
from windlass_operator.domain.snapshot import Key, Workload
from windlass_operator.domain.supply import slots_taken


@dataclass(frozen=True, slots=True)
class Share:
    """Counted twice: as nodes have devices, and as the tenant's quota grants them."""

    slots: int = 0
    """Places for a replica of the one who asks, on nodes of the class or of classes on the same nodes."""
    quota: int = 0
    """Devices of the same class and tenant."""


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


def observe_turns(key: Key, gpu_class: str, count: int, view: FleetView) -> Turns:
    """Sum what other rollouts claim and hold, for a service that wants to replace a pod of `count` devices on a class.

    A pod that comes takes as many slots as it can spoil; one that goes gives those that fit into its devices.
    """
    neighbours = [
        (other, service)
        for other, service in view.moving.items()
        if other != key and view.supply.share_devices(gpu_class, view.workload_of(other).gpu_class)
    ]
    claimed = [_Pods(other, _claim_ahead(key, other, view), _devices(service)) for other, service in neighbours]
    lent = [_Pods(other, _lends(view.workload_of(other)), _devices(service)) for other, service in neighbours]
    return Turns(
        Share(
            sum(one.pods * slots_taken(one.devices, count) for one in claimed),
            _of_quota(key, gpu_class, claimed, view),
        ),
        Share(
            sum(one.pods * (one.devices // count) for one in lent),
            _of_quota(key, gpu_class, lent, view),
        ),
    )


class _Pods(NamedTuple):
    """Some pods of one service."""

    key: Key
    pods: int
    devices: int
    """Of each."""


def _of_quota(key: Key, gpu_class: str, found: list[_Pods], view: FleetView) -> int:
    tenant = view.tenant_of(key.namespace)
    return sum(
        one.pods * one.devices
        for one in found
        if view.workload_of(one.key).gpu_class == gpu_class
        and tenant is not None
        and view.tenant_of(one.key.namespace) is tenant
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


def _devices(service: InferenceService) -> int:
    return service.spec.accelerator.count if service.spec.accelerator is not None else 0
