"""Let the requests of a tenant in by its limits, and charge each for what it cost. Connects `limits` to a request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from windlass_contract.endpoints import Route
from windlass_gateway import answers, demand, rate_headers
from windlass_gateway.limits import Limiter, OverLimit, Ticket
from windlass_gateway.meter import TokenMeter, Usage
from windlass_gateway.metrics import Metrics
from windlass_gateway.tenants import Directory


class Visit:
    """One request that was let in."""

    def __init__(self, ticket: Ticket, route: Route, metrics: Metrics) -> None:
        self.meter = TokenMeter()
        self._ticket = ticket
        self._route = route
        self._metrics = metrics
        self._demand = demand.NOTHING
        self._status: int | None = None

    def reserve(self, method: str, body: bytes) -> None:
        """Set tokens aside for what the body asks for. Raises Refused."""
        if method != "POST" or not self._ticket.counts_tokens:
            return
        self._demand = demand.estimate_demand(body)
        likely = self._demand.prompt_tokens + self._demand.answer_tokens
        over = self._ticket.reserve(self._demand.prompt_tokens, likely, _now_s())
        if over is not None:
            raise _refuse(self._route, over, self._metrics)

    def answered(self, status: int) -> None:
        """A replica has begun to answer."""
        self._status = status

    def headers(self) -> Mapping[str, str]:
        """What the client is told about its tenant's limits."""
        return rate_headers.render_readings(self._ticket.readings(_now_s()))

    def close(self) -> None:
        """The answer is over, whole or not: charge it."""
        usage = self.meter.reported() or self._guess()
        self._ticket.leave(usage.total, _now_s())
        self._metrics.count_tokens(self._route, usage)

    def abandon(self) -> None:
        """The client left before anything came back. What the replica has done for it nobody knows, so the estimate
        stands: leaving early must not be a way around the limit.
        """
        self._ticket.leave(self._demand.prompt_tokens + self._demand.answer_tokens, _now_s())

    def undo(self) -> None:
        """No replica answered: it counts for nothing."""
        self._ticket.undo(_now_s())

    @property
    def begun(self) -> bool:
        """Whether a replica has answered."""
        return self._status is not None

    def _guess(self) -> Usage:
        """What an answer without a usage cost: nothing if it was a refusal, else what could be seen of it."""
        if self._status is None or self._status >= 400:
            return Usage(0, 0)
        return Usage(self._demand.prompt_tokens, self.meter.events)


class Turnstile:
    """Where requests are let in. One per gateway."""

    def __init__(self, metrics: Metrics, gateways: int) -> None:
        self._metrics = metrics
        self._limiter = Limiter(gateways)

    def adopt(self, directory: Directory) -> None:
        """Go on under a new table."""
        rates = {item.tenant: item for item in directory.rates}
        rates |= {account_of(route): route.rates for route in directory.routes.values() if route.rates is not None}
        self._limiter.replace_rates(rates, _now_s())

    @contextmanager
    def enter(self, route: Route) -> Iterator[Visit]:
        """Let one request in while the block runs. Raises Refused."""
        # A tenant's name holds no slash, so it never is that of a service.
        ticket = self._limiter.enter((route.tenant, account_of(route)), _now_s())
        if isinstance(ticket, OverLimit):
            raise _refuse(route, ticket, self._metrics)
        visit = Visit(ticket, route, self._metrics)
        try:
            yield visit
        except answers.Refused:
            visit.undo()
            raise
        except BaseException:
            if visit.begun:
                visit.close()
            else:
                visit.abandon()
            raise
        if visit.begun:
            visit.close()
        else:
            visit.undo()


def account_of(route: Route) -> str:
    """Name of a service's own account."""
    return f"{route.namespace}/{route.service}"


def _refuse(route: Route, over: OverLimit, metrics: Metrics) -> answers.Refused:
    of_service = over.account == account_of(route)
    metrics.limited(route, f"services.{over.limit}" if of_service else over.limit)
    whose = f"Service {over.account}" if of_service else f"Tenant {over.account}"
    return answers.Refused(answers.over_limit(whose, over))


def _now_s() -> float:
    return asyncio.get_running_loop().time()
