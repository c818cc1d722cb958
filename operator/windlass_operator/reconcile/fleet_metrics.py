"""What each GPUClass has and each Tenant uses, as metrics: the figures of their status, so that both tell the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from windlass_contract import metric_names
from windlass_operator.api.v1alpha1.gpu_class import GPUClassStatus
from windlass_operator.domain.snapshot import Snapshot

_FIGURES: Final[tuple[tuple[str, str, Callable[[GPUClassStatus], int]], ...]] = (
    (metric_names.GPU_CLASS_DEVICES, "Devices on ready nodes.", lambda status: status.gpus),
    (metric_names.GPU_CLASS_ALLOCATED, "Devices that replicas hold or wait for.", lambda status: status.allocated),
    (metric_names.GPU_CLASS_LARGEST_BLOCK, "Most free devices on one node.", lambda status: status.largest_free_block),
    (metric_names.GPU_CLASS_FRAGMENTED, "Devices lost to fragmentation.", lambda status: status.fragmented),
)


class GpuClassCollector(Collector):
    """Reads the picture at every scrape."""

    def __init__(self, picture: Callable[[], Snapshot]) -> None:
        self._picture = picture

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield one family per figure, one sample per class."""
        classes = sorted(self._picture().gpu_classes.items())
        for name, words, read in _FIGURES:
            family = GaugeMetricFamily(name, words, labels=("gpu_class",))
            for gpu_class, manifest in classes:
                family.add_metric((gpu_class,), read(manifest.status))
            yield family


class TenantCollector(Collector):
    """Reads the picture at every scrape. Tenants beyond the first hundred, by name, share one label."""

    def __init__(self, picture: Callable[[], Snapshot]) -> None:
        self._picture = picture

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield one family, one sample per tenant, class and amount."""
        sums: dict[tuple[str, str, str], int] = {}
        for position, (tenant, manifest) in enumerate(sorted(self._picture().tenants.items())):
            name = tenant if position < metric_names.MAX_TENANT_LABELS else metric_names.OTHER_TENANT
            for use in manifest.status.gpus:
                for amount in metric_names.TENANT_AMOUNTS:
                    key = (name, use.name, amount)
                    sums[key] = sums.get(key, 0) + getattr(use, amount)
        family = GaugeMetricFamily(
            metric_names.TENANT_GPUS, "GPUs of a tenant.", labels=("tenant", "gpu_class", "amount")
        )
        for labels, value in sums.items():
            family.add_metric(labels, value)
        yield family
