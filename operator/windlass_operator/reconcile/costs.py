"""Keep what services cost: read tokens now and then, wake the objects whose status is out of date, export metrics."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from windlass_contract import metric_names
from windlass_operator import errors
from windlass_operator.api.v1alpha1.cost import Cost
from windlass_operator.domain import cost
from windlass_operator.domain.snapshot import Key, Snapshot
from windlass_operator.domain.tenancy import owners
from windlass_operator.reconcile.rounds import look_for_ever

log = logging.getLogger(__name__)

ReadTokens = Callable[[], Awaitable[cost.TokenCounters]]


class CostBook:
    """What everything costs now, and what statuses say about it."""

    def __init__(self, currency: str, wall_clock: Callable[[], datetime.datetime]) -> None:
        self.ledger = cost.CostLedger()
        self._currency = currency
        self._wall_clock = wall_clock

    def renew(self, key: Key, snapshot: Snapshot) -> Cost | None:
        """Return what the status of a service or tenant should say: mostly what it says already."""
        owner = snapshot.services.get(key) if key.kind == "InferenceService" else snapshot.tenants.get(key.name)
        previous = owner.status.cost if owner is not None else None
        keys = cost.services_of(key, snapshot)
        known = [spending for other in keys if (spending := cost.spending_per_hour(other, snapshot)) is not None]
        if not known:
            return None
        now = self._wall_clock().astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        fresh = cost.describe_cost(sum(known), self.ledger.figures(keys), self._currency, now)
        return cost.renew_cost(previous, fresh)

    def outdated(self, snapshot: Snapshot) -> Iterator[Key]:
        """Objects whose status says something else than it should."""
        for key, service in snapshot.services.items():
            if self.renew(key, snapshot) != service.status.cost:
                yield key
        for name, tenant in snapshot.tenants.items():
            if self.renew(key := Key("Tenant", "", name), snapshot) != tenant.status.cost:
                yield key


class CostKeeper:
    """Run `run` as one task."""

    def __init__(
        self,
        book: CostBook,
        picture: Callable[[], Snapshot],
        *,
        may_work: Callable[[], Awaitable[None]],
        wake: Callable[[Key], None],
        interval_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._book = book
        self.read_tokens: ReadTokens | None = None
        """None: tokens are not read, and only prices per hour are known."""
        self._picture = picture
        self._may_work = may_work
        self._wake = wake
        self._interval_s = interval_s
        self._clock = clock
        self._problem = ""

    async def run(self) -> None:
        """Note figures for ever, while leading."""
        await look_for_ever("costs", self.note_once, may_work=self._may_work, pause_s=self._interval_s)

    async def note_once(self) -> None:
        """Take the figures of now. Nothing is read while no GPUClass in use has a price."""
        spending = cost.plan_spending(self._picture())
        counters = await self._read() if spending else None
        self._book.ledger.note(self._clock(), spending, counters)
        for key in self._book.outdated(self._picture()):
            self._wake(key)

    async def _read(self) -> cost.TokenCounters | None:
        if self.read_tokens is None:
            return None
        try:
            counters = await self.read_tokens()
        except errors.WindlassError as exc:
            if not self._problem:
                log.warning("Tokens not read; costs per token stay as they are. error=%s", exc)
            self._problem = str(exc)
            return None
        self._problem = ""
        return counters


_OTHER: Final = (metric_names.OTHER_TENANT,) * 3


class CostMetrics(Collector):
    """What services cost, for Prometheus, computed when it asks."""

    def __init__(self, book: CostBook, picture: Callable[[], Snapshot], currency: str) -> None:
        self._book = book
        self._picture = picture
        self._currency = currency

    def collect(self) -> Iterable[Metric]:
        """Yield the families; empty without prices."""
        labels = metric_names.COST_LABELS
        hour = GaugeMetricFamily(metric_names.COST_PER_HOUR, "Price of the devices held, for an hour.", labels=labels)
        million = GaugeMetricFamily(
            metric_names.COST_PER_MILLION_TOKENS, "What a million tokens cost, over the last hour.", labels=labels
        )
        total = CounterMetricFamily(
            metric_names.COST_TOTAL, "Money spent since this process leads or the service has a price.", labels=labels
        )
        for names, (spending, keys) in self._groups().items():
            values = (*names, self._currency)
            hour.add_metric(values, spending)
            total.add_metric(values, sum(self._book.ledger.spent(key) for key in keys))
            per_million = self._book.ledger.figures(keys).per_million
            if per_million is not None:
                million.add_metric(values, per_million)
        return [hour, million, total]

    def _groups(self) -> dict[tuple[str, str, str], tuple[float, list[Key]]]:
        """Services by their labels; those of tenants beyond the first hundred share one."""
        snapshot = self._picture()
        owned = owners(snapshot.tenants)
        names = {namespace: tenant.metadata.name for namespace, tenant in owned.items()}
        spending = cost.plan_spending(snapshot)
        named = set(sorted({names.get(key.namespace, "") for key in spending})[: metric_names.MAX_TENANT_LABELS])
        groups: dict[tuple[str, str, str], tuple[float, list[Key]]] = {}
        for key, per_hour in spending.items():
            tenant = names.get(key.namespace, "")
            group = (key.namespace, key.name, tenant) if tenant in named else _OTHER
            known, keys = groups.get(group, (0.0, []))
            groups[group] = (known + per_hour, [*keys, key])
        return groups
