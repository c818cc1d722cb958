"""Share a tenant's GPUs among its services. Plain arithmetic on values: the same requests give the same grants, in any order.

Three rounds over the services from oldest to newest: what replicas hold stays theirs; then each gets what it needs to run at all
(a newcomer all of it or nothing, a running service as much as there is); then autoscalers may grow into the rest. So nobody's
running replicas make room for a newcomer, and the sum never exceeds the quota unless the quota was lowered below what runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
    """Devices of the class that the tenant's other services have reserved."""
    nominal: int
    """Quota of the class."""
    devices_per_replica: int

    @property
    def short(self) -> bool:
        """Whether the quota gives less than the service needs."""
        return self.replicas < self.least

    @property
    def spare_devices(self) -> int:
        """Devices of the quota that stay free once this service has its grant."""
        return max(0, self.nominal - self.used - self.replicas * self.devices_per_replica)


class Ledger:
    """Devices reserved per class. Guards: a reservation never takes more than is free."""

    def __init__(self, nominal: Mapping[str, int], requests: Iterable[Request]) -> None:
        self._nominal = dict(nominal)
        self._reserved: dict[str, dict[Key, int]] = {}
        for request in requests:
            if request.held_devices:
                self._reserved.setdefault(request.held_class, {})[request.key] = request.held_devices

    def room(self, request: Request, gpu_class: str) -> int:
        """Replicas the request may have in the class, with what it has reserved there already."""
        others = self.used_by_others(request.key, gpu_class)
        own = self._reserved.get(gpu_class, {}).get(request.key, 0)
        return max(own, self._nominal.get(gpu_class, 0) - others) // request.devices_per_replica

    def used_by_others(self, key: Key, gpu_class: str) -> int:
        """Devices of the class reserved for every other service."""
        return sum(devices for other, devices in self._reserved.get(gpu_class, {}).items() if other != key)

    def reserve(self, request: Request, gpu_class: str, replicas: int) -> None:
        """Raise the request's reservation in the class; what its pods hold beyond that stays counted until they are gone."""
        assert replicas <= self.room(request, gpu_class)
        own = self._reserved.setdefault(gpu_class, {})
        own[request.key] = max(own.get(request.key, 0), replicas * request.devices_per_replica)

    def grant(self, request: Request, gpu_class: str, replicas: int) -> Grant:
        """Record the final figures for one request."""
        return Grant(
            gpu_class,
            replicas,
            request.least,
            self.used_by_others(request.key, gpu_class),
            self._nominal.get(gpu_class, 0),
            request.devices_per_replica,
        )


def share_quota(requests: Iterable[Request], nominal: Mapping[str, int]) -> dict[Key, Grant]:
    """Give every request its class and its number of replicas; 0 replicas means refused unless it asked for none."""
    ordered = sorted(requests, key=lambda request: (request.created, request.key))
    ledger = Ledger(nominal, ordered)
    classes: dict[Key, str] = {}
    granted: dict[Key, int] = {}
    for request in ordered:
        classes[request.key], granted[request.key] = _grant_least(request, ledger)
    for request in ordered:
        if granted[request.key] >= request.least:
            gpu_class = classes[request.key]
            granted[request.key] = max(granted[request.key], min(request.most, ledger.room(request, gpu_class)))
            ledger.reserve(request, gpu_class, granted[request.key])
    return {request.key: ledger.grant(request, classes[request.key], granted[request.key]) for request in ordered}


def _grant_least(request: Request, ledger: Ledger) -> tuple[str, int]:
    preferred = request.classes[0]
    if request.held_class == preferred and request.held_devices:
        replicas = min(
            request.most,
            max(
                request.held_devices // request.devices_per_replica, min(request.least, ledger.room(request, preferred))
            ),
        )
        ledger.reserve(request, preferred, replicas)
        return preferred, replicas
    for gpu_class in request.classes:
        if request.least <= ledger.room(request, gpu_class):
            ledger.reserve(request, gpu_class, request.least)
            return gpu_class, request.least
    return preferred, 0
