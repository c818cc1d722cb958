"""A service that accepts smaller formats steps down where there is no room, and returns without flapping."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.builders import build_gpu_class, build_node, build_service, build_snapshot, build_tenant, build_workload
from windlass_contract.launch_spec import Precision
from windlass_operator.api.v1alpha1.inference_service import InferenceServiceStatus, PrecisionAlternative
from windlass_operator.domain.elastic_precision import RETURN_AFTER_S, acceptable_formats, find_quality_problem
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.fleet_view import FleetView
from windlass_operator.domain.plan import Action, plan_in_view
from windlass_operator.domain.status import plan_service_status

SHAPE = {
    "layers": 32,
    "hiddenSize": 4096,
    "feedForwardSize": 14336,
    "queryHeads": 32,
    "keyValueHeads": 8,
    "headSize": 128,
    "vocabularySize": 128256,
    "maxPositions": 8192,
}
"""8.03 billion parameters: 16.4 GiB in 16 bits, with one sequence and workspace; 8.9 GiB in INT8, 5.9 GiB in INT4."""
BIG, SMALL, TINY = (
    build_gpu_class("big", memory="24Gi", capability="8.9"),
    build_gpu_class("small", memory="10Gi"),
    build_gpu_class("tiny", memory="7Gi"),
)
NOW = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


def build(classes=("big", "small", "tiny"), alternatives=({"preset": "INT8"}, {"preset": "INT4"}), status=None, **spec):
    service = build_service(
        model={"uri": "hf://org/chat@v1", "shape": SHAPE},
        accelerator={"classes": list(classes)},
        precision={"preset": "Auto", "alternatives": list(alternatives)},
        **spec,
    )
    return service.model_copy(update={"status": status or InferenceServiceStatus()})


def plan(service, quota, workload=None, now=NOW, devices=4, others=()):
    nodes = [build_node(name, gpu=name, devices=devices) for name in ("big", "small", "tiny")]
    workloads = {"team-a/chat": workload} if workload is not None else {}
    snapshot = build_snapshot(
        service, *others, BIG, SMALL, TINY, build_tenant(gpus=quota), nodes=nodes, workloads=workloads
    )
    return plan_in_view(service, FleetView(snapshot, FleetSettings(), now))


def formats(planned) -> tuple[str, Precision]:
    return planned.gpu_class.name, planned.launch.precision


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        pytest.param({"big": 1, "small": 1, "tiny": 1}, ("big", Precision.BF16), id="room: the preset"),
        pytest.param({"big": 0, "small": 1, "tiny": 1}, ("small", Precision.INT8), id="no quota: one step down"),
        pytest.param({"big": 0, "small": 0, "tiny": 1}, ("tiny", Precision.INT4), id="none there either: two steps"),
    ],
)
def test_under_quota_pressure_the_next_format_is_taken_instead_of_waiting(quota, expected):
    planned = plan(build(), quota)

    assert planned.action is Action.APPLY
    assert formats(planned) == expected


def test_memory_pressure_steps_down_within_the_only_class():
    planned = plan(build(classes=["small"]), {"small": 1})

    assert formats(planned) == ("small", Precision.INT8)
    (decision,) = (item for item in planned.decisions if item.topic == "precision")
    assert decision.reason == "stepped down from Auto by spec.precision.alternatives: small holds it"


def test_without_alternatives_the_service_waits_as_before():
    assert plan(build(alternatives=()), {"big": 0, "small": 1}).refusal.reason == "QuotaExceeded"


@pytest.mark.parametrize(
    ("floor", "measured", "problem"),
    [
        pytest.param(None, None, "", id="no floor"),
        pytest.param("0.8", "0.5", "", id="within the floor"),
        pytest.param("0.8", "0.8", "", id="exactly the floor"),
        pytest.param("0.8", "0.81", "INT8: loses 0.81 %, at most 0.8 % is acceptable", id="beyond it"),
        pytest.param(
            "0.8", None, "INT8: its loss was never measured, at most 0.8 % is acceptable", id="never measured"
        ),
    ],
)
def test_a_quality_floor_is_held_against_what_was_measured(floor, measured, problem):
    stated = {"maxQualityLossPercent": floor, "qualityLossPercent": measured}
    given_values = {key: value for key, value in stated.items() if value is not None}
    alternative = {"preset": "INT8", **given_values}

    assert find_quality_problem(PrecisionAlternative.model_validate(alternative)) == problem
    accepted = [item.preset.value for item in acceptable_formats(build(alternatives=[alternative]).spec)]
    assert accepted == (["Auto"] if problem else ["Auto", "INT8"])


def test_an_alternative_that_loses_too_much_is_told_in_the_decision():
    alternative = {"preset": "INT8", "maxQualityLossPercent": "0.8", "qualityLossPercent": "2"}
    planned = plan(build(alternatives=[alternative]), {"big": 1})

    (decision,) = (item for item in planned.decisions if item.topic == "precision")
    assert decision.reason == "compute capability 8.9 has BF16; not INT8: loses 2 %, at most 0.8 % is acceptable"


def status_since(seconds: float) -> InferenceServiceStatus:
    since = (NOW - datetime.timedelta(seconds=seconds)).isoformat()
    return InferenceServiceStatus.model_validate(
        {
            "conditions": [
                {"type": "PrecisionReduced", "status": "True", "reason": "SteppedDown", "lastTransitionTime": since}
            ]
        }
    )


@pytest.mark.parametrize(
    ("since_s", "quota", "devices", "expected"),
    [
        pytest.param(RETURN_AFTER_S - 1, {"big": 1, "small": 1}, 4, "small", id="too early"),
        pytest.param(RETURN_AFTER_S, {"big": 1, "small": 1}, 4, "big", id="due, with quota and devices"),
        pytest.param(RETURN_AFTER_S, {"big": 0, "small": 1}, 4, "small", id="due, but no quota"),
        pytest.param(RETURN_AFTER_S, {"big": 1, "small": 1}, 0, "small", id="due, but no device"),
    ],
)
def test_it_returns_once_it_is_due_and_there_is_room(since_s, quota, devices, expected):
    service = build(status=status_since(since_s))
    workload = build_workload(1, gpu_class="small")

    assert plan(service, quota, workload, devices=devices).gpu_class.name == expected


def test_a_reduced_service_says_so_and_when_it_will_be_planned_again():
    service = build()
    planned = plan(service, {"big": 0, "small": 1})
    status = plan_service_status(planned, None, service.status, NOW.isoformat())

    (condition,) = (item for item in status.conditions if item.type == "PrecisionReduced")
    assert (condition.status, condition.reason) == ("True", "SteppedDown")
    again = plan(service.model_copy(update={"status": status}), {"big": 0, "small": 1})
    assert again.plan_again_at == NOW + datetime.timedelta(seconds=RETURN_AFTER_S)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(10, 400)), min_size=1, max_size=40))
def test_after_a_step_down_it_stays_for_its_time_and_then_moves_at_most_once(weather):
    """Quota of the preferred class comes and goes at random, and every plan is carried out at once."""
    now, status, gpu_class, reduced_at = NOW, InferenceServiceStatus(), "", NOW
    moves = 0
    for room, seconds in weather:
        service = build(classes=["big", "small"], status=status)
        workload = build_workload(1, gpu_class=gpu_class) if gpu_class else None
        planned = plan(service, {"big": room, "small": 1}, workload, now)

        assert planned.gpu_class is not None, "one of the two always has room"
        if gpu_class and planned.gpu_class.name != gpu_class:
            moves += 1
            assert (gpu_class, planned.gpu_class.name) == ("small", "big"), "what runs is not stepped down"
            assert (now - reduced_at).total_seconds() >= RETURN_AFTER_S
        gpu_class = planned.gpu_class.name
        status = plan_service_status(planned, workload, status, now.isoformat())
        now += datetime.timedelta(seconds=seconds)
    assert moves <= 1


def test_what_fits_the_preset_is_never_stepped_down():
    assert formats(plan(build(classes=["small", "big"]), {"big": 1, "small": 1})) == ("big", Precision.BF16)


# -- devices instead of quota ------------------------------------------------------------------------------------------

ROOM = {"big": 8, "small": 8, "tiny": 8}


def hold(name: str, gpu_class: str, devices: int = 4):
    """A neighbour that holds devices of one class."""
    service = build_service(name, classes=[gpu_class], replicas=devices)
    node = ((gpu_class, devices),)
    return service, build_workload(devices, gpu_class=gpu_class, devices=devices, devices_by_node=node)


def plan_beside(service, *held, workload=None, now=NOW):
    nodes = [build_node(name, gpu=name, devices=4) for name in ("big", "small", "tiny")]
    neighbours = [hold(f"other-{index}", *one) for index, one in enumerate(held)]
    workloads = {f"team-a/other-{index}": runs for index, (_, runs) in enumerate(neighbours)}
    if workload is not None:
        workloads["team-a/chat"] = workload
    others = [other for other, _ in neighbours]
    snapshot = build_snapshot(
        service, *others, BIG, SMALL, TINY, build_tenant(gpus=ROOM), nodes=nodes, workloads=workloads
    )
    return plan_in_view(service, FleetView(snapshot, FleetSettings(), now))


@pytest.mark.parametrize(
    ("held", "replicas", "expected"),
    [
        pytest.param([], 1, ("big", Precision.BF16), id="devices are free: the preset"),
        pytest.param([("big",)], 1, ("small", Precision.INT8), id="none is free: one step down"),
        pytest.param([("big",), ("small",)], 1, ("tiny", Precision.INT4), id="none there either: two steps"),
        pytest.param([("big", 3)], 2, ("small", Precision.INT8), id="fewer than its replicas: one step down"),
        pytest.param([("big",), ("small",), ("tiny",)], 1, ("big", Precision.BF16), id="none anywhere: it waits"),
    ],
)
def test_where_no_device_is_free_the_next_format_is_taken_instead_of_waiting(held, replicas, expected):
    assert formats(plan_beside(build(replicas=replicas), *held)) == expected


def test_the_decision_says_why_the_larger_format_was_not_taken():
    planned = plan_beside(build(), ("big",))

    (decision,) = (item for item in planned.decisions if item.topic == "accelerator")
    assert "not big: 1 ready node, 0 of 4 devices free" in decision.reason


def test_without_alternatives_pods_wait_for_the_preferred_class():
    assert plan_beside(build(alternatives=()), ("big",)).gpu_class.name == "big"


WAITS = {"gpu_class": "big", "wanted": 1, "replicas": 1, "devices": 1, "unplaced": 1}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        pytest.param(WAITS, "small", id="every pod waits: step down"),
        pytest.param({**WAITS, "unplaced": 0}, "big", id="its pods start: stay"),
        pytest.param({**WAITS, "leaving": 1}, "big", id="a pod of its own will make room: stay"),
        pytest.param({**WAITS, "replicas": 2, "ready": 1}, "big", id="one serves: stay, for moving restarts it"),
    ],
)
def test_only_a_service_of_which_nothing_serves_leaves_its_class(runs, expected):
    workload = build_workload(runs.get("ready", 0), **{key: value for key, value in runs.items() if key != "ready"})

    assert plan_beside(build(), ("big",), workload=workload).gpu_class.name == expected


@pytest.mark.parametrize(("after_s", "expected"), [(30, "small"), (RETURN_AFTER_S + 1, "tiny")])
def test_a_service_that_stepped_down_and_waits_again_looks_on_only_after_a_while(after_s, expected):
    first = plan_beside(build(), ("big",))
    status = plan_service_status(first, None, InferenceServiceStatus(), NOW.isoformat())
    waits = build_workload(0, **{**WAITS, "gpu_class": "small"})
    later = NOW + datetime.timedelta(seconds=after_s)

    planned = plan_beside(build(status=status), ("big",), ("small",), workload=waits, now=later)

    assert planned.gpu_class.name == expected


def test_what_the_scheduler_refuses_counts_more_than_our_books():
    """Nobody of ours holds a device of the class, and yet no pod finds one: strangers have them."""
    assert plan_beside(build(), workload=build_workload(0, **WAITS)).gpu_class.name == "small"
