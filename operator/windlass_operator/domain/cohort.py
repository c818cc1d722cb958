"""The books of one cohort: devices per class, tenant and service. A tenant without a cohort has books of its own.

Each tenant has devices of its own (`nominal`); the part that it lends (`lendable`) forms the pool of its cohort. A
tenant first uses what it never lends, then draws on the pool: on its own part of it, and beyond `nominal` on that of
others, which is borrowing. What all of them draw never exceeds the pool, except by `claim`: devices of one's own are
promised although a borrower still holds them.
"""

from __future__ import annotations

from collections.abc import Iterable

from windlass_operator.domain.quota import ClassTerms, Request, Terms
from windlass_operator.domain.snapshot import Key

_NOTHING = ClassTerms(0, 0, 0)
_LEAVING = Key("", "", "")
"""In the place of a service: devices of pods on their way out."""
_PROMISED = Key("", "", "rollouts")
"""In the place of a service: devices for pods that rollouts are about to start."""


class Ledger:
    """Mutable; starts with what running pods hold. Guards: `reserve` never takes more than `free`, `claim` than one's
    own.
    """

    def __init__(self, terms: Iterable[Terms], requests: Iterable[Request]) -> None:
        self._terms = {item.tenant: item for item in terms}
        self._reserved: dict[str, dict[Key, int]] = {}
        self._used: dict[str, dict[str, int]] = {}
        self._pool: dict[str, int] = {}
        self._capacity: dict[str, int] = {}
        self._drawn: dict[str, int] = {}
        for item in self._terms.values():
            for name, terms_of_class in item.classes.items():
                self._pool[name] = self._pool.get(name, 0) + terms_of_class.lendable
                self._capacity[name] = self._capacity.get(name, 0) + terms_of_class.nominal
        for request in requests:
            kept = request.kept
            if kept:
                self._add(request.key, request.tenant, request.held_class, kept * request.devices_per_replica)

    def copy(self) -> Ledger:
        """The same books, to be written on apart."""
        other = Ledger((), ())
        other._terms, other._pool, other._capacity = self._terms, self._pool, self._capacity
        other._reserved = {name: dict(services) for name, services in self._reserved.items()}
        other._used = {name: dict(tenants) for name, tenants in self._used.items()}
        other._drawn = dict(self._drawn)
        return other

    def hold_leaving(self, request: Request) -> None:
        """Count devices of pods on their way out too: nobody may keep them, and nobody else has them yet."""
        if request.leaving_devices:
            self._add(_LEAVING, request.tenant, request.held_class, request.leaving_devices)

    def hold_promised(self, request: Request) -> None:
        """Count devices that a rollout was told it may use: nobody may start in them before it does."""
        if request.promised_devices:
            self._add(_PROMISED, request.tenant, request.held_class, request.promised_devices)

    def release_promised(self, request: Request) -> None:
        """Take it back, to see what rollouts have among themselves."""
        if request.promised_devices:
            self._add(_PROMISED, request.tenant, request.held_class, -request.promised_devices)

    def terms(self, tenant: str, gpu_class: str) -> ClassTerms:
        """Terms of a tenant; nothing for a class it does not list."""
        found = self._terms.get(tenant)
        return _NOTHING if found is None else found.classes.get(gpu_class, _NOTHING)

    def own(self, key: Key, gpu_class: str) -> int:
        """Devices reserved for one service."""
        return self._reserved.get(gpu_class, {}).get(key, 0)

    def used(self, tenant: str, gpu_class: str) -> int:
        """Devices reserved for all services of a tenant."""
        return self._used.get(gpu_class, {}).get(tenant, 0)

    def used_by_others(self, request: Request, gpu_class: str) -> int:
        """Devices reserved for every other service of the tenant."""
        return self.used(request.tenant, gpu_class) - self.own(request.key, gpu_class)

    def borrowed(self, tenant: str, gpu_class: str) -> int:
        """Devices a tenant has beyond its own."""
        return max(0, self.used(tenant, gpu_class) - self.terms(tenant, gpu_class).nominal)

    def idle(self, gpu_class: str) -> int:
        """Devices of the pool that nobody draws; negative while devices are promised that borrowers still hold."""
        return self._pool.get(gpu_class, 0) - self._drawn.get(gpu_class, 0)

    def free(self, tenant: str, gpu_class: str) -> int:
        """Devices that a tenant may take now, its own before borrowed ones."""
        return max(0, -self.lacking(tenant, gpu_class, 0)) if gpu_class in self._pool else 0

    def lacking(self, tenant: str, gpu_class: str, devices: int) -> int:
        """Devices that a tenant would have to release first, to take this many; negative when it could take more."""
        terms, used = self.terms(tenant, gpu_class), self.used(tenant, gpu_class)
        lacking = devices - max(0, terms.nominal - terms.lendable - used) - max(0, self.idle(gpu_class))
        if terms.borrowing_limit is None:
            return lacking
        return max(lacking, devices + used - terms.nominal - terms.borrowing_limit)

    def free_nominal(self, tenant: str, gpu_class: str) -> int:
        """Devices of its own that a tenant does not use, whoever does."""
        return max(0, self.terms(tenant, gpu_class).nominal - self.used(tenant, gpu_class))

    def may_borrow(self, tenant: str, gpu_class: str, devices: int) -> bool:
        """Whether the tenant's limit lets it have this many more, if others give them."""
        terms = self.terms(tenant, gpu_class)
        limit = terms.borrowing_limit
        return limit is None or self.used(tenant, gpu_class) + devices <= terms.nominal + limit

    def room(self, request: Request, gpu_class: str) -> int:
        """Replicas a service may have in a class, with what is reserved for it already."""
        own = self.own(request.key, gpu_class)
        return (own + self.free(request.tenant, gpu_class)) // request.devices_per_replica

    def nominal_room(self, request: Request, gpu_class: str) -> int:
        """The same within the tenant's own devices, whoever holds them."""
        own = self.own(request.key, gpu_class)
        return (own + self.free_nominal(request.tenant, gpu_class)) // request.devices_per_replica

    def reserve(self, request: Request, gpu_class: str, replicas: int) -> None:
        """Raise a service's reservation. What its pods hold beyond that stays counted until they are gone."""
        assert replicas <= self.room(request, gpu_class)
        self._raise(request, gpu_class, replicas)

    def claim(self, request: Request, gpu_class: str, replicas: int) -> int:
        """Raise a reservation within the tenant's own devices; return how many devices were added."""
        assert replicas <= self.nominal_room(request, gpu_class)
        return self._raise(request, gpu_class, replicas)

    def take_over(self, request: Request, gpu_class: str, replicas: int, released: int) -> int:
        """Raise a reservation with devices that others of the tenant have just released, and with its own idle ones;
        return how many devices were added.
        """
        idle = self.terms(request.tenant, gpu_class).nominal - self.used(request.tenant, gpu_class) - released
        assert replicas * request.devices_per_replica - self.own(request.key, gpu_class) <= released + max(0, idle)
        return self._raise(request, gpu_class, replicas)

    def release(self, request: Request, gpu_class: str, devices: int) -> None:
        """Lower a service's reservation."""
        assert 0 <= devices <= self.own(request.key, gpu_class)
        self._add(request.key, request.tenant, gpu_class, -devices)

    def share(self, tenant: str, gpu_class: str = "", change: int = 0) -> float:
        """Dominant share of a tenant: the largest part it borrows of any class, by its weight.

        `change`: devices of `gpu_class` to add before counting. Equal fractions give equal numbers: each is one
        division of two whole numbers.
        """
        found = self._terms[tenant]
        borrowed = 0.0
        for name, terms in found.classes.items():
            beyond = self.used(tenant, name) - terms.nominal + (change if name == gpu_class else 0)
            if beyond > 0:
                borrowed = max(borrowed, beyond / (max(1, self._capacity[name]) * found.weight))
        return borrowed

    def check(self) -> None:
        """Compare every sum with what it sums up; for tests."""
        for gpu_class, services in self._reserved.items():
            used = self._used[gpu_class]
            assert sum(services.values()) == sum(used.values()), gpu_class
            assert min((*services.values(), *used.values()), default=0) >= 0, gpu_class
            drawn = sum(self._draws(tenant, gpu_class, count) for tenant, count in used.items())
            assert drawn == self._drawn[gpu_class], gpu_class

    def _raise(self, request: Request, gpu_class: str, replicas: int) -> int:
        more = replicas * request.devices_per_replica - self.own(request.key, gpu_class)
        if more > 0:
            self._add(request.key, request.tenant, gpu_class, more)
        return max(0, more)

    def _add(self, key: Key, tenant: str, gpu_class: str, devices: int) -> None:
        services = self._reserved.setdefault(gpu_class, {})
        services[key] = services.get(key, 0) + devices
        used = self._used.setdefault(gpu_class, {})
        before = used.get(tenant, 0)
        used[tenant] = before + devices
        moved = self._draws(tenant, gpu_class, before + devices) - self._draws(tenant, gpu_class, before)
        self._drawn[gpu_class] = self._drawn.get(gpu_class, 0) + moved

    def _draws(self, tenant: str, gpu_class: str, used: int) -> int:
        terms = self.terms(tenant, gpu_class)
        return max(0, used - (terms.nominal - terms.lendable))
