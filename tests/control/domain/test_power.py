from __future__ import annotations

from typing import Any

import pytest

from support.builders import build_gpu_class, build_node, build_service, build_snapshot
from windlass_operator.api.v1alpha1.inference_service import Tier
from windlass_operator.api.v1alpha1.power import Power, PowerProfile
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_service
from windlass_operator.domain.power import choose_profile
from windlass_operator.render.workload import render_service

POLICY: dict[str, Any] = {
    "bounds": {"minWatts": 200, "maxWatts": 700, "minGraphicsClockMHz": 600, "maxGraphicsClockMHz": 1980},
    "profiles": {"eco": {"powerLimitWatts": 350, "maxGraphicsClockMHz": 1200}, "performance": {"powerLimitWatts": 700}},
    "tierDefaults": {"batch": "Eco"},
}


def power_decisions(power: dict[str, Any] | None, **spec: Any) -> list[tuple[str, str]]:
    gpu_class = build_gpu_class(**({} if power is None else {"power": power}))
    service = build_service(classes=["h200"], uri="hf://org/name", **spec)
    plan = plan_service(service, build_snapshot(service, gpu_class, nodes=[build_node()]), FleetSettings())
    return [(item.choice, item.reason) for item in plan.decisions if item.topic == "power"]


@pytest.mark.parametrize(
    ("wanted", "tier", "expected"),
    [
        pytest.param(None, Tier.STANDARD, PowerProfile.BALANCED, id="Balanced where nobody says anything"),
        pytest.param(None, Tier.BATCH, PowerProfile.ECO, id="the default of the tier"),
        pytest.param(PowerProfile.PERFORMANCE, Tier.BATCH, PowerProfile.PERFORMANCE, id="the service's own wins"),
    ],
)
def test_the_profile_is_the_services_then_the_tiers_then_balanced(
    wanted: PowerProfile | None, tier: Tier, expected: PowerProfile
) -> None:
    assert choose_profile(wanted, tier, Power.model_validate(POLICY)).profile is expected


@pytest.mark.parametrize("tier", Tier)
def test_no_tier_leaves_balanced_unless_the_class_opts_in(tier: Tier) -> None:
    power = Power.model_validate({**POLICY, "tierDefaults": {}})

    assert choose_profile(None, tier, power).profile is PowerProfile.BALANCED


def test_a_fleet_without_power_policies_reads_nothing_of_power() -> None:
    assert power_decisions(None) == []


def test_a_profile_on_a_class_without_policy_says_that_nothing_happens() -> None:
    assert power_decisions(None, powerProfile="Eco") == [
        ("Unchanged", "the GPUClass has no power profiles, so nobody touches its GPUs")
    ]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param(
            {"tier": "Batch"},
            (
                "Eco",
                "the GPUClass gives it to tier Batch: at most 350 W per GPU, graphics clock at most 1200 MHz",
            ),
            id="limits in words",
        ),
        pytest.param(
            {}, ("Balanced", "the GPUClass names none for tier Standard: GPUs stay as they are"), id="no limits"
        ),
    ],
)
def test_the_status_says_which_profile_and_what_it_means(spec: dict[str, Any], expected: tuple[str, str]) -> None:
    assert power_decisions(POLICY, **spec) == [expected]


def test_following_the_load_is_explained() -> None:
    assert power_decisions({**POLICY, "followLoad": {}})[0][1].endswith(
        "limits follow the load between eco and performance"
    )


@pytest.mark.parametrize("profile", [None, "Eco", "Balanced", "Performance"])
def test_no_profile_changes_an_object_so_none_restarts_a_pod(profile: str | None) -> None:
    plain, powered = build_gpu_class(), build_gpu_class(power=POLICY)
    service = build_service(classes=["h200"], uri="hf://org/name")
    wanted = build_service(classes=["h200"], uri="hf://org/name", **({"powerProfile": profile} if profile else {}))

    before = plan_service(service, build_snapshot(service, plain, nodes=[build_node()]), FleetSettings())
    after = plan_service(wanted, build_snapshot(wanted, powered, nodes=[build_node()]), FleetSettings())

    assert render_service(after, FleetSettings()) == render_service(before, FleetSettings())
