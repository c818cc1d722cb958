"""Metrics of GPU classes repeat the figures of their status."""

from __future__ import annotations

import dataclasses

import prometheus_client
from prometheus_client.core import CollectorRegistry

from support.builders import build_gpu_class, build_snapshot
from windlass_operator.api.v1alpha1.gpu_class import GPUClassStatus
from windlass_operator.reconcile.fleet_metrics import GpuClassCollector


def scrape(*statuses: tuple[str, GPUClassStatus]) -> str:
    classes = {name: build_gpu_class(name).model_copy(update={"status": status}) for name, status in statuses}
    registry = CollectorRegistry()
    registry.register(GpuClassCollector(lambda: dataclasses.replace(build_snapshot(), gpu_classes=classes)))
    return prometheus_client.generate_latest(registry).decode()


def test_every_class_has_its_figures():
    text = scrape(
        ("h200", GPUClassStatus(nodes=2, gpus=8, allocated=3, largest_free_block=3, fragmented=4)),
        ("l4", GPUClassStatus(gpus=1)),
    )

    assert 'windlass_gpu_class_devices{gpu_class="h200"} 8.0' in text
    assert 'windlass_gpu_class_devices_allocated{gpu_class="h200"} 3.0' in text
    assert 'windlass_gpu_class_largest_free_block{gpu_class="h200"} 3.0' in text
    assert 'windlass_gpu_class_devices_fragmented{gpu_class="h200"} 4.0' in text
    assert 'windlass_gpu_class_devices{gpu_class="l4"} 1.0' in text


def test_a_fleet_without_classes_has_no_samples():
    assert "gpu_class=" not in scrape()
