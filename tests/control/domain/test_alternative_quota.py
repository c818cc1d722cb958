"""Claims reserve quota in every class they may end on, so that no choice of the scheduler overdraws one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.builders import build_gpu_class, build_service, build_snapshot, build_tenant, service_key
from windlass_operator.domain.alternative_quota import AlternativeClaim, reserve_alternatives
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import Action, plan_services
from windlass_operator.domain.snapshot import Key

CLASSES = tuple(build_gpu_class(name, deviceClassName="gpu.nvidia.com") for name in ("h200", "a100", "l4"))


def claim(name: str, *classes: str, replicas: int = 1, created: str = "2026-01-01T00:00:00Z"):
    accelerator = {"allocation": "ResourceClaim", "classes": list(classes)}
    return build_service(name, accelerator=accelerator, replicas=replicas, created=created)


def plan(*services, **gpus: int):
    snapshot = build_snapshot(*services, *CLASSES, build_tenant(gpus=gpus), nodes=None)
    return {planned.key.name: planned for planned in plan_services(snapshot, FleetSettings())}


def test_devices_are_set_aside_in_the_second_class_of_a_claim():
    plans = plan(
        claim("chat", "h200", "a100", replicas=2), build_service("other", classes=["a100"], replicas=3), h200=2, a100=4
    )

    assert plans["chat"].action is Action.APPLY
    assert plans["other"].refusal.reason == "QuotaExceeded", "two of four a100 are set aside"


def test_a_claim_without_room_in_every_class_is_refused_with_the_figures():
    refusal = plan(claim("chat", "h200", "a100", replicas=2), h200=2, a100=1)["chat"].refusal

    assert refusal.reason == "QuotaExceeded"
    assert "needs 2 x a100; acme has 1, of which 0 are set aside for other claims" in refusal.message
    assert refusal.next_step.startswith("Take a100 out of spec.accelerator.classes")


def test_a_class_that_the_quota_does_not_list_is_no_alternative():
    planned = plan(claim("chat", "h200", "l4", "a100"), h200=1, a100=1)["chat"]

    assert [item.gpu_class for item in planned.gpu_class.alternatives] == ["h200", "a100"]


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "a")])
def test_the_older_claim_is_served_first(first, second):
    older = claim(first, "h200", "a100", created="2026-01-01T00:00:00Z")
    newer = claim(second, "h200", "a100", created="2026-01-02T00:00:00Z")

    plans = plan(older, newer, h200=2, a100=1)

    assert plans[first].refusal is None
    assert plans[second].refusal.reason == "QuotaExceeded"


services = st.lists(
    st.tuples(
        st.booleans(),
        st.lists(st.sampled_from(["h200", "a100", "l4"]), min_size=1, max_size=3, unique=True),
        st.integers(1, 3),
    ),
    max_size=5,
)


@settings(deadline=None, max_examples=60)
@given(services, st.fixed_dictionaries({name: st.integers(0, 6) for name in ("h200", "a100", "l4")}))
def test_whatever_the_scheduler_takes_no_class_is_overdrawn(found, nominal):
    """The worst case of a class: every claim that lists it takes it with all replicas."""
    made = [
        claim(f"s{index}", *classes, replicas=replicas)
        if claims
        else build_service(f"s{index}", classes=classes, replicas=replicas)
        for index, (claims, classes, replicas) in enumerate(found)
    ]
    plans = plan(*made, **nominal)

    worst = dict.fromkeys(nominal, 0)
    for planned in plans.values():
        if planned.runnable and planned.gpu_class is not None:
            ends = [item.gpu_class for item in planned.gpu_class.alternatives] or [planned.gpu_class.name]
            for name in ends:
                worst[name] += planned.replicas
    assert all(worst[name] <= nominal[name] for name in nominal), (worst, nominal)
    assert {service_key(item).name for item in made} == set(plans)


@given(st.permutations(range(4)))
def test_the_order_of_the_list_decides_nothing(order):
    claims = [
        AlternativeClaim(Key("InferenceService", "t", f"s{index}"), f"2026-01-0{index + 1}", ("a100",), index + 1)
        for index in range(4)
    ]

    shuffled = reserve_alternatives([claims[index] for index in order], {"a100": 5}, "acme")

    assert shuffled == reserve_alternatives(claims, {"a100": 5}, "acme")
    assert shuffled.devices["a100"] <= 5
