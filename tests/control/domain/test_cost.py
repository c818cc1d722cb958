"""Costs: arithmetic that adds up, counters that restart, and figures that stay in a status until they are wrong."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from support.builders import build_gpu_class, build_service, build_snapshot, build_tenant, build_workload
from windlass_operator.api.v1alpha1.cost import Cost
from windlass_operator.domain.canary_plan import canary_key
from windlass_operator.domain.cost import (
    CostLedger,
    Figures,
    describe_cost,
    format_money,
    plan_spending,
    renew_cost,
    services_of,
)
from windlass_operator.domain.snapshot import Key, Snapshot

CHAT = Key("InferenceService", "team-a", "chat")
CODE = Key("InferenceService", "team-a", "code")
HOUR_S = 3600.0


def build_fleet(placed: int = 2, price: str | None = "2.50") -> Snapshot:
    """One service on GPUs of a price."""
    gpu_class = build_gpu_class(**({} if price is None else {"pricePerHour": price}))
    workload = build_workload(placed, gpu_class="h200", placed=placed)
    service = build_service(accelerator={"classes": ["h200"]})
    return build_snapshot(service, gpu_class, build_tenant(), workloads={"team-a/chat": workload})


def build_cost(**fields: object) -> Cost:
    """What a status says."""
    values = {
        "currency": "USD",
        "per_hour": "5",
        "tokens_per_hour": 1_000_000,
        "per_million_tokens": "5",
        "measured_seconds": 3600,
        "time": "2026-01-01T00:00:00Z",
    }
    return Cost.model_validate({**values, **fields})


def test_a_service_spends_the_price_of_what_its_pods_on_nodes_hold() -> None:
    assert plan_spending(build_fleet(placed=3)) == {CHAT: 7.5}


def test_canaries_cost_too_and_claims_cost_what_they_were_given() -> None:
    service = build_service(accelerator={"classes": ["h200"]}, canaries=[{"name": "next", "trafficPercent": 10}])
    classes = (build_gpu_class("h200", pricePerHour="4"), build_gpu_class("a100", pricePerHour="2"))
    workloads = {
        CHAT: build_workload(3, gpu_class="h200", placed=3, claimed=(("a100", 2), ("h200", 1))),
        canary_key(CHAT, "next"): build_workload(1, gpu_class="h200", placed=1),
    }

    snapshot = dataclasses.replace(build_snapshot(service, *classes), workloads=workloads)

    assert plan_spending(snapshot) == {CHAT: 2 * 2 + 4 + 4}


@pytest.mark.parametrize(
    "snapshot",
    [
        pytest.param(build_fleet(price=None), id="no price"),
        pytest.param(build_snapshot(build_service(), workloads={"team-a/chat": build_workload(2)}), id="no GPU"),
        pytest.param(build_snapshot(build_service(accelerator={"classes": ["h200"]})), id="nothing runs"),
    ],
)
def test_without_a_price_nothing_is_known(snapshot: Snapshot) -> None:
    assert plan_spending(snapshot) == {}


def test_a_tenant_pays_for_the_services_in_its_namespaces() -> None:
    snapshot = build_snapshot(
        build_service("chat", "team-a"), build_service("code", "team-a"), build_service("x", "team-b"), build_tenant()
    )

    assert services_of(Key("Tenant", "", "acme"), snapshot) == (CHAT, CODE)
    assert services_of(CHAT, snapshot) == (CHAT,)


def test_tokens_and_money_of_an_hour_give_the_price_of_a_million() -> None:
    ledger = CostLedger()
    for minute in range(61):
        ledger.note(minute * 60.0, {CHAT: 6.0}, {CHAT: {"a": minute * 10_000.0, "b": minute * 10_000.0}})

    figures = ledger.figures([CHAT])

    assert figures.tokens_per_hour == pytest.approx(1_200_000)
    assert figures.per_million == pytest.approx(5.0)
    assert figures.measured_s == HOUR_S
    assert ledger.spent(CHAT) == pytest.approx(6.0)


def test_only_the_last_hour_counts() -> None:
    ledger = CostLedger()
    served = 0.0
    for minute in range(200):
        served += 50_000.0 if minute <= 100 else 0.0
        ledger.note(minute * 60.0, {CHAT: 6.0}, {CHAT: {"a": served}})

    assert ledger.figures([CHAT]) == Figures(pytest.approx(6.0), 0.0, 0.0, HOUR_S)
    assert ledger.figures([CHAT]).per_million is None


def test_the_past_of_a_pod_that_was_there_before_the_operator_is_not_its_work_of_now() -> None:
    ledger = CostLedger()
    ledger.note(0.0, {CHAT: 1.0}, {CHAT: {"old": 5e9, "unread": None}})
    ledger.note(60.0, {CHAT: 1.0}, {CHAT: {"old": 5e9 + 10, "unread": 7e9}})
    ledger.note(120.0, {CHAT: 1.0}, {CHAT: {"old": 5e9 + 20, "unread": 7e9 + 5, "new": 100.0}})

    assert ledger.figures([CHAT]).tokens == 125.0


def test_a_pod_that_restarts_or_is_not_read_for_a_while_loses_no_tokens() -> None:
    ledger = CostLedger()
    readings: list[dict[str, float | None]] = [{"a": 100.0}, {"a": 300.0}, {"a": 50.0}, {"a": None}, {"a": 80.0}]
    for number, pods in enumerate(readings):
        ledger.note(number * 60.0, {CHAT: 1.0}, {CHAT: pods})

    assert ledger.figures([CHAT]).tokens == 200 + 50 + 30


def test_tokens_that_nobody_reads_are_unknown_and_not_zero() -> None:
    ledger = CostLedger()
    ledger.note(0.0, {CHAT: 1.0}, None)
    ledger.note(60.0, {CHAT: 1.0}, None)

    assert ledger.figures([CHAT]) == Figures()


def test_a_service_without_a_price_is_forgotten_and_an_old_account_begins_anew() -> None:
    ledger = CostLedger()
    ledger.note(0.0, {CHAT: 6.0, CODE: 6.0}, {})
    ledger.note(1800.0, {CHAT: 6.0}, {})
    spent = ledger.spent(CHAT)
    ledger.note(1800.0 + 2 * HOUR_S, {CHAT: 6.0}, {})

    assert (spent, ledger.spent(CODE), ledger.spent(CHAT)) == (3.0, 0.0, 0.0)


class Fleet(RuleBasedStateMachine):
    """Pods that come, count, restart, fall silent and go: the ledger never invents or loses tokens."""

    @initialize()
    def begin(self) -> None:
        self.ledger = CostLedger(window_s=1e12)
        self.now_s = 0.0
        self.pods: dict[str, float] = {}
        self.unseen: dict[str, float] = {}
        self.silent: set[str] = set()
        self.served = 0.0
        self.names = 0
        self.ledger.note(0.0, {CHAT: 1.0}, {CHAT: {}})

    @rule()
    def start_pod(self) -> None:
        self.names += 1
        self.pods[f"pod-{self.names}"] = 0.0
        self.unseen[f"pod-{self.names}"] = 0.0

    @rule(index=st.integers(0, 9), tokens=st.integers(0, 1000))
    def serve(self, index: int, tokens: int) -> None:
        if self.pods:
            name = sorted(self.pods)[index % len(self.pods)]
            self.pods[name] += tokens
            self.unseen[name] += tokens

    @rule(index=st.integers(0, 9))
    def toggle(self, index: int) -> None:
        if self.pods:
            self.silent ^= {sorted(self.pods)[index % len(self.pods)]}

    @rule(seconds=st.floats(1, 100))
    def read(self, seconds: float) -> None:
        self.now_s += seconds
        shown = {name: None if name in self.silent else value for name, value in self.pods.items()}
        self.ledger.note(self.now_s, {CHAT: 1.0}, {CHAT: shown})
        for name, value in shown.items():
            if value is not None:
                self.served += self.unseen[name]
                self.unseen[name] = 0.0

    @invariant()
    def it_adds_up(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.ledger.check()
        assert (self.ledger.figures([CHAT]).tokens or 0.0) == self.served
        assert self.ledger.spent(CHAT) == pytest.approx(self.now_s / 3600)


TestFleet = Fleet.TestCase


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0"),
        (2.85, "2.85"),
        (2.8549, "2.85"),
        (12.0, "12"),
        (0.012345, "0.0123"),
        (0.00000012345, "0.000000123"),
        (1234.5, "1230"),
        (999.9, "1000"),
        (7e9, "7000000000"),
    ],
)
def test_money_has_three_digits_and_no_exponent(amount: float, text: str) -> None:
    assert format_money(amount) == text


@given(st.floats(0, 1e12))
def test_written_money_is_close_and_fits_the_schema(amount: float) -> None:
    text = format_money(amount)

    assert float(text) == pytest.approx(amount, rel=0.006, abs=1e-17)
    assert Cost(currency="USD", per_hour=text).per_hour == text


def test_a_status_says_what_is_known() -> None:
    known = describe_cost(5.0, Figures(5.0, 2_000_000.0, 2_000_000.4, 3600.0), "EUR", "2026-01-01T00:00:00Z")
    unknown = describe_cost(5.0, Figures(), "EUR", "2026-01-01T00:00:00Z")

    assert known == Cost(
        currency="EUR",
        per_hour="5",
        tokens_per_hour=2_000_000,
        per_million_tokens="2.5",
        measured_seconds=3600,
        time="2026-01-01T00:00:00Z",
    )
    assert unknown == Cost(currency="EUR", per_hour="5", time="2026-01-01T00:00:00Z")


LATER = "2026-01-01T00:15:00Z"
EARLY = "2026-01-01T00:14:59Z"


@pytest.mark.parametrize(
    ("fresh", "renewed"),
    [
        pytest.param(build_cost(time=LATER, per_million_tokens="5.2"), False, id="a twentieth is no change"),
        pytest.param(build_cost(time=LATER, per_million_tokens="5.3"), True, id="more is one"),
        pytest.param(build_cost(time=EARLY, per_million_tokens="50"), False, id="but not within a quarter of an hour"),
        pytest.param(build_cost(time=LATER, tokens_per_hour=0, per_million_tokens=None), True, id="no tokens any more"),
        pytest.param(build_cost(time=LATER, per_hour="10"), True, id="more devices"),
        pytest.param(build_cost(time=EARLY, currency="EUR"), True, id="another currency"),
    ],
)
def test_figures_stay_until_they_are_old_and_wrong(fresh: Cost, renewed: bool) -> None:
    previous = build_cost()

    assert renew_cost(previous, fresh) == (fresh if renewed else previous)


def test_a_price_that_goes_takes_the_figures_along() -> None:
    assert renew_cost(build_cost(), None) is None


def test_what_has_no_node_yet_shows_nothing_and_what_wakes_up_shows_its_price_at_once() -> None:
    idle, awake = build_cost(per_hour="0"), build_cost(time="2026-01-01T00:00:01Z")

    assert renew_cost(None, idle) is None
    assert renew_cost(idle, awake) == awake
    assert renew_cost(awake, build_cost(per_hour="0", time="2026-01-01T00:10:00Z")) == awake


def test_tokens_that_cannot_be_read_now_leave_what_was_known() -> None:
    blind = build_cost(time=LATER, per_hour="10", tokens_per_hour=None, per_million_tokens=None, measured_seconds=None)

    assert renew_cost(build_cost(), blind) == build_cost(time=LATER, per_hour="10")


def test_tokens_that_are_known_at_last_are_shown_at_once() -> None:
    blind = build_cost(tokens_per_hour=None, per_million_tokens=None, measured_seconds=None)
    fresh = build_cost(time="2026-01-01T00:01:00Z")

    assert renew_cost(blind, fresh) == fresh


working = st.floats(0.1, 100)


@pytest.mark.parametrize(
    ("spendings", "most"),
    [pytest.param(working, 5, id="awake"), pytest.param(working | st.just(0.0), 9, id="asleep now and then")],
)
@given(data=st.data())
def test_a_status_is_seldom_written_whatever_the_load(
    spendings: st.SearchStrategy[float], most: int, data: st.DataObject
) -> None:
    steps = data.draw(st.lists(st.tuples(st.integers(1, 600), spendings, st.integers(0, 10**7)), max_size=60))
    now_s, writes = 0, []
    shown: Cost | None = None

    for seconds, spending, tokens in steps:
        now_s += seconds
        now = f"2026-01-01T{now_s // 3600:02}:{now_s // 60 % 60:02}:{now_s % 60:02}Z"
        before, shown = (
            shown,
            renew_cost(shown, describe_cost(spending, Figures(spending, tokens, tokens, 60.0), "USD", now)),
        )
        if shown != before:
            writes.append(now_s)

    for start in writes:
        assert sum(start <= at < start + 3600 for at in writes) <= most
