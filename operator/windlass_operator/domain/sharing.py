"""Share the GPUs of one cohort among the services of its tenants. Pure: equal requests give equal grants, in any order.

Rounds over everybody, so that nobody's gain depends on who was planned first:

1. What pods hold stays reserved.
2. Claims: each tenant serves its services from its own devices, urgent tiers first, then older services; a newcomer
   gets all it needs or nothing. A service may displace replicas of a lower tier of its own tenant.
3. Returns: what is borrowed beyond what others lend goes back, first of all where they claim it (`preemption` says
   who gives).
4. Displaced replicas stay if the cohort has idle devices for them.
5. Borrowing: whoever is still short borrows, the tenant with the smallest dominant share first. Where nothing is idle
   it may take from tenants that would still borrow at least as much as it does.
6. Growth: autoscalers may grow into the rest in turns, first within their tenant's own devices, then borrowing.

Devices that are given back are granted only once their pods are gone: until then the new holder waits, and nobody else
can slip in between, because every plan repeats the same claims first.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from windlass_operator.api.v1alpha1.inference_service import Tier
from windlass_operator.domain.cohort import Ledger
from windlass_operator.domain.preemption import Bound, Holding, Share, choose_victims
from windlass_operator.domain.quota import URGENCY, Grant, Request, TakingCause, Terms, Wait
from windlass_operator.domain.snapshot import Key


@dataclass(slots=True)
class _Place:
    """What one service is to have, while rounds go on. At first what it holds."""

    request: Request
    gpu_class: str
    replicas: int
    runs: int
    """Replicas it runs and may go on running, in whatever class."""
    stays: bool
    """True: it should leave this class, and no other has room so far."""
    used: int = 0
    lendable: int = 0
    borrows: bool = False
    cause: TakingCause | None = None

    @property
    def running(self) -> bool:
        """Whether it runs in the class that it is to have."""
        return self.runs > 0 and self.request.held_class == self.gpu_class

    @property
    def kept(self) -> int:
        """Replicas it runs in that class and may go on running."""
        return self.runs if self.request.held_class == self.gpu_class else 0

    @property
    def short(self) -> bool:
        """Whether it has less than it needs, or not where it should."""
        return self.stays or self.replicas < self.request.least


class Grants(Mapping[Key, Grant]):
    """What each service gets. Put into words only for those that are asked about: a plan asks about one of many."""

    def __init__(
        self, places: Mapping[Key, _Place], build: Callable[[_Place], Grant], *, waits_for_budget: bool
    ) -> None:
        self._places = places
        self._build = build
        self._built: dict[Key, Grant] = {}
        self.waits_for_budget = waits_for_budget
        """Whether somebody waits until budgets allow to take more."""

    def __getitem__(self, key: Key) -> Grant:
        if key not in self._built:
            self._built[key] = self._build(self._places[key])
        return self._built[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def share_cohort(terms: Iterable[Terms], requests: Iterable[Request]) -> Grants:
    """Give every request its class and its number of replicas; 0 replicas means refused unless it asked for none."""
    return _Sharing(list(terms), requests).share()


def _place_as_held(request: Request) -> _Place:
    kept = request.kept
    gpu_class = request.held_class if kept else request.classes[0]
    stays = kept > 0 and not request.fixed and gpu_class != request.classes[0]
    return _Place(request, gpu_class, kept, kept, stays)


def _order(request: Request) -> tuple[object, ...]:
    return URGENCY[request.tier], request.created, request.key


class _Sharing:
    """One decision. `_target` is where it leads once replicas that were taken are gone; `_now` is what pods hold."""

    def __init__(self, terms: list[Terms], requests: Iterable[Request]) -> None:
        self._terms = {item.tenant: item for item in terms}
        self._allowance = {item.tenant: item.allowance for item in terms}
        self._places = [_place_as_held(request) for request in sorted(requests, key=_order)]
        self._requests = [place.request for place in self._places]
        self._target = Ledger(terms, self._requests)
        self._now = self._target.copy()
        for request in self._requests:
            self._now.hold_leaving(request)
        self._classes = sorted({name for item in terms for name in item.classes})
        self._fits: Mapping[Key, int] = {}
        self._for_rollouts = self._now
        self._by_tenant: dict[str, list[_Place]] = defaultdict(list)
        self._by_key = {place.request.key: place for place in self._places}
        self._holders: dict[str, list[_Place]] = defaultdict(list)
        self._holders_of: dict[tuple[str, str], list[_Place]] = defaultdict(list)
        for place in self._places:
            self._by_tenant[place.request.tenant].append(place)
            if place.replicas:
                self._holders[place.gpu_class].append(place)
                self._holders_of[place.request.tenant, place.gpu_class].append(place)
        self._claimed: dict[str, int] = defaultdict(int)
        self._pods_wait = any(request.leaving_devices or request.promised_devices for request in self._requests)

    def share(self) -> Grants:
        """Run the rounds."""
        for place in self._places:
            self._claim(place)
        for gpu_class in self._classes:
            self._take_back(gpu_class, -self._target.idle(gpu_class))
        for place in self._places:
            if place.cause is TakingCause.TIER and not place.stays:
                self._restore(place)
        self._borrow()
        self._grow()
        return self._conclude()

    # -- claims on devices of one's own --------------------------------------------------------------------------------

    def _claim(self, place: _Place) -> None:
        request = place.request
        if request.fixed:
            return
        if place.running and not place.stays:
            self._claim_more(place)
            return
        for gpu_class in request.classes:
            if request.least <= self._target.nominal_room(request, gpu_class):
                self._claim_in(place, gpu_class, request.least)
                return
        for gpu_class in request.classes:
            if self._displace(place, gpu_class, request.least):
                return
        self._note(place)

    def _claim_more(self, place: _Place) -> None:
        """A running service keeps what it has and is topped up as far as its tenant's own devices go."""
        request = place.request
        wanted = max(request.least, request.demand)
        if place.replicas >= wanted:
            return
        room = self._target.nominal_room(request, place.gpu_class)
        if place.replicas < min(wanted, room):
            self._claim_in(place, place.gpu_class, min(wanted, room))
        if place.replicas < request.least and not self._displace(place, place.gpu_class, request.least):
            self._displace(place, place.gpu_class, place.replicas + 1)
        self._note(place)

    def _claim_in(self, place: _Place, gpu_class: str, replicas: int) -> None:
        self._place(place, gpu_class, replicas)
        if not place.running:  # one of a lower tier that has not begun makes room more cheaply than any that runs
            self._holders_of[place.request.tenant, gpu_class].append(place)
        self._claimed[gpu_class] += self._target.claim(place.request, gpu_class, replicas)
        self._note(place)

    def _place(self, place: _Place, gpu_class: str, replicas: int) -> None:
        """Give it a place. What it runs in another class is as good as gone once it has one here."""
        if place.stays and place.gpu_class == gpu_class:
            replicas = max(replicas, place.replicas)
        elif place.stays:
            old = self._target.own(place.request.key, place.gpu_class)
            self._target.release(place.request, place.gpu_class, old)
            self._pods_wait = True
        place.gpu_class, place.replicas, place.stays = gpu_class, replicas, False

    def _displace(self, place: _Place, gpu_class: str, replicas: int) -> bool:
        """Take the place of replicas of lower tiers, so that this many fit within the tenant's own devices."""
        request, target = place.request, self._target
        need = replicas * request.devices_per_replica - target.own(request.key, gpu_class)
        need -= target.terms(request.tenant, gpu_class).nominal - target.used(request.tenant, gpu_class)
        if need > target.used_by_others(request, gpu_class) or not self._take_from_lower_tiers(place, gpu_class, need):
            return False
        self._claim_in(place, gpu_class, replicas)
        return True

    def _take_from_lower_tiers(self, place: _Place, gpu_class: str, need: int) -> bool:
        """Take replicas of the same tenant, never below their floors."""
        request = place.request
        holdings = [
            Holding(other.request, other.replicas - _floor(other), leaving=_leaving(other))
            for other in self._holders_of[request.tenant, gpu_class]
            if other.gpu_class == gpu_class
            and URGENCY[other.request.tier] > URGENCY[request.tier]
            and not other.request.fixed
            and other.replicas > _floor(other)
        ]
        if not holdings or need <= 0:
            return False
        bounds = {request.tenant: Bound(need, self._allowance[request.tenant])}
        victims = choose_victims(holdings, bounds, need, self._share_without(gpu_class))
        self._take(victims, TakingCause.TIER)
        return bool(victims)

    # -- taking --------------------------------------------------------------------------------------------------------

    def _take(self, victims: Mapping[Key, int], cause: TakingCause) -> int:
        """Carry out a choice in the target; return the devices it releases."""
        self._pods_wait = self._pods_wait or bool(victims)
        released = 0
        for key, count in victims.items():
            place = self._by_key[key]
            self._charge(place.request.tenant, max(0, count - _leaving(place)))
            devices = count * place.request.devices_per_replica
            self._target.release(place.request, place.gpu_class, devices)
            place.replicas -= count
            place.cause = cause
            released += devices
        return released

    def _charge(self, tenant: str, replicas: int) -> None:
        allowance = self._allowance[tenant]
        if allowance is not None:
            self._allowance[tenant] = allowance - replicas

    def _take_back(self, gpu_class: str, need: int) -> None:
        """Let borrowers return what their cohort lends no more, as much as budgets allow now.

        Owners claim it, or took it in a moment in which an autoscaler was faster. A tenant without a cohort borrows
        nothing: what it holds beyond a quota that was lowered stays.
        """
        if need <= 0 or not any(item.cohort for item in self._terms.values()):
            return
        holdings = [
            Holding(place.request, place.replicas, min(_floor(place), place.replicas), _leaving(place))
            for place in self._holders[gpu_class]
            if place.gpu_class == gpu_class
            and place.replicas
            and self._target.borrowed(place.request.tenant, gpu_class)
        ]
        bounds = {
            tenant: Bound(self._target.borrowed(tenant, gpu_class), self._allowance[tenant])
            for tenant in {holding.request.tenant for holding in holdings}
        }
        victims = choose_victims(holdings, bounds, need, self._share_without(gpu_class), partly=True)
        self._take(victims, TakingCause.LENDER)

    def _share_without(self, gpu_class: str) -> Share:
        return lambda tenant, lost: self._target.share(tenant, gpu_class, -lost)

    def _restore(self, place: _Place) -> None:
        """Let displaced replicas go on on idle devices of the cohort, as borrowers."""
        replicas = min(place.kept, self._target.room(place.request, place.gpu_class))
        if replicas > place.replicas:
            self._charge(place.request.tenant, place.replicas - replicas)
            self._target.reserve(place.request, place.gpu_class, replicas)
            place.replicas = replicas
        if place.replicas == place.kept:
            place.cause = None

    # -- borrowing -----------------------------------------------------------------------------------------------------

    def _borrow(self) -> None:
        """Serve those who are still short, one at a time, whose tenant has the smallest dominant share."""
        waiting: dict[str, deque[_Place]] = defaultdict(deque)
        for place in self._places:
            if place.short and not place.request.fixed:
                waiting[place.request.tenant].append(place)
        turns = [(self._target.share(tenant), tenant) for tenant in waiting]
        heapq.heapify(turns)
        while turns:
            _, tenant = heapq.heappop(turns)
            self._borrow_for(waiting[tenant].popleft())
            if waiting[tenant]:
                heapq.heappush(turns, (self._target.share(tenant), tenant))

    def _borrow_for(self, place: _Place) -> None:
        request = place.request
        if place.running and not place.stays:
            self._borrow_in(place, place.gpu_class, min(request.least, self._target.room(request, place.gpu_class)))
            for wanted in (request.least, place.replicas + 1):
                if place.short and self._compete(place, place.gpu_class, wanted):
                    break
        elif not any(self._borrow_whole(place, gpu_class) for gpu_class in request.classes):
            any(self._compete(place, gpu_class, request.least) for gpu_class in request.classes)

    def _borrow_whole(self, place: _Place, gpu_class: str) -> bool:
        if place.request.least > self._target.room(place.request, gpu_class):
            return False
        self._borrow_in(place, gpu_class, place.request.least)
        return True

    def _borrow_in(self, place: _Place, gpu_class: str, replicas: int) -> None:
        place.lendable = max(0, self._target.idle(gpu_class))
        if place.stays or replicas > place.replicas:
            self._place(place, gpu_class, replicas)
            self._target.reserve(place.request, gpu_class, replicas)
            place.borrows = True

    def _compete(self, place: _Place, gpu_class: str, replicas: int) -> bool:
        """Take borrowed devices from others, where nothing is idle."""
        request, target = place.request, self._target
        more = replicas * request.devices_per_replica - target.own(request.key, gpu_class)
        if target.idle(gpu_class) < 0:
            return False
        need = target.lacking(request.tenant, gpu_class, more)
        if not self._outbid(request, gpu_class, more) and not self._take_from_lower_tiers(place, gpu_class, need):
            return False
        self._borrow_in(place, gpu_class, replicas)
        return True

    def _outbid(self, request: Request, gpu_class: str, more: int) -> bool:
        """Take from tenants that, without these devices, still borrow at least as much as this one does with them.

        That order cannot turn round: who was taken from has no smaller share afterwards than who took.
        """
        target = self._target
        if request.tier is Tier.BATCH or not target.may_borrow(request.tenant, gpu_class, more):
            return False
        share = target.share(request.tenant, gpu_class, more)
        bounds = self._surplus(request, gpu_class, share)
        holdings = [
            Holding(other.request, other.replicas, min(_floor(other), other.replicas), _leaving(other))
            for other in self._holders[gpu_class]
            if other.gpu_class == gpu_class
            and other.request.tenant in bounds
            and other.replicas
            and URGENCY[other.request.tier] >= URGENCY[request.tier]
        ]
        need = more - max(0, target.idle(gpu_class))
        victims = choose_victims(holdings, bounds, need, self._share_without(gpu_class)) if holdings else {}
        self._take(victims, TakingCause.SHARE)
        return bool(victims)

    def _surplus(self, request: Request, gpu_class: str, share: float) -> dict[str, Bound]:
        """What each other tenant borrows beyond a share."""
        bounds = {}
        sizes: dict[str, int] = {}
        for place in self._holders[gpu_class]:
            tenant = place.request.tenant
            sizes[tenant] = max(sizes.get(tenant, 1), place.request.devices_per_replica)
        for tenant, size in sizes.items():
            borrowed = self._target.borrowed(tenant, gpu_class)
            if tenant == request.tenant or not borrowed:
                continue
            spare = self._spare(tenant, gpu_class, share, borrowed)
            if spare >= size:  # `Bound` lets one more replica go while less than it says was taken
                bounds[tenant] = Bound(spare - size + 1, self._allowance[tenant])
        return bounds

    def _spare(self, tenant: str, gpu_class: str, share: float, borrowed: int) -> int:
        """Devices that a tenant can lose without falling below a share."""
        least, most = 0, borrowed
        while least < most:
            middle = (least + most + 1) // 2
            if self._target.share(tenant, gpu_class, -middle) >= share:
                least = middle
            else:
                most = middle - 1
        return least

    # -- growth --------------------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        """Deal the rest out one replica at a time, so that the first autoscaler does not take all of it."""
        growing = [place for place in self._places if not place.short and place.replicas < place.request.most]
        turn = growing
        while turn:
            turn = [place for place in turn if self._grow_by_one(place, self._target.nominal_room)]
        lists: dict[str, deque[_Place]] = defaultdict(deque)
        for place in growing:
            lists[place.request.tenant].append(place)
        turns = [(self._target.share(tenant), tenant) for tenant in lists]
        heapq.heapify(turns)
        while turns:
            _, tenant = heapq.heappop(turns)
            place = lists[tenant].popleft()
            if self._grow_by_one(place, self._target.room):
                lists[tenant].append(place)
            if lists[tenant]:
                heapq.heappush(turns, (self._target.share(tenant), tenant))

    def _grow_by_one(self, place: _Place, room: Callable[[Request, str], int]) -> bool:
        request, wanted = place.request, place.replicas + 1
        if request.fixed or wanted > request.most or wanted > room(request, place.gpu_class):
            return False
        if wanted > self._target.room(request, place.gpu_class):
            return False
        self._target.reserve(request, place.gpu_class, wanted)
        place.replicas = wanted
        return True

    # -- what may start now --------------------------------------------------------------------------------------------

    def _conclude(self) -> Grants:
        for place in self._places:
            if place.stays:  # refused where it should be; what it still runs elsewhere is no grant
                place.gpu_class, place.replicas = place.request.classes[0], 0
        served = sorted(self._places, key=lambda place: place.borrows)  # users of their own devices before borrowers
        now = self._start_least(served)
        self._for_rollouts = self._books_for_rollouts()
        self._start_rest(served, now)
        self._fits = now
        waits = any(self._target.idle(gpu_class) < 0 for gpu_class in self._classes)
        return Grants(self._by_key, self._grant, waits_for_budget=waits)

    def _grant(self, place: _Place) -> Grant:
        request, gpu_class, now = place.request, place.gpu_class, self._fits[place.request.key]
        terms = self._target.terms(request.tenant, gpu_class)
        return Grant(
            gpu_class,
            now,
            request.least,
            place.used,
            terms.nominal,
            self._for_rollouts.free(request.tenant, gpu_class),
            request.devices_per_replica,
            cohort=self._terms[request.tenant].cohort,
            borrowing_limit=terms.borrowing_limit,
            lendable=place.lendable,
            borrowed=self._borrowed(place, terms.nominal),
            taken=max(0, _told(place) - place.replicas) if place.cause else 0,
            cause=place.cause,
            wait=self._wait(place, now),
        )

    def _borrowed(self, place: _Place, nominal: int) -> int:
        """Devices of a service that are the cohort's: its tenant's own go to those served before it."""
        before = 0
        for other in self._by_tenant[place.request.tenant]:
            if other.gpu_class != place.gpu_class:
                continue
            needs = min(self._fits[other.request.key], max(other.kept, other.request.least))
            devices = needs * other.request.devices_per_replica
            if other is place:
                return min(devices, max(0, before + devices - nominal))
            before += devices
        return 0

    def _start_least(self, served: list[_Place]) -> dict[Key, int]:
        """Replicas that may run at once, so far those that services run already or need to run at all: only in devices
        that no pod holds and no rollout was told it may use.
        """
        for request in self._requests:
            self._now.hold_promised(request)
        now = {place.request.key: min(place.replicas, place.kept) for place in self._places}
        for place in served:
            self._start(place, min(place.replicas, place.request.least), now)
        return now

    def _books_for_rollouts(self) -> Ledger:
        """What rollouts may use is free here; among themselves they take turns."""
        books = self._now.copy()
        for request in self._requests:
            books.release_promised(request)
        return books

    def _start_rest(self, served: list[_Place], now: dict[Key, int]) -> None:
        """Start all of the target, except where pods of others still hold the devices."""
        if not self._pods_wait and not any(self._target.idle(gpu_class) < 0 for gpu_class in self._claimed):
            now.update({place.request.key: place.replicas for place in self._places})
            return
        for place in served:
            if now[place.request.key] >= place.request.least:
                self._start(place, place.replicas, now)

    def _start(self, place: _Place, wanted: int, now: dict[Key, int]) -> None:
        request, before = place.request, now[place.request.key]
        if wanted <= before:
            return
        replicas = min(wanted, self._now.room(request, place.gpu_class))
        whole = place.running or replicas >= request.least
        if whole and replicas > before:
            self._now.reserve(request, place.gpu_class, replicas)
            now[request.key] = replicas

    def _wait(self, place: _Place, now: int) -> Wait:
        if min(place.replicas, place.request.least) <= now:
            return Wait.ROOM
        return Wait.ALLOWANCE if self._target.idle(place.gpu_class) < 0 else Wait.RETURN

    def _note(self, place: _Place) -> None:
        """Remember what stands in the way now, before others grow."""
        place.used = self._target.used_by_others(place.request, place.gpu_class)
        place.lendable = max(0, self._target.idle(place.gpu_class))


def _floor(place: _Place) -> int:
    """Replicas that are promised to stay, of those that run; none in a class that the service should leave."""
    return 0 if place.stays else min(place.request.floor, place.kept)


def _told(place: _Place) -> int:
    """Replicas that run and were not told to stop."""
    request = place.request
    return place.kept if request.told is None or request.fixed else min(place.kept, request.told)


def _leaving(place: _Place) -> int:
    """Replicas, of those a service is to have, that were told to stop already or have not begun: nobody misses them."""
    return max(0, place.replicas - _told(place))
