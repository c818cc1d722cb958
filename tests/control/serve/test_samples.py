"""What a replica or Prometheus says becomes samples; what cannot be read is absent."""

from __future__ import annotations

from typing import Any

import pytest

from windlass_contract.metric_names import KV_USE_RATIO, REQUESTS_RUNNING, REQUESTS_WAITING
from windlass_operator.serve.samples import PodKey, Sample, SeriesLabels, parse_exposition, parse_series, range_query
from windlass_runtime.metrics import RuntimeMetrics

POD = {"namespace": "team-a", "pod": "chat-1", "model": "m"}
KEY = PodKey("team-a", "chat-1")


def series(*values: Any, **labels: str) -> dict[str, Any]:
    return {"metric": {**POD, **labels}, "values": list(values)}


def two_models(metric: str, first: Any, second: Any) -> str:
    return f'{metric}{{model="a"}} {first}\n{metric}{{model="b"}} {second}\n'


def test_the_metrics_of_our_runtime_are_read() -> None:
    metrics = RuntimeMetrics("m")
    metrics.set_occupancy(running=3, waiting=7, pages_free=25, pages_total=100)
    metrics.count_accepted("tenant", 10)

    found = parse_exposition(metrics.render().decode(), at_s=50.0)

    assert found == {
        REQUESTS_RUNNING: Sample(3, 50),
        REQUESTS_WAITING: Sample(7, 50),
        KV_USE_RATIO: Sample(0.75, 50),
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", {}, id="an empty page"),
        pytest.param(f"{REQUESTS_WAITING} 4\n", {REQUESTS_WAITING: Sample(4, 9)}, id="without labels"),
        pytest.param(f"{REQUESTS_WAITING} 4 5000\n", {REQUESTS_WAITING: Sample(4, 5)}, id="with its own time"),
        pytest.param(f"{REQUESTS_WAITING} NaN\n", {}, id="not a number"),
        pytest.param(f"{REQUESTS_WAITING}_more 4\n", {}, id="a longer name"),
        pytest.param(two_models(REQUESTS_WAITING, 4, 1), {REQUESTS_WAITING: Sample(5, 9)}, id="counts add up"),
        pytest.param(two_models(KV_USE_RATIO, 0.5, 0.25), {KV_USE_RATIO: Sample(0.5, 9)}, id="shares do not"),
        pytest.param(two_models(REQUESTS_WAITING, 4, "NaN"), {}, id="a sum with a gap"),
        pytest.param("# HELP some thing\nbroken{ 1\n", {}, id="other lines are not looked at"),
    ],
)
def test_one_page_of_metrics(text: str, expected: dict[str, Sample]) -> None:
    assert parse_exposition(text, at_s=9) == expected


def test_a_broken_line_of_ours_is_an_error() -> None:
    with pytest.raises(ValueError, match="could not convert"):
        parse_exposition(f"{REQUESTS_WAITING} four\n", at_s=9)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        pytest.param([], {}, id="nothing"),
        pytest.param([series([1, "3"], [2, "4"])], {KEY: Sample(4, 2)}, id="the newest of a range"),
        pytest.param([{"metric": POD, "value": [2, "4"]}], {KEY: Sample(4, 2)}, id="an instant vector"),
        pytest.param([series([2, "NaN"])], {}, id="not a number"),
        pytest.param([series()], {}, id="an empty range"),
        pytest.param([series([2, "four"])], {}, id="no number at all"),
        pytest.param([series([2, "4"], pod="")], {}, id="no pod"),
        pytest.param([{"metric": {}, "values": [[2, "4"]]}], {}, id="no labels"),
        pytest.param([series([2, "4"], by="a"), series([3, "5"], by="b")], {KEY: Sample(5, 3)}, id="two scrapers"),
        pytest.param([series([2, "4"]), series([3, "5"], model="n")], {KEY: Sample(9, 2)}, id="two models"),
    ],
)
def test_an_answer_of_prometheus(result: list[Any], expected: dict[PodKey, Sample]) -> None:
    assert parse_series(REQUESTS_WAITING, result, SeriesLabels()) == expected


def test_the_labels_that_name_a_pod_can_be_others() -> None:
    labels = SeriesLabels("exported_namespace", "exported_pod")
    result = [series([2, "4"], exported_namespace="n", exported_pod="p")]

    assert parse_series(REQUESTS_WAITING, result, labels) == {PodKey("n", "p"): Sample(4, 2)}


def test_prometheus_is_asked_for_raw_samples_of_the_time_that_counts() -> None:
    assert range_query("m", 59.5, 'cluster="one"') == 'm{cluster="one"}[60s]'
