"""Rates and percentiles from a replica's counters, and the queries that ask a Prometheus for the same."""

from __future__ import annotations

import math

import promql_parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_contract.metric_names import GENERATED_TOKENS_PER_SECOND, TIME_TO_FIRST_TOKEN_P95
from windlass_operator.serve.derived import (
    Counters,
    derive,
    first_token_query,
    keep_window,
    parse_counters,
    quantile,
    tokens_query,
)
from windlass_operator.serve.samples import Sample

PAGE = """\
# TYPE windlass_generated_tokens counter
windlass_generated_tokens_total{tenant="a",model="m"} 100
windlass_generated_tokens_total{tenant="b",model="m"} 20
# TYPE windlass_time_to_first_token_seconds histogram
windlass_time_to_first_token_seconds_bucket{tenant="a",model="m",le="0.5"} 3
windlass_time_to_first_token_seconds_bucket{tenant="a",model="m",le="+Inf"} 4
windlass_time_to_first_token_seconds_bucket{tenant="b",model="m",le="0.5"} 1
windlass_time_to_first_token_seconds_bucket{tenant="b",model="m",le="+Inf"} 1
windlass_time_to_first_token_seconds_count{tenant="a",model="m"} 4
windlass_requests_running{model="m"} 2
windlass_requests_waiting{model="m"} 0
"""


def counters(at_s, tokens=0.0, within=(0, 0, 0), at_work=False):
    """Buckets of 1 s, 2 s and everything."""
    return Counters(at_s, tokens, dict(zip((1.0, 2.0, math.inf), within, strict=True)), at_work)


def test_the_counters_of_all_tenants_add_up():
    assert parse_counters(PAGE, 7.0) == Counters(7.0, 120.0, {0.5: 4.0, math.inf: 5.0}, at_work=True)


def test_tokens_per_second_are_taken_over_the_window():
    found = derive([counters(10, 100), counters(40, 400), counters(25, 150)])

    assert found[GENERATED_TOKENS_PER_SECOND] == Sample(10.0, 40)


@pytest.mark.parametrize(
    ("older", "newer", "expected"),
    [
        pytest.param((0, 0, 0), (20, 20, 20), 0.95, id="within the first bucket"),
        pytest.param((0, 0, 0), (0, 20, 20), 1.95, id="within the second"),
        pytest.param((5, 5, 5), (5, 25, 25), 1.95, id="only what came in the window"),
        pytest.param((0, 0, 0), (0, 0, 20), 2.0, id="longer than the last bound is at least that"),
    ],
)
def test_the_percentile_of_the_window(older, newer, expected):
    found = derive([counters(0, within=older), counters(30, within=newer)])

    assert found[TIME_TO_FIRST_TOKEN_P95].value == pytest.approx(expected)


def test_nobody_waited_where_nobody_asked():
    found = derive([counters(0, within=(3, 3, 3)), counters(30, within=(3, 3, 3))])

    assert found[TIME_TO_FIRST_TOKEN_P95] == Sample(0.0, 30)


def test_a_replica_at_work_without_a_first_token_has_no_percentile():
    """Zero would shrink a fleet that is stuck."""
    found = derive([counters(0), counters(30, at_work=True)])

    assert TIME_TO_FIRST_TOKEN_P95 not in found


def test_a_page_that_does_not_say_whether_anything_runs_is_no_replicas_page():
    readings = [parse_counters("# nothing\n", 0.0), parse_counters("# nothing\n", 30.0)]

    assert readings[0].at_work is None
    assert derive(readings) == {}


def test_a_replica_that_was_never_asked_has_no_counters_and_counts_as_zero():
    page = 'windlass_requests_running{model="m"} 0\nwindlass_requests_waiting{model="m"} 0\n'

    found = derive([parse_counters(page, 0.0), parse_counters(page, 30.0)])

    assert found == {GENERATED_TOKENS_PER_SECOND: Sample(0.0, 30.0), TIME_TO_FIRST_TOKEN_P95: Sample(0.0, 30.0)}


def test_one_reading_tells_nothing():
    assert derive([counters(10, 100)]) == {}


def test_a_replica_that_began_anew_counts_from_there():
    readings = [counters(0, 900), counters(10, 1000), counters(20, 5), counters(30, 15)]

    assert keep_window(readings, 30, 60) == tuple(readings[2:])
    assert keep_window(readings[2:], 31, 2) == (readings[3],)
    assert derive([counters(10, 1000), counters(20, 5)]) == {}


@given(
    st.lists(st.floats(0.001, 9.0), min_size=1, max_size=60),
    st.floats(0.05, 1.0),
)
def test_the_estimate_lies_in_the_bucket_of_the_true_value(times, share):
    bounds = [0.5, 1.0, 2.5, 5.0, 10.0, math.inf]
    buckets = {bound: float(sum(time <= bound for time in times)) for bound in bounds}
    true = sorted(times)[max(0, math.ceil(share * len(times) - 1e-9) - 1)]
    upper = next(bound for bound in bounds if true <= bound)
    lower = max([0.0, *(bound for bound in bounds if bound < upper)])

    assert lower <= quantile(share, buckets) <= upper


@pytest.mark.parametrize("query", [tokens_query, first_token_query])
@pytest.mark.parametrize("matchers", ["", 'cluster="one"'])
def test_queries_are_well_formed(query, matchers):
    text = query("namespace, pod", matchers, 60)

    promql_parser.parse(text)
    assert matchers in text
    assert "[60s]" in text
