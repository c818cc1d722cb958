"""Names that dashboards and autoscalers depend on follow Prometheus conventions."""

import re

import pytest

from windlass_contract import metric_names

NAMES = {
    key: value
    for key, value in vars(metric_names).items()
    if key.isupper() and isinstance(value, str) and value.startswith("windlass_")
}


@pytest.mark.parametrize("name", NAMES.values())
def test_every_metric_is_a_legal_prometheus_name(name: str) -> None:
    assert re.fullmatch(r"windlass_[a-z][a-z0-9_]*[a-z0-9]", name)


def test_no_two_metrics_share_a_name() -> None:
    assert len(set(NAMES.values())) == len(NAMES)


def test_counters_end_in_total_and_durations_in_seconds() -> None:
    for key, name in NAMES.items():
        assert not key.endswith("_TOTAL") or name.endswith("_total")
        assert not key.endswith(("_DURATION", "_TIME")) or name.endswith("_seconds")
