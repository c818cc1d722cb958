"""Tenants of a cohort: lending, borrowing, taking back, tiers and budgets, over random fleets.

The bound on waiting that documents state is proven here: see `test_what_is_ones_own_comes_back_within_the_bound`.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_operator.api.v1alpha1.inference_service import Tier
from windlass_operator.domain.preemption import BUDGET_S, allowance, told
from windlass_operator.domain.quota import URGENCY, ClassTerms, Grant, Request, Taking, TakingCause, Terms, Wait
from windlass_operator.domain.sharing import share_cohort
from windlass_operator.domain.snapshot import Key

REALTIME, STANDARD, BATCH = Tier.REALTIME, Tier.STANDARD, Tier.BATCH


def build_terms(
    tenant: str = "a",
    nominal: int = 4,
    *,
    borrow: int | None = None,
    lend: int | None = None,
    weight: int = 1,
    allowance: int | None = None,
    gpu_class: str = "h200",
) -> Terms:
    return Terms(tenant, {gpu_class: ClassTerms(nominal, borrow, lend)}, "research", weight, allowance)


def build_request(
    tenant: str = "a",
    least: int = 1,
    *,
    name: str = "chat",
    most: int | None = None,
    held: int = 0,
    tier: Tier = STANDARD,
    floor: int = 0,
    created: str = "2026-01-01",
    size: int = 1,
    classes: tuple[str, ...] = ("h200",),
    **more,
) -> Request:
    return Request(
        Key("InferenceService", tenant, name),
        created,
        classes,
        least,
        least if most is None else most,
        size,
        classes[0] if held else "",
        held * size,
        tenant,
        tier,
        floor,
        **more,
    )


def share(terms: Iterable[Terms], *requests: Request) -> dict[str, int]:
    grants = share_cohort(terms, requests)
    return {f"{key.namespace}/{key.name}": grant.replicas for key, grant in grants.items()}


# -- single decisions --------------------------------------------------------------------------------------------------


def test_an_idle_tenant_lends_what_another_needs():
    assert share([build_terms("a", 2), build_terms("b", 4)], build_request("a", 5)) == {"a/chat": 5}


@pytest.mark.parametrize(
    ("borrower", "lender", "most"),
    [
        pytest.param({"borrow": 1}, {}, 3, id="the borrower's limit"),
        pytest.param({"borrow": 0}, {}, 2, id="no borrowing"),
        pytest.param({}, {"lend": 2}, 4, id="the lender's limit"),
        pytest.param({}, {"lend": 0}, 2, id="no lending"),
        pytest.param({"borrow": 9}, {}, 6, id="what there is"),
    ],
)
def test_limits_hold_on_both_sides(borrower, lender, most):
    terms = [build_terms("a", 2, **borrower), build_terms("b", 4, **lender)]

    assert share(terms, build_request("a", most)) == {"a/chat": most}
    assert share(terms, build_request("a", most + 1)) == {"a/chat": 0}


def test_a_lender_gets_its_own_back_from_borrowers_and_waits_until_their_pods_are_gone():
    terms = [build_terms("a", 2), build_terms("b", 4)]
    borrower, lender = build_request("a", 6, held=6), build_request("b", 3)

    grants = share_cohort(terms, [borrower, lender])

    taken, waits = grants[borrower.key], grants[lender.key]
    assert (taken.replicas, taken.taken, taken.cause) == (3, 3, TakingCause.LENDER)
    assert (waits.replicas, waits.wait) == (0, Wait.RETURN)
    assert share(terms, replace(borrower, held_devices=3), lender) == {"a/chat": 3, "b/chat": 3}


def test_nobody_slips_in_while_devices_are_on_their_way_back():
    terms = [build_terms("a", 2), build_terms("b", 4), build_terms("c", 0)]
    half_done = build_request("a", 6, held=4, told=3)

    granted = share(terms, half_done, build_request("b", 3), build_request("c", 1, created="2020-01-01"))

    assert granted == {"a/chat": 3, "b/chat": 0, "c/chat": 0}


def test_a_lender_never_takes_back_more_than_it_claims():
    granted = share([build_terms("a", 2), build_terms("b", 4)], build_request("a", 6, held=6), build_request("b", 1))

    assert granted == {"a/chat": 5, "b/chat": 0}


def test_a_floor_within_ones_own_devices_is_kept_and_a_borrowed_one_is_not_promised():
    terms = [build_terms("a", 2), build_terms("b", 4)]
    promised = build_request("a", 2, name="promised", held=2, floor=2)
    borrowed = build_request("a", 4, name="borrowed", held=4, floor=4, created="2026-02-01")

    assert share(terms, promised, borrowed, build_request("b", 4)) == {
        "a/promised": 2,
        "a/borrowed": 0,
        "b/chat": 0,
    }


@pytest.mark.parametrize(
    ("others", "victim"),
    [
        pytest.param([{"tier": BATCH}, {"tier": STANDARD}], 0, id="the lowest tier"),
        pytest.param([{"created": "2026-01-01"}, {"created": "2026-01-02"}], 1, id="the youngest"),
        pytest.param([{"floor": 2}, {"floor": 1, "tier": REALTIME}], 1, id="nobody's floor while another will do"),
    ],
)
def test_the_cheapest_victim_is_chosen(others, victim):
    terms = [build_terms("a", 0), build_terms("b", 4)]
    services = [build_request("a", 2, name=f"s{number}", held=2, **other) for number, other in enumerate(others)]

    grants = share_cohort(terms, [*services, build_request("b", 1)])

    assert [grants[service.key].replicas for service in services] == [1 if n == victim else 2 for n in range(2)]


def test_whoever_borrows_most_by_weight_gives_first():
    terms = [build_terms("a", 0, weight=4), build_terms("b", 0), build_terms("c", 6)]
    heavy, light = build_request("a", 4, held=4), build_request("b", 2, held=2)

    assert share(terms, heavy, light, build_request("c", 1)) == {"a/chat": 4, "b/chat": 1, "c/chat": 0}


def test_one_large_replica_goes_rather_than_two_small_ones():
    terms = [build_terms("a", 0), build_terms("b", 6)]
    large = build_request("a", 1, name="large", held=1, size=2)
    small = build_request("a", 4, name="small", held=4, created="2026-02-01")

    assert share(terms, large, small, build_request("b", 2)) == {"a/large": 0, "a/small": 4, "b/chat": 0}


def test_a_budget_bounds_what_one_hour_may_take():
    terms = [build_terms("a", 0, allowance=1), build_terms("b", 4)]
    borrower, lender = build_request("a", 4, held=4), build_request("b", 3)

    grants = share_cohort(terms, [borrower, lender])

    assert (grants[borrower.key].replicas, grants[lender.key].wait) == (3, Wait.ALLOWANCE)


def test_replicas_that_are_leaving_already_cost_no_budget():
    terms = [build_terms("a", 0, allowance=0), build_terms("b", 4)]
    leaving = build_request("a", 4, held=4, told=1)

    grants = share_cohort(terms, [leaving, build_request("b", 3)])

    assert (grants[leaving.key].replicas, grants[leaving.key].taken) == (1, 0)


def test_a_higher_tier_displaces_a_lower_one_of_its_own_tenant_down_to_the_floor():
    batch = build_request("a", 4, name="batch", held=4, tier=BATCH, floor=1)

    assert share([build_terms("a", 4)], batch, build_request("a", 3, name="urgent")) == {"a/batch": 1, "a/urgent": 0}
    assert share([build_terms("a", 4)], batch, build_request("a", 4, name="urgent")) == {"a/batch": 4, "a/urgent": 0}


def test_what_is_displaced_goes_on_as_a_borrower_where_the_cohort_has_room():
    terms = [build_terms("a", 4), build_terms("b", 2)]
    batch = build_request("a", 4, name="batch", held=4, tier=BATCH)

    assert share(terms, batch, build_request("a", 2, name="urgent")) == {"a/batch": 4, "a/urgent": 2}


def test_equal_tiers_displace_nobody_and_batch_never_does():
    held = build_request("a", 4, name="old", held=4)

    assert share([build_terms("a", 4)], held, build_request("a", 1, name="new")) == {"a/old": 4, "a/new": 0}
    assert share([build_terms("a", 4)], held, build_request("a", 1, name="new", tier=BATCH))["a/new"] == 0


def test_a_borrower_gives_way_to_one_with_a_smaller_share_and_not_the_other_way_round():
    terms = [build_terms("a", 0), build_terms("b", 0), build_terms("c", 4)]
    greedy, modest = build_request("a", 4, held=4), build_request("b", 2)

    assert share(terms, greedy, modest) == {"a/chat": 2, "b/chat": 0}
    assert share(terms, replace(greedy, held_devices=2), replace(modest, held_class="h200", held_devices=2)) == {
        "a/chat": 2,
        "b/chat": 2,
    }


def test_weights_say_what_a_fair_share_is():
    terms = [build_terms("a", 0, weight=3), build_terms("b", 0), build_terms("c", 4)]

    assert share(terms, build_request("a", 4, held=4), build_request("b", 1)) == {"a/chat": 3, "b/chat": 0}
    assert share(terms, build_request("a", 4, held=4), build_request("b", 2)) == {"a/chat": 4, "b/chat": 0}


def test_an_autoscaler_that_wants_more_gets_its_tenants_own_back_and_nothing_borrowed():
    terms = [build_terms("a", 2), build_terms("b", 4)]
    borrower, scaled = build_request("a", 5, held=5), build_request("b", 1, most=9, held=1)

    assert share(terms, borrower, replace(scaled, demand=2)) == {"a/chat": 4, "b/chat": 1}
    assert share(terms, replace(borrower, held_devices=4), replace(scaled, demand=2)) == {"a/chat": 4, "b/chat": 2}
    full = replace(scaled, held_devices=4, least=4, demand=5)
    assert share(terms, build_request("a", 2, held=2), full) == {"a/chat": 2, "b/chat": 4}


def test_a_service_whose_spec_is_broken_goes_as_a_whole_when_its_devices_are_not_its_tenants():
    terms = [build_terms("a", 0), build_terms("b", 4)]
    broken = build_request("a", 0, held=1, size=4, floor=1, fixed=True)

    grants = share_cohort(terms, [broken, build_request("b", 1)])

    assert (grants[broken.key].replicas, grants[broken.key].cause) == (0, TakingCause.LENDER)


# -- random fleets -----------------------------------------------------------------------------------------------------

TENANTS, CLASSES = ("a", "b", "c", "d"), ("h200", "l4")


@dataclass(frozen=True)
class Fleet:
    """A cohort at one moment. Pods follow what the planner grants, and takings are remembered as a cluster does."""

    terms: tuple[Terms, ...]
    requests: tuple[Request, ...]
    budgets: Mapping[str, int | None]
    takings: tuple[tuple[Key, Taking], ...] = ()
    now_s: float = 1_000_000.0

    def grants(self) -> dict[Key, Grant]:
        return share_cohort(self.terms_now(), self.requests)

    def terms_now(self) -> tuple[Terms, ...]:
        return tuple(
            replace(
                item,
                allowance=allowance(
                    self.budgets.get(item.tenant),
                    (taking for key, taking in self.takings if key.namespace == item.tenant),
                    self.now_s,
                ),
            )
            for item in self.terms
        )

    def follow(self, grants: Mapping[Key, Grant]) -> Fleet:
        """Deployments take their new numbers; the pods of before are gone a moment later."""
        taken = [
            (key, Taking(int(self.now_s), grant.taken, grant.replicas, grant.cause))
            for key, grant in grants.items()
            if grant.taken and grant.cause is not None
        ]
        moved = tuple(_follow(request, grants[request.key]) for request in self.requests)
        return replace(self, requests=moved, takings=(*self.takings, *taken), now_s=self.now_s + 300)


def _follow(request: Request, grant: Grant) -> Request:
    if request.fixed and grant.cause is None:
        return request
    least = grant.replicas if grant.short else max(request.least, min(request.held, grant.replicas))
    devices = min(least, grant.replicas) * request.devices_per_replica
    classes = (grant.gpu_class, *(name for name in request.classes if name != grant.gpu_class))
    return replace(
        request, held_class=grant.gpu_class if devices else "", held_devices=devices, classes=classes, told=None
    )


@st.composite
def fleets(draw: st.DrawFn, *, budgets: bool = True, sizes: tuple[int, ...] = (1, 2, 4, 8)) -> Fleet:
    tenants = TENANTS[: draw(st.integers(1, 4))]
    terms = []
    for tenant in tenants:
        classes = {}
        for name in CLASSES:
            nominal = draw(st.integers(0, 5)) * draw(st.sampled_from(sizes))
            borrow = draw(st.one_of(st.none(), st.integers(0, 4 * max(sizes))))
            lend = draw(st.one_of(st.none(), st.integers(0, nominal)))
            classes[name] = ClassTerms(nominal, borrow, lend)
        terms.append(Terms(tenant, classes, "research", draw(st.integers(1, 3))))
    requests = []
    for number in range(draw(st.integers(0, 8))):
        least, size, held = draw(st.integers(0, 3)), draw(st.sampled_from(sizes)), draw(st.integers(0, 3))
        order = draw(st.sampled_from([("h200",), ("l4",), ("h200", "l4"), ("l4", "h200")]))
        requests.append(
            Request(
                Key("InferenceService", draw(st.sampled_from(tenants)), f"s{number}"),
                f"2026-01-0{draw(st.integers(1, 4))}",
                order,
                least,
                least + draw(st.integers(0, 2)),
                size,
                draw(st.sampled_from(order)) if held else "",
                held * size,
                "",
                draw(st.sampled_from(list(Tier))),
                draw(st.integers(0, least)),
            )
        )
    requests = [replace(request, tenant=request.key.namespace) for request in requests]
    limits = {tenant: draw(st.one_of(st.none(), st.integers(1, 3))) if budgets else None for tenant in tenants}
    return Fleet(tuple(terms), tuple(requests), limits)


def used_after(fleet: Fleet, grants: Mapping[Key, Grant]) -> Counter[tuple[str, str]]:
    """Devices per tenant and class while pods of before and after are there."""
    used: Counter[tuple[str, str]] = Counter()
    for request in fleet.requests:
        grant = grants[request.key]
        granted = grant.replicas * request.devices_per_replica
        if request.held_class and request.held_class != grant.gpu_class:
            used[request.tenant, request.held_class] += request.held_devices
            used[request.tenant, grant.gpu_class] += granted
        else:
            used[request.tenant, grant.gpu_class] += max(granted, request.held_devices)
    return used


def held_before(fleet: Fleet) -> Counter[tuple[str, str]]:
    held: Counter[tuple[str, str]] = Counter()
    for request in fleet.requests:
        held[request.tenant, request.held_class] += request.held_devices
    return held


def drawn(fleet: Fleet, used: Mapping[tuple[str, str], int], gpu_class: str) -> int:
    """Devices of the pool in use."""
    total = 0
    for terms in fleet.terms:
        item = terms.classes[gpu_class]
        total += max(0, used[terms.tenant, gpu_class] - (item.nominal - item.lendable))
    return total


@settings(deadline=None, max_examples=300)
@given(fleets())
def test_grants_never_exceed_a_limit_beyond_what_already_runs(fleet):
    grants = fleet.grants()

    before, after = held_before(fleet), used_after(fleet, grants)
    for gpu_class in CLASSES:
        for terms in fleet.terms:
            item = terms.classes[gpu_class]
            limit = math.inf if item.borrowing_limit is None else item.nominal + item.borrowing_limit
            assert after[terms.tenant, gpu_class] <= max(limit, before[terms.tenant, gpu_class])
        pool = sum(terms.classes[gpu_class].lendable for terms in fleet.terms)
        assert drawn(fleet, after, gpu_class) <= max(pool, drawn(fleet, before, gpu_class))


@settings(deadline=None, max_examples=300)
@given(fleets())
def test_no_service_goes_below_a_floor_that_its_tenants_own_devices_cover(fleet):
    grants = fleet.grants()

    for terms in fleet.terms:
        for gpu_class, item in terms.classes.items():
            running = [
                request
                for request in fleet.requests
                if request.tenant == terms.tenant and request.held_class == gpu_class == grants[request.key].gpu_class
            ]
            floors = {request.key: min(request.floor, request.held, request.most) for request in running}
            promised = sum(floors[request.key] * request.devices_per_replica for request in running)
            if promised <= item.nominal:
                for request in running:
                    if request.classes[0] == gpu_class:  # the grant of one that moves tells of another class
                        assert grants[request.key].replicas >= floors[request.key]


@settings(deadline=None, max_examples=300)
@given(fleets(), st.integers())
def test_equal_fleets_give_equal_grants_in_any_order(fleet, seed):
    order = random.Random(seed)
    shuffled = replace(
        fleet,
        terms=tuple(order.sample(fleet.terms, len(fleet.terms))),
        requests=tuple(order.sample(fleet.requests, len(fleet.requests))),
    )

    assert shuffled.grants() == fleet.grants()


@settings(deadline=None, max_examples=300)
@given(fleets())
def test_nobody_loses_more_in_an_hour_than_its_tenants_budget(fleet):
    started = fleet.now_s
    for _ in range(12):
        fleet = fleet.follow(fleet.grants())
    assert fleet.now_s - started <= BUDGET_S

    taken: Counter[str] = Counter()
    for key, taking in fleet.takings:
        taken[key.namespace] += taking.replicas
    for tenant, budget in fleet.budgets.items():
        assert budget is None or taken[tenant] <= budget


ROUNDS = 12


@settings(deadline=None, max_examples=300)
@given(fleets(budgets=False))
def test_a_fleet_comes_to_rest(fleet):
    """Once pods have followed, planning again changes nothing: no two services take from each other in turns."""
    for _ in range(ROUNDS):
        fleet = fleet.follow(fleet.grants())

    after = fleet.follow(fleet.grants())

    assert [(request.held_class, request.held_devices) for request in after.requests] == [
        (request.held_class, request.held_devices) for request in fleet.requests
    ]


@settings(deadline=None, max_examples=300)
@given(fleets())
def test_what_is_ones_own_comes_back_within_the_bound(fleet):
    """Bound: a claim on a tenant's own devices is served two plans after its borrowers' budgets allowed it, and budgets
    of at least one replica an hour give back n replicas in at most n hours.
    """
    replicas = sum(request.held for request in fleet.requests)
    for _ in range(replicas + 1):
        for _ in range(4):
            fleet = fleet.follow(fleet.grants())
        fleet = replace(fleet, now_s=fleet.now_s + BUDGET_S)
    for _ in range(4):
        fleet = fleet.follow(fleet.grants())

    waiting = {grant.wait for grant in fleet.grants().values() if grant.short}
    assert waiting <= {Wait.ROOM}


@settings(deadline=None, max_examples=300)
@given(fleets(budgets=False, sizes=(1,)))
def test_no_tenant_waits_while_another_borrows_more_than_its_fair_share(fleet):
    for _ in range(ROUNDS):
        fleet = fleet.follow(fleet.grants())
    grants = fleet.grants()
    used = held_before(fleet)

    def share_of(terms: Terms, change: int = 0, changed: str = "") -> float:
        capacity = {name: max(1, sum(other.classes[name].nominal for other in fleet.terms)) for name in CLASSES}
        beyond = [
            max(0, used[terms.tenant, name] - item.nominal + (change if name == changed else 0))
            / (capacity[name] * terms.weight)
            for name, item in terms.classes.items()
        ]
        return max(beyond)

    by_name = {terms.tenant: terms for terms in fleet.terms}
    for request in fleet.requests:
        if not grants[request.key].short or request.tier is BATCH or request.held_devices:
            continue
        terms = by_name[request.tenant]
        for name in request.classes:
            item = terms.classes[name]
            if drawn(fleet, used, name) > sum(one.classes[name].lendable for one in fleet.terms):
                continue  # quotas were lowered below what runs, which evicts nobody and lets nobody in
            wanted = used[terms.tenant, name] + request.least
            if item.borrowing_limit is not None and wanted > item.nominal + item.borrowing_limit:
                continue
            mine = share_of(terms, request.least, name)
            for other in fleet.terms:
                preemptible = sum(
                    one.held
                    for one in fleet.requests
                    if (one.tenant, one.held_class) == (other.tenant, name)
                    and URGENCY[one.tier] >= URGENCY[request.tier]
                )
                richer = share_of(other, -request.least, name) >= mine
                enough = used[other.tenant, name] - other.classes[name].nominal >= request.least
                assert other is terms or not (richer and enough and preemptible >= request.least)


def test_takings_tell_what_an_autoscaler_still_carries_out():
    taking = Taking(1000, 2, 3, TakingCause.LENDER)

    assert told(5, (taking,), 1060) == 3
    assert told(5, (taking,), 1000 + BUDGET_S) == 5
    assert told(2, (taking,), 1060) == 2
