"""Prometheus metrics of one gateway. Names come from the contract; label values are bounded by it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from windlass_contract import metric_names
from windlass_contract.endpoints import Route
from windlass_gateway.meter import Usage

CONTENT_TYPE: Final = prometheus_client.CONTENT_TYPE_LATEST
CLIENT_CLOSED: Final = 499
"""Value of `code` when the client left first; the number other proxies use in their logs for it."""

_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_NOBODY: Final = ("", "", "")
"""Labels of requests that were turned away before they belonged to anybody."""


class Metrics:
    """Counts requests by route and outcome."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = metric_names.GATEWAY_LABELS
        self._requests = Counter(
            metric_names.GATEWAY_REQUESTS_TOTAL,
            "Requests answered, by HTTP status (499: the client left first).",
            (*labels, "code"),
            registry=self.registry,
        )
        self._duration = Histogram(
            metric_names.GATEWAY_REQUEST_DURATION,
            "Time from request head to the last byte of the answer.",
            labels,
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            metric_names.GATEWAY_IN_FLIGHT, "Requests being answered now.", labels, registry=self.registry
        )
        self._shares = Counter(
            metric_names.GATEWAY_CANARY_REQUESTS_TOTAL,
            "Requests on routes with canaries, by the revision that answered (empty: the stable one) and status.",
            metric_names.GATEWAY_CANARY_LABELS,
            registry=self.registry,
        )
        self._tokens = Counter(
            metric_names.GATEWAY_TOKENS_TOTAL,
            "Tokens of prompts and answers, as replicas report them.",
            (*labels, "kind"),
            registry=self.registry,
        )
        self._limited = Counter(
            metric_names.GATEWAY_LIMITED_TOTAL,
            "Requests answered 429 because a limit of the tenant or the service was used up.",
            (*labels, "limit"),
            registry=self.registry,
        )
        self._held = Gauge(
            metric_names.GATEWAY_HELD,
            "Requests that wait for a sleeping service.",
            labels,
            registry=self.registry,
        )
        self._demand = Gauge(
            metric_names.GATEWAY_DEMAND,
            "Most requests at once within the last minute, of services that may sleep.",
            labels,
            registry=self.registry,
        )
        self._queued = Gauge(
            metric_names.GATEWAY_QUEUED,
            "Requests that wait for a place in a full gateway.",
            labels,
            registry=self.registry,
        )
        self._queue_time = Histogram(
            metric_names.GATEWAY_QUEUE_TIME,
            "Time that requests which had to wait for a place have waited.",
            ("tenant",),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._tenants: set[str] = set()

    def refused(self, status: int) -> None:
        """Count a request that was answered before a route was known."""
        self._requests.labels(*_NOBODY, str(status)).inc()

    @contextmanager
    def watch(self, route: Route) -> Iterator[Outcome]:
        """Count one request on a route; the block sets the outcome's status."""
        labels = self._labels(route)
        outcome, started_s = Outcome(), time.monotonic()
        in_flight = self._in_flight.labels(*labels)
        in_flight.inc()
        try:
            yield outcome
        finally:
            in_flight.dec()
            self._requests.labels(*labels, str(outcome.status)).inc()
            self._duration.labels(*labels).observe(time.monotonic() - started_s)
            if route.canaries:
                self._shares.labels(*labels[:2], outcome.canary, str(outcome.status)).inc()

    @contextmanager
    def queued(self, route: Route) -> Iterator[None]:
        """Count one request that waits for a place while the block runs."""
        labels, started_s = self._labels(route), time.monotonic()
        queued = self._queued.labels(*labels)
        queued.inc()
        try:
            yield
        finally:
            queued.dec()
            self._queue_time.labels(labels[2]).observe(time.monotonic() - started_s)

    def limited(self, route: Route, limit: str) -> None:
        """Count a request that a limit kept out; the field of spec.rates that sets it."""
        self._limited.labels(*self._labels(route), limit).inc()

    def count_tokens(self, route: Route, usage: Usage) -> None:
        """Count what one answer cost."""
        labels = self._labels(route)
        self._tokens.labels(*labels, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(*labels, "completion").inc(usage.completion_tokens)

    def show_sleepers(self, sleepers: Iterable[tuple[Route, int, int]]) -> None:
        """Show what services that may sleep are asked for: route, requests held, and peak.

        Each under its own name, however many tenants there are: a service that is hidden behind others would be put to
        sleep. The routing table bounds them.
        """
        self._held.clear()
        self._demand.clear()
        for route, held, peak in sleepers:
            labels = (route.namespace, route.service, route.tenant)
            self._held.labels(*labels).set(held)
            self._demand.labels(*labels).set(peak)

    def render(self) -> bytes:
        """Return the exposition text."""
        return prometheus_client.generate_latest(self.registry)

    def _labels(self, route: Route) -> tuple[str, str, str]:
        if route.tenant not in self._tenants and len(self._tenants) >= metric_names.MAX_TENANT_LABELS:
            return (metric_names.OTHER_TENANT,) * 3
        self._tenants.add(route.tenant)
        return route.namespace, route.service, route.tenant


class Outcome:
    """How one request ended; CLIENT_CLOSED unless the block got far enough to say otherwise."""

    __slots__ = ("canary", "status")

    def __init__(self) -> None:
        self.status = CLIENT_CLOSED
        self.canary = ""
