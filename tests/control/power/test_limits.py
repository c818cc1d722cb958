from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windlass_operator.api.v1alpha1.power import Power, PowerProfile
from windlass_operator.power.devices import Gpu
from windlass_operator.power.limits import UNTOUCHED, GpuPlan, Holder, Target, plan_gpu

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines share their cores
ECO, BALANCED, PERFORMANCE = PowerProfile
FOUND_MW = 600_000


def build_power(**fields: Any) -> Power:
    base = {
        "bounds": {"minWatts": 250, "maxWatts": 700, "minGraphicsClockMHz": 600, "maxGraphicsClockMHz": 1980},
        "profiles": {
            "eco": {"powerLimitWatts": 350, "maxGraphicsClockMHz": 1200},
            "performance": {"powerLimitWatts": 700},
        },
    }
    return Power.model_validate({**base, **fields})


def build_gpu(**fields: Any) -> Gpu:
    base: dict[str, Any] = {"min_power_mw": 200_000, "max_power_mw": 700_000, "max_clock_mhz": 1980}
    return Gpu("GPU-a", 0, power_limit_mw=FOUND_MW, **{**base, **fields})


def plan(*holders: Holder, gpu: Gpu | None = None, level: PowerProfile = BALANCED) -> GpuPlan:
    return plan_gpu(gpu or build_gpu(), FOUND_MW, holders, level)


def build_holder(profile: PowerProfile, power: Power | None = None, pod: str = "a/p") -> Holder:
    return Holder(pod, power or build_power(), profile)


def test_a_profile_becomes_limits() -> None:
    assert plan(build_holder(ECO)).target == Target(350_000, 1200)


@pytest.mark.parametrize(
    ("holders", "words"),
    [
        pytest.param((), "nobody holds it", id="idle"),
        pytest.param((Holder("a/p"),), "a/p runs without a power policy", id="no policy"),
        pytest.param(
            (build_holder(ECO), Holder("b/stranger")),
            "b/stranger runs without a power policy",
            id="a stranger shares it",
        ),
        pytest.param(
            (build_holder(BALANCED),), "held by a/p with Balanced", id="a profile that the class does not list"
        ),
    ],
)
def test_a_gpu_stays_as_found(holders: tuple[Holder, ...], words: str) -> None:
    found = plan(*holders)

    assert found.target == UNTOUCHED
    assert not found.managed
    assert words in found.reason


@pytest.mark.parametrize(
    ("profiles", "expected"),
    [
        pytest.param((ECO, PERFORMANCE), Target(700_000, None), id="performance beats eco"),
        pytest.param((ECO, ECO), Target(350_000, 1200), id="both eco"),
        pytest.param((ECO, BALANCED), UNTOUCHED, id="as found beats eco"),
        pytest.param((BALANCED, PERFORMANCE), Target(700_000, None), id="performance beats as found"),
    ],
)
def test_among_sharers_the_most_performant_wins(profiles: tuple[PowerProfile, ...], expected: Target) -> None:
    holders = [build_holder(profile, pod=f"a/p{number}") for number, profile in enumerate(profiles)]

    assert plan(*holders).target == expected
    assert plan(*reversed(holders)).target == expected


def test_a_gpu_that_accepts_less_than_the_profile_gets_what_it_accepts() -> None:
    assert plan(build_holder(PERFORMANCE), gpu=build_gpu(max_power_mw=500_000)).target.power_mw == 500_000
    assert plan(build_holder(ECO), gpu=build_gpu(min_power_mw=400_000)).target.power_mw == 400_000
    assert plan(build_holder(ECO), gpu=build_gpu(max_clock_mhz=1100)).target.clock_mhz == 1100


def test_bounds_that_the_gpu_cannot_meet_leave_it_as_found_with_the_numbers() -> None:
    found = plan(build_holder(ECO), gpu=build_gpu(min_power_mw=800_000, max_power_mw=900_000))

    assert found.target.power_mw is None
    assert "bounds from 800000 mW and bounds to 700000 mW leave no room" in found.reason


@pytest.mark.parametrize(
    ("fields", "expected", "words"),
    [
        pytest.param({"max_power_mw": None}, Target(None, 1200), "its power limit cannot be set", id="power"),
        pytest.param({"max_clock_mhz": None}, Target(350_000, None), "its clock cannot be capped", id="clock"),
    ],
)
def test_what_a_gpu_cannot_do_is_said_and_the_rest_is_done(fields: Any, expected: Target, words: str) -> None:
    found = plan(build_holder(ECO), gpu=build_gpu(**fields))

    assert found.target == expected
    assert words in found.reason


@pytest.mark.parametrize("level", PowerProfile)
def test_the_load_moves_balanced_and_nothing_else(level: PowerProfile) -> None:
    following = build_power(followLoad={})
    expected = {ECO: Target(350_000, 1200), BALANCED: UNTOUCHED, PERFORMANCE: Target(700_000, None)}

    assert plan(build_holder(BALANCED, following), level=level).target == expected[level]
    assert plan(build_holder(ECO, following), level=level).target == expected[ECO]
    assert plan(build_holder(BALANCED), level=level).target == UNTOUCHED


@st.composite
def policies(draw: st.DrawFn) -> Power:
    low = draw(st.integers(1, 1000))
    high = draw(st.integers(low, 1200))
    clock_low = draw(st.integers(1, 2000))
    clock_high = draw(st.integers(clock_low, 2500))
    watts = sorted(draw(st.lists(st.integers(low, high), min_size=3, max_size=3)))
    clocks = sorted(draw(st.lists(st.integers(clock_low, clock_high), min_size=3, max_size=3)))
    profiles = {
        name: draw(
            st.sampled_from(
                [
                    None,
                    {"powerLimitWatts": watt},
                    {"maxGraphicsClockMHz": clock},
                    {"powerLimitWatts": watt, "maxGraphicsClockMHz": clock},
                ]
            )
        )
        for name, watt, clock in zip(("eco", "balanced", "performance"), watts, clocks, strict=True)
    }
    return Power.model_validate(
        {
            "bounds": {
                "minWatts": low,
                "maxWatts": high,
                "minGraphicsClockMHz": clock_low,
                "maxGraphicsClockMHz": clock_high,
            },
            "profiles": profiles,
            "followLoad": draw(st.sampled_from([None, {}])),
        }
    )


gpus = st.builds(
    Gpu,
    st.just("GPU-a"),
    st.just(0),
    min_power_mw=st.none() | st.integers(1, 800_000),
    max_power_mw=st.none() | st.integers(100_000, 1_200_000),
    max_clock_mhz=st.none() | st.integers(300, 2500),
)
holders = st.lists(
    st.builds(Holder, st.sampled_from(["a/p", "b/q", "c/r"]), st.none() | policies(), st.sampled_from(PowerProfile)),
    max_size=4,
)


@UNHURRIED
@given(gpus, st.none() | st.integers(100_000, 900_000), holders, st.sampled_from(PowerProfile))
def test_no_limit_ever_leaves_the_bounds_of_a_class_or_of_the_gpu(
    gpu: Gpu, found_mw: int | None, holders: list[Holder], level: PowerProfile
) -> None:
    target = plan_gpu(gpu, found_mw, holders, level).target

    if any(holder.power is None for holder in holders):
        assert target == UNTOUCHED
    for bounds in (holder.power.bounds for holder in holders if holder.power is not None):
        if target.power_mw is not None:
            assert bounds.min_watts * 1000 <= target.power_mw <= bounds.max_watts * 1000
        if target.clock_mhz is not None:
            assert bounds.min_graphics_clock_mhz is not None
            assert bounds.max_graphics_clock_mhz is not None
            assert bounds.min_graphics_clock_mhz <= target.clock_mhz <= bounds.max_graphics_clock_mhz
    if target.power_mw is not None:
        assert gpu.min_power_mw is not None
        assert gpu.max_power_mw is not None
        assert gpu.min_power_mw <= target.power_mw <= gpu.max_power_mw
    if target.clock_mhz is not None:
        assert gpu.max_clock_mhz is not None
        assert target.clock_mhz <= gpu.max_clock_mhz


@UNHURRIED
@given(gpus, st.integers(100_000, 900_000), holders, st.sampled_from(PowerProfile))
def test_one_more_sharer_never_slows_the_others_within_shared_bounds(
    gpu: Gpu, found_mw: int, holders: list[Holder], level: PowerProfile
) -> None:
    """Of holders of one class: what each would get alone is at most what all get together."""
    policy = next((holder.power for holder in holders if holder.power is not None), None)
    alike = [Holder(holder.pod, policy, holder.profile) for holder in holders]

    together = plan_gpu(gpu, found_mw, alike, level).target

    for holder in alike:
        alone = plan_gpu(gpu, found_mw, [holder], level).target
        assert (together.power_mw or found_mw) >= min(alone.power_mw or found_mw, together.power_mw or found_mw)
        if together.clock_mhz is not None and alone.clock_mhz is not None:
            assert together.clock_mhz >= alone.clock_mhz
        if alone.clock_mhz is None:
            assert together.clock_mhz is None
