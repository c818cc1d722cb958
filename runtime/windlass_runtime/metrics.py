"""What one replica tells Prometheus. Names, units and label sets are `windlass_contract.metric_names`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from windlass_contract import metric_names as names
from windlass_runtime.sparsity.figures import SparsityFigures

_LATENCY_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_PLAN_BUCKETS: Final = (0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05)
_STEP_TOKEN_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class RuntimeMetrics:
    """Metrics of one replica in a registry of its own. Safe to call from any thread."""

    def __init__(self, model: str) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._model = model
        self._tenants: set[str] = set()
        self._running = self._gauge(names.REQUESTS_RUNNING, "Sequences that hold cache pages.")
        self._waiting = self._gauge(names.REQUESTS_WAITING, "Sequences that wait for a place or for pages.")
        self._pages_total = self._gauge(names.KV_PAGES_TOTAL, "Pages of the key/value pool.")
        self._pages_free = self._gauge(names.KV_PAGES_FREE, "Free pages of the key/value pool.")
        self._use = self._gauge(names.KV_USE_RATIO, "Share of the pages in use, 0 to 1.")
        self._kept = self._gauge(names.KV_PAGES_KEPT, "Free pages with a content that may be found again.")
        self._tenant_pages = prometheus.Gauge(
            names.KV_TENANT_PAGES, "Pages held or kept.", names.TENANT_LABELS, registry=self.registry
        )
        self._cached_tokens = self._counter(names.CACHED_TOKENS_TOTAL, "Prompt tokens found in the cache.")
        self._evictions = self._counter(names.KV_EVICTIONS_TOTAL, "Kept pages given up, by who had filled them.")
        self._evictions_seen: dict[str, int] = {}
        self._load = self._gauge(names.MODEL_LOAD, "Seconds from start until the model could answer.")
        self._requests = self._counter(names.REQUESTS_TOTAL, "Requests by how they ended.", "outcome")
        self._prompt_tokens = self._counter(names.PROMPT_TOKENS_TOTAL, "Prompt tokens of accepted requests.")
        self._generated = self._counter(names.GENERATED_TOKENS_TOTAL, "Tokens generated.")
        self._first_token = self._histogram(names.TIME_TO_FIRST_TOKEN, "Arrival to first token.", _LATENCY_BUCKETS)
        self._per_token = self._histogram(names.TIME_PER_OUTPUT_TOKEN, "Time between tokens.", _TOKEN_BUCKETS)
        self._duration = self._histogram(names.REQUEST_DURATION, "Arrival to last token.", _LATENCY_BUCKETS)
        self._queue_time = self._histogram(names.QUEUE_TIME, "Arrival to first step.", _LATENCY_BUCKETS)
        self._preemptions = self._counter(names.PREEMPTIONS_TOTAL, "Sequences that gave up their place or pages.")
        self._phase = prometheus.Histogram(
            names.REQUEST_PHASE,
            "Time of requests in each phase.",
            (*names.TENANT_LABELS, "phase"),
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self._plan = prometheus.Histogram(
            names.PLAN_DURATION, "Planning a step.", names.MODEL_LABELS, buckets=_PLAN_BUCKETS, registry=self.registry
        ).labels(model)
        self._step = prometheus.Histogram(
            names.STEP_DURATION, "Engine step.", names.MODEL_LABELS, buckets=_TOKEN_BUCKETS, registry=self.registry
        ).labels(model)
        self._step_tokens = prometheus.Histogram(
            names.STEP_TOKENS,
            "Tokens per step.",
            names.MODEL_LABELS,
            buckets=_STEP_TOKEN_BUCKETS,
            registry=self.registry,
        ).labels(model)

    def set_load_seconds(self, seconds: float) -> None:
        self._load.set(seconds)

    def set_occupancy(self, *, running: int, waiting: int, pages_free: int, pages_total: int) -> None:
        self._running.set(running)
        self._waiting.set(waiting)
        self._pages_free.set(pages_free)
        self._pages_total.set(pages_total)
        self._use.set(1 - pages_free / pages_total if pages_total else 0)

    def set_cache(self, *, kept: int, pages: Mapping[str, int], evictions: Mapping[str, int]) -> None:
        """pages and evictions: by tenant; evictions since the pool was made, which a swap of backends does anew."""
        self._kept.set(kept)
        totals: dict[tuple[str, str], int] = {}
        for tenant, count in pages.items():
            labels = self._labels(tenant)
            totals[labels] = totals.get(labels, 0) + count
        for labels, count in totals.items():
            self._tenant_pages.labels(*labels).set(count)
        for tenant, count in evictions.items():
            seen = self._evictions_seen.get(tenant, 0)
            new = count - seen if count >= seen else count
            if count != seen:
                self._evictions_seen[tenant] = count
                self._evictions.labels(*self._labels(tenant)).inc(new)

    def count_cached(self, tenant: str, tokens: int) -> None:
        self._cached_tokens.labels(*self._labels(tenant)).inc(tokens)

    def observe_step(self, seconds: float, tokens: int) -> None:
        self._step.observe(seconds)
        self._step_tokens.observe(tokens)

    def observe_plan(self, seconds: float) -> None:
        self._plan.observe(seconds)

    def observe_phase(self, tenant: str, phase: str, seconds: float) -> None:
        assert phase in names.PHASES, phase
        self._phase.labels(*self._labels(tenant), phase).observe(seconds)

    def count_preemption(self, tenant: str) -> None:
        self._preemptions.labels(*self._labels(tenant)).inc()

    def count_accepted(self, tenant: str, prompt_tokens: int) -> None:
        self._prompt_tokens.labels(*self._labels(tenant)).inc(prompt_tokens)

    def observe_queue_time(self, tenant: str, seconds: float) -> None:
        self._queue_time.labels(*self._labels(tenant)).observe(seconds)

    def observe_first_token(self, tenant: str, seconds: float) -> None:
        self._first_token.labels(*self._labels(tenant)).observe(seconds)

    def observe_next_token(self, tenant: str, seconds: float) -> None:
        self._per_token.labels(*self._labels(tenant)).observe(seconds)

    def count_generated(self, tenant: str, tokens: int) -> None:
        self._generated.labels(*self._labels(tenant)).inc(tokens)

    def count_outcome(self, tenant: str, outcome: str, seconds: float | None = None) -> None:
        """`seconds` from arrival to end, where the request ran at all."""
        assert outcome in names.OUTCOMES, outcome
        self._requests.labels(*self._labels(tenant), outcome).inc()
        if seconds is not None:
            self._duration.labels(*self._labels(tenant)).observe(seconds)

    def watch_sparsity(self, figures: Callable[[], SparsityFigures]) -> None:
        """Export what sparse activation does, read whenever somebody asks."""
        self.registry.register(_SparsityCollector(self._model, figures))

    def render(self) -> bytes:
        """The text exposition format."""
        return prometheus.generate_latest(self.registry)

    def _labels(self, tenant: str) -> tuple[str, str]:
        if tenant not in self._tenants:
            if len(self._tenants) >= names.MAX_TENANT_LABELS:
                return names.OTHER_TENANT, self._model
            self._tenants.add(tenant)
        return tenant, self._model

    def _gauge(self, name: str, text: str) -> prometheus.Gauge:
        return prometheus.Gauge(name, text, names.MODEL_LABELS, registry=self.registry).labels(self._model)

    def _counter(self, name: str, text: str, *more: str) -> prometheus.Counter:
        return prometheus.Counter(name, text, (*names.TENANT_LABELS, *more), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> prometheus.Histogram:
        return prometheus.Histogram(name, text, names.TENANT_LABELS, buckets=buckets, registry=self.registry)


class _SparsityCollector(Collector):
    """The figures of sparse activation as metrics; their sums and counts give averages over any time."""

    def __init__(self, model: str, figures: Callable[[], SparsityFigures]) -> None:
        self._model = model
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        found = self._figures()
        for name, text, total in (
            (names.SPARSE_DENSITY, "Share of the blocks that a generated token uses, sampled.", found.density_sum),
            (names.SPARSE_RECALL, "Share of a layer's output energy in the used blocks, sampled.", found.recall_sum),
        ):
            summary = SummaryMetricFamily(name, text, labels=names.MODEL_LABELS)
            summary.add_metric([self._model], found.looks, total)
            yield summary
        blocks = CounterMetricFamily(
            names.SPARSE_BLOCKS_TOTAL,
            "Blocks of sparse layers in steps that only generate.",
            labels=(*names.MODEL_LABELS, "outcome"),
        )
        for outcome, count in zip(names.SPARSE_OUTCOMES, (found.computed, found.skipped), strict=True):
            blocks.add_metric([self._model, outcome], count)
        yield blocks
