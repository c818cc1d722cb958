"""When services fall asleep and wake, and which pod goes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_operator.domain.activation import PodLoad, plan_activation, plan_deletion_costs, replicas_for
from windlass_operator.domain.scaling import ScalingPlan, Sleep


def build_plan(sleep=Sleep.OPERATOR, delay_s=300, most=8, per_replica=16):
    return ScalingPlan(0, most, (), delay_s, sleep=sleep, requests_per_replica=per_replica)


@pytest.mark.parametrize(
    ("demand", "replicas"),
    [
        pytest.param(1, 1, id="one request"),
        pytest.param(16, 1, id="as many as one replica computes"),
        pytest.param(17, 2, id="one more"),
        pytest.param(100, 7, id="many wake many at once"),
        pytest.param(5000, 8, id="up to the maximum"),
    ],
)
@pytest.mark.parametrize("sleep", [Sleep.OPERATOR, Sleep.AUTOSCALER])
def test_waiting_requests_wake_as_many_replicas_as_they_fill(demand, replicas, sleep):
    assert plan_activation(build_plan(sleep), 0, demand, None, 0.0).replicas == replicas


@pytest.mark.parametrize("demand", [0, 0.0, None])
def test_a_service_that_nobody_asks_for_sleeps_on(demand):
    assert plan_activation(build_plan(), 0, demand, None, 0.0).replicas is None


@pytest.mark.parametrize(
    ("wanted", "demand", "idle_since_s", "now_s", "replicas", "remembered"),
    [
        pytest.param(1, 0, None, 1000, None, 1000, id="the first quiet look starts the clock"),
        pytest.param(1, 0, 1000, 1299, None, 1000, id="not before its time"),
        pytest.param(1, 0, 1000, 1300, 0, None, id="then it falls asleep"),
        pytest.param(1, 2, 1000, 1300, None, None, id="a request starts anew"),
        pytest.param(1, None, 1000, 1300, None, None, id="so does a gateway that is not heard"),
        pytest.param(3, 0, 1000, 9000, None, 1000, id="the autoscaler takes all but the last"),
    ],
)
def test_the_last_replica_goes_after_a_quiet_time(wanted, demand, idle_since_s, now_s, replicas, remembered):
    found = plan_activation(build_plan(), wanted, demand, idle_since_s, now_s)

    assert (found.replicas, found.idle_since_s) == (replicas, remembered)


def test_an_autoscaler_that_goes_to_zero_is_left_to_it():
    assert plan_activation(build_plan(Sleep.AUTOSCALER), 1, 0, 0.0, 9000.0).replicas is None


@given(st.integers(1, 20), st.floats(0.01, 10_000), st.integers(1, 200))
def test_a_wake_never_exceeds_the_maximum_and_never_starts_more_than_needed(most, demand, per_replica):
    replicas = replicas_for(build_plan(most=most, per_replica=per_replica), demand)

    assert 1 <= replicas <= most
    assert replicas == 1 or (replicas - 1) * per_replica < demand


# -- deletion costs ----------------------------------------------------------------------------------------------------


def test_the_coldest_pod_has_the_lowest_cost():
    loads = {"busy": PodLoad(3, 0.1), "warm": PodLoad(0, 0.8), "cold": PodLoad(0, 0.2)}

    assert plan_deletion_costs(loads, dict.fromkeys(loads, 0)) == {"warm": 1, "busy": 2}


def test_nothing_is_written_while_the_order_stays():
    loads = {"a": PodLoad(1), "b": PodLoad(2)}

    assert plan_deletion_costs(loads, {"a": 0, "b": 1}) == {}
    assert plan_deletion_costs({"a": PodLoad(7), "b": PodLoad(9)}, {"a": 0, "b": 1}) == {}
    assert plan_deletion_costs({"a": PodLoad(7), "b": PodLoad(9)}, {"a": 3, "b": 8}) == {}


LOADS = st.dictionaries(
    st.sampled_from("abcdefgh"), st.builds(PodLoad, st.integers(0, 5).map(float), st.floats(0, 1)), max_size=8
)


@given(LOADS, st.dictionaries(st.sampled_from("abcdefgh"), st.integers(-5, 9)))
def test_what_is_written_gives_the_order_of_the_loads_and_is_enough(loads, before):
    costs = {pod: before.get(pod, 0) for pod in loads}

    after = {**costs, **plan_deletion_costs(loads, costs)}

    ranked = sorted(loads, key=lambda pod: (loads[pod].running, loads[pod].cache_use, pod))
    assert sorted(after, key=after.__getitem__) == ranked
    assert plan_deletion_costs(loads, after) == {}
