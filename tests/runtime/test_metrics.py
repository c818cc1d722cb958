import prometheus_client.parser
import pytest

from windlass_contract import metric_names
from windlass_runtime.metrics import RuntimeMetrics
from windlass_runtime.sparsity.figures import SparsityFigures


def test_tenants_beyond_the_cap_share_one_label() -> None:
    metrics = RuntimeMetrics("m")

    for number in range(metric_names.MAX_TENANT_LABELS + 5):
        metrics.count_generated(f"tenant-{number}", 1)

    samples = [
        sample
        for family in prometheus_client.parser.text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if sample.name == metric_names.GENERATED_TOKENS_TOTAL
    ]
    assert len(samples) == metric_names.MAX_TENANT_LABELS + 1
    other = next(sample for sample in samples if sample.labels["tenant"] == metric_names.OTHER_TENANT)
    assert other.value == 5


def test_averages_of_sparse_activation_can_be_read_over_any_time() -> None:
    metrics = RuntimeMetrics("m")
    figures = SparsityFigures(looks=4, density_sum=2.0, recall_sum=3.8, computed=30, skipped=10)

    metrics.watch_sparsity(lambda: figures)

    text = metrics.render().decode()
    assert 'windlass_sparse_density_ratio_sum{model="m"} 2.0' in text
    assert 'windlass_sparse_density_ratio_count{model="m"} 4.0' in text
    assert 'windlass_sparse_recall_ratio_sum{model="m"} 3.8' in text
    assert 'windlass_sparse_blocks_total{model="m",outcome="skipped"} 10.0' in text


def test_every_runtime_metric_of_the_contract_is_exported() -> None:
    metrics = RuntimeMetrics("m")
    metrics.set_load_seconds(1.5)
    metrics.set_occupancy(running=1, waiting=2, pages_free=3, pages_total=4)
    metrics.observe_step(0.01, 32)
    metrics.count_accepted("t", 1)
    metrics.count_generated("t", 1)
    metrics.observe_queue_time("t", 0.1)
    metrics.observe_phase("t", "prefill", 0.1)
    metrics.observe_plan(0.0002)
    metrics.count_preemption("t")
    metrics.observe_first_token("t", 0.1)
    metrics.observe_next_token("t", 0.1)
    metrics.count_outcome("t", "stop", 0.1)
    metrics.count_cached("t", 64)
    metrics.set_cache(kept=1, pages={"t": 2}, evictions={"t": 3})
    metrics.watch_sparsity(SparsityFigures)

    text = metrics.render().decode()

    elsewhere = (
        *("windlass_gateway", "windlass_reconcile", "windlass_api", "windlass_operator", "windlass_adapter"),
        *("windlass_canary", "windlass_cost", "windlass_gpu", "windlass_power", "windlass_service", "windlass_tenant"),
        *(metric_names.GENERATED_TOKENS_PER_SECOND, metric_names.TIME_TO_FIRST_TOKEN_P95),  # the adapter's own
    )
    ours = [
        value
        for key, value in vars(metric_names).items()
        if key.isupper() and isinstance(value, str) and value.startswith("windlass_")
        if not value.startswith(elsewhere)
    ]
    assert [name for name in ours if f"\n{name}" not in text] == []
    assert 'windlass_kv_use_ratio{model="m"} 0.25' in text


def test_pages_and_evictions_of_tenants_beyond_the_limit_of_labels_add_up() -> None:
    metrics = RuntimeMetrics("m")
    tenants = [f"t{number}" for number in range(metric_names.MAX_TENANT_LABELS + 2)]
    for _ in range(2):  # figures since the start, reported again
        metrics.set_cache(kept=0, pages=dict.fromkeys(tenants, 2), evictions=dict.fromkeys(tenants, 3))

    text = metrics.render().decode()

    assert 'windlass_kv_tenant_pages{model="m",tenant="_other"} 4.0' in text
    assert 'windlass_kv_evictions_total{model="m",tenant="_other"} 6.0' in text
    assert 'windlass_kv_evictions_total{model="m",tenant="t0"} 3.0' in text
    metrics.set_cache(kept=0, pages={}, evictions={"t0": 1})  # another pool
    assert 'windlass_kv_evictions_total{model="m",tenant="t0"} 4.0' in metrics.render().decode()


def test_an_outcome_outside_of_the_contract_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        RuntimeMetrics("m").count_outcome("t", "odd")
