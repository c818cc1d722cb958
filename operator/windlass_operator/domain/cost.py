"""What services cost: prices of GPU classes times devices held, against tokens served. Plain arithmetic on values.

A figure that is written into a status moves rarely (`renew_cost`): rounded, at most every quarter of an hour, and only
when it is off by more than a twentieth.
"""

from __future__ import annotations

import datetime
import itertools
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

from windlass_operator.api.v1alpha1.cost import Cost
from windlass_operator.domain.canary_plan import canary_key
from windlass_operator.domain.gpu_need import price_of
from windlass_operator.domain.snapshot import Key, Snapshot, Workload
from windlass_operator.domain.tenancy import owners

WINDOW_S: Final = 3600.0
"""Tokens are counted over at most this time."""
LEAST_AGE_S: Final = 900.0
"""A status keeps its figures for at least this time."""
LEAST_CHANGE: Final = 0.05
"""And until one of them is off by more than this share."""
_DIGITS: Final = 3

TokenCounters = Mapping[Key, Mapping[str, float | None]]
"""Tokens that each replica has counted since its start, by service and pod; None: it could not be read."""


def money_per_million(money: float, tokens: float) -> float | None:
    """What a million tokens cost; None when there were none."""
    return money / tokens * 1e6 if tokens > 0 else None


def spending_per_hour(key: Key, snapshot: Snapshot) -> float | None:
    """Price of what the pods of a service and its canaries hold, for an hour; None when it has no GPU or nobody stated
    a price.
    """
    service = snapshot.services.get(key)
    if service is None or service.spec.accelerator is None:
        return None
    workloads = (key, *(canary_key(key, canary.name) for canary in service.spec.canaries))
    count = service.spec.accelerator.count
    prices = [
        float(price) * devices
        for other in workloads
        if (workload := snapshot.workloads.get(other)) is not None
        for name, devices in _held(workload, count)
        if (price := _price_of(name, snapshot)) is not None
    ]
    return sum(prices) if prices else None


def _held(workload: Workload, per_pod: int) -> tuple[tuple[str, int], ...]:
    """Devices that pods on nodes hold, by class: what their claims were given, else what they asked for."""
    return workload.claimed or ((workload.gpu_class, workload.placed * per_pod),)


def _price_of(gpu_class: str, snapshot: Snapshot) -> Fraction | None:
    found = snapshot.gpu_classes.get(gpu_class)
    return None if found is None else price_of(found.spec)


def plan_spending(snapshot: Snapshot) -> dict[Key, float]:
    """Spending of every service that has a price."""
    found = {key: spending_per_hour(key, snapshot) for key in snapshot.services}
    return {key: spending for key, spending in found.items() if spending is not None}


def services_of(key: Key, snapshot: Snapshot) -> tuple[Key, ...]:
    """A service itself, or the services of a tenant."""
    if key.kind == "InferenceService":
        return (key,)
    owned = owners(snapshot.tenants)
    tenants = {other: owned.get(other.namespace) for other in snapshot.services}
    return tuple(other for other, tenant in tenants.items() if tenant is not None and tenant.metadata.name == key.name)


@dataclass(frozen=True, slots=True)
class Figures:
    """What some services served and spent meanwhile."""

    money: float = 0.0
    tokens: float | None = None
    """None: not known."""
    tokens_per_hour: float | None = None
    measured_s: float = 0.0

    @property
    def per_million(self) -> float | None:
        """What a million tokens cost."""
        return None if self.tokens is None else money_per_million(self.money, self.tokens)


@dataclass(frozen=True, slots=True)
class _Mark:
    """Sums at one time."""

    at_s: float
    money: float
    tokens: float


@dataclass(slots=True)
class _Account:
    """One service."""

    marks: deque[_Mark]
    spending: float = 0.0
    counters: dict[str, float | None] = field(default_factory=dict)
    """What each pod said last; None: it was there, and has never said anything."""
    counted: bool = False
    """Whether its tokens have been read at all."""


class CostLedger:
    """Money and tokens of every service over the last hour. Call `note` at even intervals."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._accounts: dict[Key, _Account] = {}

    def note(self, now_s: float, spending: Mapping[Key, float], counters: TokenCounters | None) -> None:
        """Take what services spend now and what their replicas have counted; None: nothing could be read."""
        self._accounts = {key: account for key, account in self._accounts.items() if key in spending}
        for key, per_hour in spending.items():
            account = self._accounts.get(key)
            fresh = account is None or now_s - account.marks[-1].at_s > self._window_s
            if account is None or fresh:
                account = self._accounts[key] = _Account(deque([_Mark(now_s, 0.0, 0.0)]))
            pods = None if counters is None else counters.get(key, {})
            served = 0.0 if pods is None else _take_counters(account, pods, started=fresh)
            last = account.marks[-1]
            if now_s > last.at_s:
                money = last.money + account.spending * (now_s - last.at_s) / 3600
                account.marks.append(_Mark(now_s, money, last.tokens + served))
            account.spending = per_hour
            while len(account.marks) > 2 and now_s - account.marks[1].at_s >= self._window_s:
                account.marks.popleft()

    def figures(self, keys: Iterable[Key]) -> Figures:
        """Sum of some services. Tokens are known when those of any of them are."""
        accounts = [self._accounts[key] for key in keys if key in self._accounts]
        known = [account for account in accounts if account.counted and len(account.marks) > 1]
        if not known:
            return Figures()
        spans = [(account.marks[0], account.marks[-1]) for account in known]
        return Figures(
            money=sum(last.money - first.money for first, last in spans),
            tokens=sum(last.tokens - first.tokens for first, last in spans),
            tokens_per_hour=sum(
                (last.tokens - first.tokens) / (last.at_s - first.at_s) * 3600 for first, last in spans
            ),
            measured_s=max(last.at_s - first.at_s for first, last in spans),
        )

    def spent(self, key: Key) -> float:
        """Money since the service was first seen."""
        account = self._accounts.get(key)
        return account.marks[-1].money if account is not None else 0.0

    def check(self) -> None:
        """Assert the invariants; for tests."""
        for account in self._accounts.values():
            marks = list(account.marks)
            assert marks
            for earlier, later in itertools.pairwise(marks):
                assert earlier.at_s < later.at_s
                assert earlier.money <= later.money
                assert earlier.tokens <= later.tokens


def _take_counters(account: _Account, pods: Mapping[str, float | None], *, started: bool) -> float:
    """Tokens that are new. A pod that was there before us has an unknown past; a newcomer's count begins at zero, and
    so does that of one that restarted.
    """
    new = 0.0
    counters: dict[str, float | None] = {}
    for pod, value in pods.items():
        before = account.counters.get(pod) if pod in account.counters else (None if started else 0.0)
        counters[pod] = before if value is None else value
        if value is not None:
            account.counted = True
            if before is not None:
                new += value - before if value >= before else value
    account.counters = counters
    return new


def describe_cost(spending: float, figures: Figures, currency: str, now: str) -> Cost:
    """The form of a status."""
    known = figures.tokens_per_hour is not None
    return Cost(
        currency=currency,
        per_hour=format_money(spending),
        tokens_per_hour=round(_round(figures.tokens_per_hour)) if figures.tokens_per_hour is not None else None,
        per_million_tokens=format_money(figures.per_million) if figures.per_million is not None else None,
        measured_seconds=round(figures.measured_s) if known else None,
        time=now,
    )


def renew_cost(previous: Cost | None, fresh: Cost | None) -> Cost | None:
    """Decide which figures a status shows: the present ones stay until they are old and wrong.

    What has never cost anything shows nothing, and what begins to cost shows it at once. Tokens that cannot be read now
    leave the figures as they are; those that are known at last are shown at once too.
    """
    if fresh is None or (previous is None and float(fresh.per_hour) == 0):
        return None
    if previous is None or previous.currency != fresh.currency or float(previous.per_hour) == 0 < float(fresh.per_hour):
        return fresh
    if fresh.tokens_per_hour is None:
        kept = ("tokens_per_hour", "per_million_tokens", "measured_seconds")
        fresh = fresh.model_copy(update={name: getattr(previous, name) for name in kept})
    elif previous.tokens_per_hour is None:
        return fresh
    if _age_s(previous.time, fresh.time) < LEAST_AGE_S or not _differs(previous, fresh):
        return previous
    return fresh


def _differs(previous: Cost, fresh: Cost) -> bool:
    pairs = (
        (float(previous.per_hour), float(fresh.per_hour)),
        (previous.tokens_per_hour or 0.0, fresh.tokens_per_hour or 0.0),
        (float(previous.per_million_tokens or 0), float(fresh.per_million_tokens or 0)),
    )
    return any(abs(new - old) > LEAST_CHANGE * max(abs(old), abs(new)) for old, new in pairs)


def _age_s(earlier: str, later: str) -> float:
    """Seconds between two RFC 3339 times; infinite where one is none."""
    try:
        return (datetime.datetime.fromisoformat(later) - datetime.datetime.fromisoformat(earlier)).total_seconds()
    except (ValueError, TypeError):
        return math.inf


def format_money(amount: float) -> str:
    """Three significant digits, never an exponent: `0.0123`, `2.85`, `1230`."""
    rounded = _round(amount)
    if rounded == 0:
        return "0"
    decimals = max(0, _DIGITS - 1 - math.floor(math.log10(abs(rounded))))
    text = f"{rounded:.{min(decimals, 18)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _round(amount: float) -> float:
    return float(f"{amount:.{_DIGITS}g}")
