"""How canaries stand, for Prometheus, computed when it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from windlass_contract import metric_names
from windlass_operator.api.v1alpha1.canary import CanaryPhase
from windlass_operator.domain.snapshot import Snapshot


class CanaryMetrics(Collector):
    """One series per canary; none while there is no canary."""

    def __init__(self, picture: Callable[[], Snapshot]) -> None:
        self._picture = picture

    def collect(self) -> Iterable[Metric]:
        """Yield the families."""
        labels = metric_names.CANARY_LABELS
        traffic = GaugeMetricFamily(metric_names.CANARY_TRAFFIC, "Share of the traffic now, in percent.", labels=labels)
        aborted = GaugeMetricFamily(metric_names.CANARY_ABORTED, "1 once an analysis has ended it.", labels=labels)
        for key, service in self._picture().services.items():
            for canary in service.status.canaries:
                names = (key.namespace, key.name, canary.name)
                traffic.add_metric(names, canary.traffic_percent)
                aborted.add_metric(names, float(canary.phase is CanaryPhase.ABORTED))
        return [traffic, aborted]
