"""What the agent tells: metrics of GPUs and services as of its last look, so that what is gone leaves no series."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import prometheus_client
from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from windlass_contract import metric_names
from windlass_operator.power.devices import Gpu
from windlass_operator.power.energy import Account, ServiceKey
from windlass_operator.power.limits import MILLI, GpuPlan

HERTZ_PER_MHZ = 1_000_000


@dataclass(frozen=True, slots=True)
class GpuReport:
    """One GPU after a look."""

    gpu: Gpu
    plan: GpuPlan
    state: str
    """One of metric_names.POWER_STATES."""


class Telemetry(Collector):
    """The agent's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._gpus: tuple[GpuReport, ...] = ()
        self._accounts: Mapping[ServiceKey, Account] = {}
        self._writes = prometheus_client.Counter(
            metric_names.POWER_WRITES_TOTAL, "Writes to the driver.", ("what", "result"), registry=self.registry
        )
        self._sources = prometheus_client.Gauge(
            metric_names.POWER_SOURCE_UP, "Whether the last look worked.", ("source",), registry=self.registry
        )
        self.registry.register(self)

    def count_write(self, what: str, result: str) -> None:
        """Count one write; `result` is ok or a Cause."""
        self._writes.labels(what, result).inc()

    def set_source(self, source: str, up: bool) -> None:
        """Say whether a source of metric_names.POWER_SOURCES answered."""
        self._sources.labels(source).set(up)

    def set_gpus(self, gpus: tuple[GpuReport, ...]) -> None:
        """Replace what is known of all GPUs."""
        self._gpus = gpus

    def set_accounts(self, accounts: Mapping[ServiceKey, Account]) -> None:
        """Replace what is known of all services."""
        self._accounts = accounts

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the last look."""
        yield from self._gpu_metrics()
        yield from self._service_metrics()

    def _gpu_metrics(self) -> Iterator[Metric]:
        limit, wanted, cap, draw = (
            GaugeMetricFamily(name, words, labels=metric_names.GPU_LABELS)
            for name, words in (
                (metric_names.POWER_LIMIT, "Power limit in force."),
                (metric_names.POWER_WANTED_LIMIT, "Power limit that profiles ask for; absent where none does."),
                (metric_names.POWER_CLOCK_CAP, "Cap of the graphics clock that profiles ask for."),
                (metric_names.POWER_DRAW, "Power drawn now."),
            )
        )
        energy = CounterMetricFamily(
            metric_names.POWER_ENERGY_TOTAL, "Energy since the driver was loaded.", labels=metric_names.GPU_LABELS
        )
        states = GaugeMetricFamily(
            metric_names.POWER_GPU_STATE, "Whose limits are in force.", labels=(*metric_names.GPU_LABELS, "state")
        )
        for report in self._gpus:
            gpu, target = report.gpu, report.plan.target
            _add(limit, gpu.uuid, gpu.power_limit_mw, 1 / MILLI)
            _add(wanted, gpu.uuid, target.power_mw, 1 / MILLI)
            _add(cap, gpu.uuid, target.clock_mhz, HERTZ_PER_MHZ)
            _add(draw, gpu.uuid, gpu.draw_mw, 1 / MILLI)
            _add(energy, gpu.uuid, gpu.energy_mj, 1 / MILLI)
            for state in metric_names.POWER_STATES:
                states.add_metric((gpu.uuid, state), float(state == report.state))
        yield from (limit, wanted, cap, draw, energy, states)

    def _service_metrics(self) -> Iterator[Metric]:
        labels = metric_names.SERVICE_LABELS
        energy = CounterMetricFamily(
            metric_names.POWER_SERVICE_ENERGY_TOTAL, "Energy of a service's GPUs on this node.", labels=labels
        )
        tokens = CounterMetricFamily(
            metric_names.POWER_SERVICE_TOKENS_TOTAL, "Tokens it generated on this node.", labels=labels
        )
        price = GaugeMetricFamily(
            metric_names.POWER_JOULES_PER_TOKEN, "Energy per generated token over the last minutes.", labels=labels
        )
        for key, account in self._accounts.items():
            energy.add_metric(key, account.joules)
            tokens.add_metric(key, account.tokens)
            if (joules := account.joules_per_token()) is not None:
                price.add_metric(key, joules)
        yield from (energy, tokens, price)

    def text(self) -> bytes:
        """Return the exposition format."""
        return prometheus_client.generate_latest(self.registry)


def _add(family: GaugeMetricFamily | CounterMetricFamily, uuid: str, value: int | None, factor: float) -> None:
    if value is not None:
        family.add_metric((uuid,), value * factor)
