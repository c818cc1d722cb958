"""Metrics of GPU classes repeat the figures of their status."""

from __future__ import annotations

import dataclasses

import prometheus_client
from prometheus_client.core import CollectorRegistry

from support.builders import build_gpu_class, build_snapshot, build_tenant
from windlass_contract import metric_names
from windlass_operator.api.v1alpha1.gpu_class import GPUClassStatus
from windlass_operator.api.v1alpha1.tenant import GpuUse, TenantStatus
from windlass_operator.reconcile.fleet_metrics import GpuClassCollector, TenantCollector


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


def scrape_tenants(count: int) -> str:
    status = TenantStatus(gpus=[GpuUse(name="h200", nominal=4, used=3, lent=1)])
    tenants = {f"t{number:04}": build_tenant(f"t{number:04}", [f"n{number}"]) for number in range(count)}
    held = {name: tenant.model_copy(update={"status": status}) for name, tenant in tenants.items()}
    registry = CollectorRegistry()
    registry.register(TenantCollector(lambda: dataclasses.replace(build_snapshot(), tenants=held)))
    return prometheus_client.generate_latest(registry).decode()


def test_every_tenant_has_its_amounts_by_class():
    text = scrape_tenants(1)

    for amount, value in (("nominal", 4), ("used", 3), ("borrowed", 0), ("lent", 1)):
        assert f'windlass_tenant_gpus{{amount="{amount}",gpu_class="h200",tenant="t0000"}} {value}.0' in text


def test_tenants_beyond_the_bound_share_one_label():
    text = scrape_tenants(metric_names.MAX_TENANT_LABELS + 900)

    series = [line for line in text.splitlines() if line.startswith(f"{metric_names.TENANT_GPUS}{{")]
    assert len(series) == (metric_names.MAX_TENANT_LABELS + 1) * len(metric_names.TENANT_AMOUNTS)
    assert f'{{amount="nominal",gpu_class="h200",tenant="{metric_names.OTHER_TENANT}"}} 3600.0' in text
