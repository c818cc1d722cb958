"""Increases of counters, where restarts and new series are the rule."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_contract import metric_names
from windlass_operator.domain.canary import RevisionReading
from windlass_operator.domain.counters import Growth, Point, fold_growth, increase, parse_counters


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        pytest.param([], 0, id="nothing"),
        pytest.param([(90, 5), (110, 8), (120, 9)], 4, id="from the last sample before the window"),
        pytest.param([(80, 1), (90, 5), (110, 8)], 3, id="the newest such sample counts"),
        pytest.param([(110, 8), (120, 9)], 9, id="a series that begins in the window counts from zero"),
        pytest.param([(90, 5), (110, 2), (120, 3)], 3, id="a restart"),
        pytest.param([(90, 5)], 0, id="silence since"),
    ],
)
def test_growth_after_a_moment(points: list[tuple[float, float]], expected: float) -> None:
    assert increase([Point(*point) for point in points], 100) == expected


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(0, 20))
def test_windows_side_by_side_add_up_to_the_whole(steps: list[int], cut: int) -> None:
    total, points = 0, []
    for number, step in enumerate(steps):
        total += step
        points.append(Point(float(number), float(total)))
    early = [point for point in points if point.at_s <= cut]

    assert increase(early, -1) + increase(points, cut) == total


def test_a_revision_is_the_sum_of_its_pods() -> None:
    requests, bucket = metric_names.REQUESTS_TOTAL, f"{metric_names.TIME_TO_FIRST_TOKEN}_bucket"
    token = metric_names.TIME_PER_OUTPUT_TOKEN

    reading = fold_growth(
        [
            Growth(requests, {"outcome": "stop", "pod": "a"}, 5),
            Growth(requests, {"outcome": "length", "pod": "b"}, 3),
            Growth(requests, {"outcome": "failed", "pod": "b"}, 2),
            Growth(requests, {"outcome": "cancelled", "pod": "b"}, 7),
            Growth(requests, {"outcome": "rejected", "pod": "b"}, 7),
            Growth(bucket, {"le": "+Inf", "pod": "a"}, 8),
            Growth(bucket, {"le": "0.5", "pod": "a"}, 4),
            Growth(bucket, {"le": "0.5", "pod": "b"}, 1),
            Growth(f"{token}_count", {}, 40),
            Growth(f"{token}_sum", {}, 2.0),
            Growth(f"{token}_sum", {}, math.nan),
        ]
    )

    assert reading == RevisionReading(10, 2, ((0.5, 5), (math.inf, 8)), 40, 2.0)


def test_counters_are_read_from_a_replicas_own_page() -> None:
    text = (
        "# TYPE windlass_requests_total counter\n"
        'windlass_requests_total{tenant="a",model="m",outcome="stop"} 7.0\n'
        "# TYPE windlass_requests_running gauge\n"
        'windlass_requests_running{model="m"} 3.0\n'
        "# TYPE windlass_time_per_output_token_seconds histogram\n"
        'windlass_time_per_output_token_seconds_sum{tenant="a",model="m"} 1.5\n'
    )

    assert parse_counters(text) == {
        ("windlass_requests_total", (("model", "m"), ("outcome", "stop"), ("tenant", "a"))): 7.0,
        ("windlass_time_per_output_token_seconds_sum", (("model", "m"), ("tenant", "a"))): 1.5,
    }
