"""Limits under random traffic: never more than they say, refunds to the token, and whoever waits gets in."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from windlass_contract.endpoints import TenantRates
from windlass_gateway.limits import Bucket, Limit, Limiter, OverLimit, Ticket, divide_rates

NEAR = 1e-6


def build_limiter(gateways: int = 1, now_s: float = 0.0, **rates: float) -> Limiter:
    """A limiter with one limited tenant, acme."""
    limiter = Limiter(gateways)
    limiter.replace_rates({"acme": TenantRates("acme", **rates)}, now_s)  # type: ignore[arg-type]
    return limiter


def let_in(limiter: Limiter, now_s: float = 0.0) -> Ticket:
    """A request that the limits must not keep out."""
    ticket = limiter.enter(["acme"], now_s)
    assert isinstance(ticket, Ticket)
    return ticket


def kept_out(limiter: Limiter, now_s: float = 0.0) -> OverLimit:
    """A request that a limit must keep out."""
    refusal = limiter.enter(["acme"], now_s)
    assert isinstance(refusal, OverLimit)
    return refusal


def test_a_minutes_worth_of_requests_may_come_at_once_and_then_one_per_interval() -> None:
    limiter = build_limiter(requests_per_minute=6)

    for _ in range(6):
        let_in(limiter)
    refusal = kept_out(limiter, now_s=1.0)
    let_in(limiter, now_s=10.0)

    assert (refusal.limit, refusal.allowed, refusal.retry_after_s) == (Limit.REQUESTS, 6, pytest.approx(9.0))
    assert kept_out(limiter, now_s=10.0).retry_after_s == pytest.approx(10.0)


def test_a_shorter_burst_spreads_requests_out() -> None:
    limiter = build_limiter(requests_per_minute=60, burst_s=2)

    passed = [isinstance(limiter.enter(["acme"], 0.0), Ticket) for _ in range(4)]

    assert passed == [True, True, False, False]


def test_requests_at_once_are_counted_until_they_leave() -> None:
    limiter = build_limiter(concurrent_requests=2)
    first, _ = let_in(limiter), let_in(limiter)

    refusal = kept_out(limiter)
    first.leave(0, 0.0)

    assert (refusal.limit, refusal.allowed, refusal.retry_after_s) == (Limit.CONCURRENCY, 2, 1.0)
    let_in(limiter)
    kept_out(limiter)


def test_a_refused_request_costs_nothing() -> None:
    limiter = build_limiter(requests_per_minute=1, concurrent_requests=5)
    let_in(limiter)

    waits = {kept_out(limiter).retry_after_s for _ in range(100)}

    assert waits == {60.0}


def test_the_answer_corrects_what_was_reserved_for_it() -> None:
    limiter = build_limiter(tokens_per_minute=1000)
    dear, cheap = let_in(limiter), let_in(limiter)
    assert dear.reserve(100, 300, 0.0) is None
    assert cheap.reserve(100, 300, 0.0) is None
    reserved = cheap.readings(0.0)[Limit.TOKENS].remaining

    dear.leave(650, 0.0)
    after_dear = cheap.readings(0.0)[Limit.TOKENS].remaining
    cheap.leave(50, 0.0)

    assert (reserved, after_dear) == (400, 50)
    assert let_in(limiter).readings(0.0)[Limit.TOKENS].remaining == 300


def test_a_debt_is_paid_off_before_anything_else_is_let_in() -> None:
    limiter = build_limiter(tokens_per_minute=60)
    ticket = let_in(limiter)
    ticket.reserve(10, 10, 0.0)
    ticket.leave(160, 0.0)  # a hundred tokens more than the bucket held

    refusal = let_in(limiter).reserve(10, 10, 0.0)

    assert refusal == OverLimit("acme", Limit.TOKENS, 60, pytest.approx(110.0), 10)  # type: ignore[arg-type]
    assert let_in(limiter, 111.0).reserve(10, 10, 111.0) is None


def test_a_prompt_that_never_fits_is_refused_for_good_and_a_long_answer_is_not() -> None:
    limiter = build_limiter(tokens_per_minute=100)

    hopeless = let_in(limiter).reserve(101, 101, 0.0)
    chatty = let_in(limiter).reserve(50, 5000, 0.0)

    assert hopeless == OverLimit("acme", Limit.TOKENS, 100, math.inf, 101)
    assert chatty is None


def test_tenants_do_not_share_limits_and_one_without_limits_has_none() -> None:
    limiter = Limiter()
    one = TenantRates("", requests_per_minute=1)
    limiter.replace_rates({"acme": one, "rival": one}, 0)
    let_in(limiter)

    others = [limiter.enter(["rival"], 0.0), *(limiter.enter(["free"], 0.0) for _ in range(100))]

    kept_out(limiter)
    assert all(isinstance(ticket, Ticket) for ticket in others)


def test_new_limits_hold_at_once_and_raise_nobody_to_a_full_bucket() -> None:
    limiter = build_limiter(requests_per_minute=60)
    running = [let_in(limiter) for _ in range(60)]

    limiter.replace_rates({"acme": TenantRates("acme", 600, None, 10)}, 0.0)
    over = kept_out(limiter)
    for ticket in running:
        ticket.leave(0, 0.0)

    assert over.limit is Limit.CONCURRENCY
    assert kept_out(limiter).retry_after_s == pytest.approx(0.1)
    limiter.replace_rates({}, 0.0)
    assert all(isinstance(limiter.enter(["acme"], 0.0), Ticket) for _ in range(1000))


@given(st.integers(1, 50), st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 1000))
def test_gateways_together_grant_what_the_tenant_may_use(gateways: int, requests: int, tokens: int, most: int) -> None:
    part = divide_rates(TenantRates("acme", requests, tokens, most), gateways)

    assert part.requests_per_minute == pytest.approx(requests / gateways)
    assert part.tokens_per_minute == pytest.approx(tokens / gateways)
    assert part.concurrent_requests is not None
    assert part.concurrent_requests * gateways <= max(most, gateways)


def test_a_request_is_within_the_limits_of_its_tenant_and_of_its_service_or_costs_neither() -> None:
    limiter = Limiter()
    limiter.replace_rates(
        {"acme": TenantRates("acme", 10, 1000), "team/chat": TenantRates("acme", 2, 100, concurrent_requests=3)}, 0.0
    )
    chat, code = ("acme", "team/chat"), ("acme", "team/code")

    first, second = (limiter.enter(chat, 0.0) for _ in range(2))
    third = limiter.enter(chat, 0.0)
    other = limiter.enter(code, 0.0)
    assert isinstance(first, Ticket)
    assert isinstance(second, Ticket)
    assert isinstance(other, Ticket)
    fits, too_much = first.reserve(60, 60, 0.0), second.reserve(60, 60, 0.0)

    assert third == OverLimit("team/chat", Limit.REQUESTS, 2, pytest.approx(30.0))  # type: ignore[arg-type]
    assert (fits, too_much) == (None, OverLimit("team/chat", Limit.TOKENS, 100, pytest.approx(12.0), 60))  # type: ignore[arg-type]
    assert other.readings(0.0)[Limit.REQUESTS].remaining == 7, "what the service refused does not count for the tenant"
    assert other.readings(0.0)[Limit.TOKENS].remaining == 940
    assert first.readings(0.0)[Limit.TOKENS].remaining == 40, "the tighter of the two"
    first.leave(30, 0.0)
    assert other.readings(0.0)[Limit.TOKENS].remaining == 970


amounts = st.integers(0, 5000)
pauses = st.floats(0, 200)


@given(st.floats(0.01, 1000), st.floats(1, 5000), st.lists(st.tuples(pauses, amounts), max_size=40))
def test_a_refund_leaves_a_bucket_as_if_nothing_had_been_taken(
    rate_per_s: float, burst: float, steps: list[tuple[float, int]]
) -> None:
    used, spared = Bucket(rate_per_s, burst, 0.0), Bucket(rate_per_s, burst, 0.0)
    now_s = 0.0

    for pause_s, amount in steps:
        used.take(amount)
        now_s += pause_s
        used.fill(now_s)
        used.give_back(amount)
        spared.fill(now_s)

    assert used.level == pytest.approx(spared.level, abs=NEAR)


class Traffic(RuleBasedStateMachine):
    """Requests of one tenant that come, reserve, cost what they like and leave, while the time passes."""

    @initialize(
        requests=st.integers(1, 600),
        tokens=st.integers(1, 100_000),
        most=st.integers(1, 20),
        burst_s=st.floats(1, 120),
        gateways=st.integers(1, 4),
    )
    def begin(self, requests: int, tokens: int, most: int, burst_s: float, gateways: int) -> None:
        self.now_s = 0.0
        rates = TenantRates("acme", requests, tokens, most, burst_s)
        self.limiter = Limiter(gateways)
        self.limiter.replace_rates({"acme": rates}, 0.0)
        self.part = divide_rates(rates, gateways)
        self.open: list[tuple[Ticket, float]] = []
        self.requests = 0
        self.tokens = 0.0
        """Reserved by what runs, and used by what has left."""
        self.excess = 0.0
        """Used beyond reservations."""

    @property
    def request_rate(self) -> float:
        return (self.part.requests_per_minute or 0) / 60

    @property
    def token_rate(self) -> float:
        return (self.part.tokens_per_minute or 0) / 60

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(prompt=st.integers(0, 2000), answer=st.integers(0, 2000))
    def ask(self, prompt: int, answer: int) -> None:
        ticket = self.limiter.enter(["acme"], self.now_s)
        if isinstance(ticket, OverLimit):
            return
        over = ticket.reserve(prompt, prompt + answer, self.now_s)
        if over is not None:
            ticket.undo(self.now_s)
            return
        reserved = min(float(prompt + answer), max(1.0, self.token_rate * self.part.burst_s))
        self.open.append((ticket, reserved))
        self.requests += 1
        self.tokens += reserved

    @precondition(lambda self: self.open)
    @rule(index=st.integers(0, 100), used=st.integers(0, 5000))
    def finish(self, index: int, used: int) -> None:
        ticket, reserved = self.open.pop(index % len(self.open))
        ticket.leave(used, self.now_s)
        self.tokens += used - reserved
        self.excess += max(0.0, used - reserved)

    @precondition(lambda self: self.open)
    @rule(index=st.integers(0, 100))
    def fail(self, index: int) -> None:
        ticket, reserved = self.open.pop(index % len(self.open))
        ticket.undo(self.now_s)
        self.tokens -= reserved
        self.requests -= 1

    @rule()
    def be_patient(self) -> None:
        """Whoever comes back when told, and is alone, gets in."""
        for ticket, _ in self.open:
            ticket.undo(self.now_s)
        self.requests -= len(self.open)
        self.tokens -= sum(reserved for _, reserved in self.open)
        self.open.clear()
        first = self.limiter.enter(["acme"], self.now_s)
        if isinstance(first, OverLimit):
            self.now_s += first.retry_after_s
            first = self.limiter.enter(["acme"], self.now_s)
        assert isinstance(first, Ticket)
        over = first.reserve(1, 1, self.now_s)
        if over is not None:
            self.now_s += over.retry_after_s
            over = first.reserve(1, 1, self.now_s)
        assert over is None
        first.undo(self.now_s)

    @invariant()
    def nothing_exceeds_its_limit(self) -> None:
        if not hasattr(self, "limiter"):
            return
        self.limiter.check()
        burst = max(1.0, self.request_rate * self.part.burst_s)
        assert self.requests <= burst + self.request_rate * self.now_s + NEAR * (1 + self.now_s)
        burst = max(1.0, self.token_rate * self.part.burst_s)
        assert self.tokens <= burst + self.token_rate * self.now_s + self.excess + NEAR * (1 + self.tokens)
        assert len(self.open) <= (self.part.concurrent_requests or 0)


Traffic.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTraffic = Traffic.TestCase
