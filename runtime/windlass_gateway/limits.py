"""Decide whether a tenant may ask for more now: requests and tokens per minute, requests at once. Pure: the time is an
argument.

Each rate is a bucket that fills at the rate and holds at most its burst. Requests pay one each. Tokens are paid for
twice: reserved when a request comes, from an estimate, and corrected to what the answer really cost. An answer that
cost more than was reserved leaves a debt, which is paid off before anything else is let in. So over any time t

    what was let in  <=  burst + rate x t + what answers cost beyond their reservations,

and nobody who waits as long as a refusal says, and is alone, is refused again.

A request is counted by several accounts, its tenant's and perhaps its service's: all of them let it in, or none does.

Several gateways do not talk to each other: each grants its equal part of every limit (`divide_rates`).
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterable, Mapping
from typing import Final

from windlass_contract.endpoints import TenantRates

_BUSY_RETRY_S: Final = 1.0
"""Nobody knows when a running request will end; come back after this time."""
_NO_LIMITS: Final = TenantRates("")
_ROUNDING: Final = 1e-9
"""What sums of floating-point numbers may be off by, in parts of the burst."""


class Limit(enum.StrEnum):
    """Which limit; named as the field of the Tenant that sets it."""

    REQUESTS = "requestsPerMinute"
    TOKENS = "tokensPerMinute"
    CONCURRENCY = "concurrentRequests"


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What one rate looks like from outside."""

    allowed: int
    """Per minute, over all gateways."""
    remaining: int
    """What this gateway would still let in at once."""
    full_in_s: float
    """Seconds until it is as if nothing had been used."""


Readings = Mapping[Limit, Reading]


@dataclasses.dataclass(frozen=True, slots=True)
class OverLimit:
    """Why a tenant has to wait."""

    account: str
    """Whose limit: a tenant's name, or `namespace/service`."""
    limit: Limit
    allowed: int
    """The figure of the Tenant, over all gateways."""
    retry_after_s: float
    """Infinite: what was asked for is more than the limit ever holds."""
    asked: int = 1
    readings: Readings = dataclasses.field(default_factory=dict, compare=False)
    """All rates of the tenant at that time."""


class Bucket:
    """Fills at a rate up to its burst. A level below zero is a debt."""

    __slots__ = ("_at_s", "burst", "level", "rate_per_s")

    def __init__(self, rate_per_s: float, burst: float, now_s: float) -> None:
        self.rate_per_s = rate_per_s
        self.burst = burst
        self.level = burst
        self._at_s = now_s

    def fill(self, now_s: float) -> None:
        """Let the time pass; a clock that runs backwards stands still."""
        if now_s > self._at_s:
            self.level = min(self.burst, self.level + (now_s - self._at_s) * self.rate_per_s)
            self._at_s = now_s

    def wait_s(self, amount: float) -> float:
        """Seconds until an amount fits; 0: now; infinite: never."""
        slack = self.burst * _ROUNDING
        if amount > self.burst + slack:
            return math.inf
        missing = amount - self.level
        return missing / self.rate_per_s if missing > slack else 0.0

    def take(self, amount: float) -> None:
        """Pay, into debt if need be."""
        self.level -= amount

    def give_back(self, amount: float) -> None:
        """Undo a payment. More than the burst cannot be kept."""
        self.level = min(self.burst, self.level + amount)

    def resize(self, rate_per_s: float, burst: float) -> None:
        """Go on under new figures: debts stay, and a higher limit is not full at once."""
        self.rate_per_s = rate_per_s
        self.burst = burst
        self.level = min(self.level, burst)

    @property
    def full_in_s(self) -> float:
        """Seconds until it is full."""
        return (self.burst - self.level) / self.rate_per_s


@dataclasses.dataclass(slots=True)
class _Account:
    """What one tenant or service uses through this gateway."""

    name: str
    rates: TenantRates
    """As the Tenant has them, for messages."""
    requests: Bucket | None = None
    tokens: Bucket | None = None
    most_running: int | None = None
    running: int = 0

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        return tuple(bucket for bucket in (self.requests, self.tokens) if bucket is not None)

    def fill(self, now_s: float) -> None:
        for bucket in self.buckets:
            bucket.fill(now_s)

    def read(self) -> Readings:
        """The rates as they were when last filled."""
        found: dict[Limit, Reading] = {}
        if self.requests is not None and self.rates.requests_per_minute is not None:
            found[Limit.REQUESTS] = _read(self.requests, self.rates.requests_per_minute)
        if self.tokens is not None and self.rates.tokens_per_minute is not None:
            found[Limit.TOKENS] = _read(self.tokens, self.rates.tokens_per_minute)
        return found

    def refuse(self, limit: Limit, wait_s: float, asked: int = 1) -> OverLimit:
        """Say that this limit keeps a request out."""
        allowed = {
            Limit.REQUESTS: self.rates.requests_per_minute,
            Limit.TOKENS: self.rates.tokens_per_minute,
            Limit.CONCURRENCY: self.rates.concurrent_requests,
        }[limit]
        return OverLimit(self.name, limit, allowed or 0, wait_s, asked, self.read())

    def is_idle(self) -> bool:
        """Whether forgetting it changes nothing."""
        return not self.running and all(bucket.level >= bucket.burst for bucket in self.buckets)


class Ticket:
    """One request that was let in. Call `leave` or `undo`, once, whatever happens."""

    __slots__ = ("_accounts", "_left", "_reserved")

    def __init__(self, accounts: tuple[_Account, ...]) -> None:
        self._accounts = accounts
        self._reserved: list[tuple[Bucket, float]] = []
        self._left = False

    @property
    def counts_tokens(self) -> bool:
        """Whether there is a limit of tokens."""
        return any(account.tokens is not None for account in self._accounts)

    def reserve(self, least: int, likely: int, now_s: float) -> OverLimit | None:
        """Set tokens aside, once: `likely` of them, or as many as a bucket ever holds. None: it is done.

        A request whose `least` (its prompt) is more than that is refused for good.
        """
        assert not self._reserved, "tokens are reserved once"
        wanted: list[tuple[Bucket, float]] = []
        for account in self._accounts:
            bucket = account.tokens
            if bucket is None:
                continue
            bucket.fill(now_s)
            amount = float(least) if least > bucket.burst else min(float(likely), bucket.burst)
            wait_s = bucket.wait_s(amount)
            if wait_s > 0:
                return account.refuse(Limit.TOKENS, wait_s, math.ceil(amount))
            wanted.append((bucket, amount))
        for bucket, amount in wanted:
            bucket.take(amount)
        self._reserved = wanted
        return None

    def leave(self, used_tokens: int, now_s: float) -> None:
        """The request is over and cost this many tokens; the difference is given back, or owed."""
        assert not self._left, "a ticket leaves once"
        self._left = True
        for account in self._accounts:
            account.running -= 1
        for bucket, reserved in self._reserved:
            bucket.fill(now_s)
            if used_tokens > reserved:
                bucket.take(used_tokens - reserved)
            else:
                bucket.give_back(reserved - used_tokens)

    def undo(self, now_s: float) -> None:
        """The request never reached a replica: it counts for nothing."""
        self.leave(0, now_s)
        for account in self._accounts:
            if account.requests is not None:
                account.requests.fill(now_s)
                account.requests.give_back(1.0)

    def readings(self, now_s: float) -> Readings:
        """The rates as they are now; of two of a kind the one with less left."""
        found: dict[Limit, Reading] = {}
        for account in self._accounts:
            account.fill(now_s)
            for limit, reading in account.read().items():
                known = found.get(limit)
                if known is None or reading.remaining < known.remaining:
                    found[limit] = reading
        return found


class Limiter:
    """The accounts of all tenants and services at one gateway of several. Used from one event loop only."""

    def __init__(self, gateways: int = 1) -> None:
        self._gateways = gateways
        self._rates: Mapping[str, TenantRates] = {}
        self._accounts: dict[str, _Account] = {}

    def replace_rates(self, rates: Mapping[str, TenantRates], now_s: float) -> None:
        """Go on under a new table, by account. Accounts without limits are forgotten once nothing of theirs runs."""
        self._rates = rates
        for name, account in list(self._accounts.items()):
            account.fill(now_s)
            self._fit(account, self._rates.get(name, _NO_LIMITS), now_s)
            if name not in self._rates and account.is_idle():
                del self._accounts[name]

    def enter(self, names: Iterable[str], now_s: float) -> Ticket | OverLimit:
        """Let one request in that counts for these accounts, or say what keeps it out; a refusal costs nothing."""
        accounts = tuple(self._account(name, now_s) for name in names)
        for account in accounts:
            account.fill(now_s)
            if account.most_running is not None and account.running >= account.most_running:
                return account.refuse(Limit.CONCURRENCY, _BUSY_RETRY_S)
            wait_s = account.requests.wait_s(1.0) if account.requests is not None else 0.0
            if wait_s > 0:
                return account.refuse(Limit.REQUESTS, wait_s)
        for account in accounts:
            account.running += 1
            if account.requests is not None:
                account.requests.take(1.0)
        return Ticket(accounts)

    def check(self) -> None:
        """Assert the invariants; for tests."""
        for account in self._accounts.values():
            assert account.running >= 0
            assert all(bucket.level <= bucket.burst for bucket in account.buckets)

    def _account(self, name: str, now_s: float) -> _Account:
        rates = self._rates.get(name)
        if rates is None:
            # Nobody limits it, so nothing has to be remembered beyond this request.
            return self._accounts.get(name) or _Account(name, _NO_LIMITS)
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = _Account(name, rates)
            self._fit(account, rates, now_s)
        return account

    def _fit(self, account: _Account, rates: TenantRates, now_s: float) -> None:
        account.rates = rates
        part = divide_rates(rates, self._gateways)
        account.requests = _fit_bucket(account.requests, part.requests_per_minute, part.burst_s, now_s)
        account.tokens = _fit_bucket(account.tokens, part.tokens_per_minute, part.burst_s, now_s)
        account.most_running = part.concurrent_requests


@dataclasses.dataclass(frozen=True, slots=True)
class RatesPart:
    """What one gateway of several grants by itself."""

    requests_per_minute: float | None
    tokens_per_minute: float | None
    concurrent_requests: int | None
    burst_s: float


def divide_rates(rates: TenantRates, gateways: int) -> RatesPart:
    """One gateway's part of a tenant's limits.

    Rates divide exactly. Requests at once are whole, so the parts are rounded down, to one at least: with fewer of
    them than gateways, as many may run as there are gateways.
    """

    def part(number: int | None) -> float | None:
        return None if number is None else number / gateways

    running = rates.concurrent_requests
    return RatesPart(
        part(rates.requests_per_minute),
        part(rates.tokens_per_minute),
        None if running is None else max(1, running // gateways),
        rates.burst_s,
    )


def _fit_bucket(bucket: Bucket | None, per_minute: float | None, burst_s: float, now_s: float) -> Bucket | None:
    """A bucket of this rate: the old one under new figures, or a full one; None without a limit."""
    if per_minute is None:
        return None
    rate_per_s = per_minute / 60.0
    burst = max(1.0, rate_per_s * burst_s)
    if bucket is None:
        return Bucket(rate_per_s, burst, now_s)
    bucket.resize(rate_per_s, burst)
    return bucket


def _read(bucket: Bucket, allowed: int) -> Reading:
    return Reading(allowed, max(0, math.floor(bucket.level + bucket.burst * _ROUNDING)), bucket.full_in_s)
