"""Share a tenant's GPUs among its services. Plain arithmetic on values: equal requests give equal grants, in any order.

Three rounds over the services from oldest to newest: what replicas hold stays theirs; then each gets what it needs to
run at all (a newcomer all of it or nothing, a running service as much as there is); then autoscalers may grow into the
rest, in turns. So nobody's running replicas make room for a newcomer, and the sum never exceeds the quota, unless the
quota was lowered below what runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from windlass_operator.domain.snapshot import Key


@dataclass(frozen=True, slots=True)
class Request:
    """What one service wants."""

    key: Key
    created: str
    """Creation timestamp; the older service is served first, the key breaks ties."""
    classes: tuple[str, ...]
    """Usable classes, best first; never empty."""
    least: int
    """Replicas without which it cannot run as asked."""
    most: int
    """Replicas it may grow to."""
    devices_per_replica: int = 1
    held_class: str = ""
    held_devices: int = 0
    """Devices its pods hold or wait for, of `held_class`."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What one service gets."""

    gpu_class: str
    replicas: int
    """Replicas it may run, at most `most`."""
    least: int
    """What it asked for to run at all."""
    used: int
    """Devices of the class that were reserved for other services when this one's turn came."""
    nominal: int
    """Quota of the class."""
    spare_devices: int
    """Devices of the class that no pod of the tenant holds or waits for now: what a rollout may borrow."""
    devices_per_replica: int = 1

    @property
    def short(self) -> bool:
        """Whether the quota gives less than the service needs."""
        return self.replicas < self.least


class Ledger:
    """Devices reserved per class. Guards: a reservation never takes more than is free."""

    def __init__(self, nominal: Mapping[str, int], requests: Iterable[Request]) -> None:
        self._nominal = dict(nominal)
        self._reserved: dict[str, dict[Key, int]] = {}
        for request in requests:
            if request.held_devices:
                self._reserved.setdefault(request.held_class, {})[request.key] = request.held_devices
        self._held = {gpu_class: sum(owners.values()) for gpu_class, owners in self._reserved.items()}
        self._totals = dict(self._held)

    def nominal(self, gpu_class: str) -> int:
        """Quota of a class; a class that is not listed grants nothing."""
        return self._nominal.get(gpu_class, 0)

    def spare(self, gpu_class: str) -> int:
        """Devices of the quota that no pod holds or waits for."""
        return max(0, self.nominal(gpu_class) - self._held.get(gpu_class, 0))

    def room(self, request: Request, gpu_class: str) -> int:
        """Replicas the request may have in the class, with what it has reserved there already."""
        own = self._own(request.key, gpu_class)
        free = self.nominal(gpu_class) - self.used_by_others(request.key, gpu_class)
        return max(own, free) // request.devices_per_replica

    def used_by_others(self, key: Key, gpu_class: str) -> int:
        """Devices of the class reserved for every other service."""
        return self._totals.get(gpu_class, 0) - self._own(key, gpu_class)

    def reserve(self, request: Request, gpu_class: str, replicas: int) -> None:
        """Raise the request's reservation. What its pods hold beyond that stays counted until they are gone."""
        assert replicas <= self.room(request, gpu_class)
        more = replicas * request.devices_per_replica - self._own(request.key, gpu_class)
        if more > 0:
            self._reserved.setdefault(gpu_class, {})[request.key] = replicas * request.devices_per_replica
            self._totals[gpu_class] = self._totals.get(gpu_class, 0) + more

    def _own(self, key: Key, gpu_class: str) -> int:
        return self._reserved.get(gpu_class, {}).get(key, 0)


def share_quota(requests: Iterable[Request], nominal: Mapping[str, int]) -> dict[Key, Grant]:
    """Give every request its class and its number of replicas; 0 replicas means refused unless it asked for none."""
    ordered = sorted(requests, key=lambda request: (request.created, request.key))
    ledger = Ledger(nominal, ordered)
    grants = {request.key: _grant_least(request, ledger) for request in ordered}
    _grow(ordered, grants, ledger)
    return grants


def _grow(ordered: Iterable[Request], grants: dict[Key, Grant], ledger: Ledger) -> None:
    """Deal the rest out one replica at a time, so that the oldest autoscaler does not take all of it."""
    growing = [request for request in ordered if not grants[request.key].short]
    while growing:
        growing = [request for request in growing if _grow_by_one(request, grants, ledger)]


def _grow_by_one(request: Request, grants: dict[Key, Grant], ledger: Ledger) -> bool:
    grant = grants[request.key]
    wanted = grant.replicas + 1
    if wanted > request.most or wanted > ledger.room(request, grant.gpu_class):
        return False
    ledger.reserve(request, grant.gpu_class, wanted)
    grants[request.key] = replace(grant, replicas=wanted)
    return True


def _grant_least(request: Request, ledger: Ledger) -> Grant:
    preferred = request.classes[0]
    if request.held_class == preferred and request.held_devices:
        held = request.held_devices // request.devices_per_replica
        needed = max(held, min(request.least, ledger.room(request, preferred)))
        return _grant(request, ledger, preferred, min(request.most, needed))
    for gpu_class in request.classes:
        if request.least <= ledger.room(request, gpu_class):
            return _grant(request, ledger, gpu_class, request.least)
    return _grant(request, ledger, preferred, 0)


def _grant(request: Request, ledger: Ledger, gpu_class: str, replicas: int) -> Grant:
    ledger.reserve(request, gpu_class, replicas)
    used = ledger.used_by_others(request.key, gpu_class)
    return Grant(
        gpu_class,
        replicas,
        request.least,
        used,
        ledger.nominal(gpu_class),
        ledger.spare(gpu_class),
        request.devices_per_replica,
    )
