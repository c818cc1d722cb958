from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windlass_operator.api.v1alpha1.power import FollowLoad, PowerProfile
from windlass_operator.power.load import LoadLevel, step_level

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines share their cores
ECO, BALANCED, PERFORMANCE = PowerProfile
FOLLOW = FollowLoad(step_down_below_percent=30, step_up_above_percent=80, hold_seconds=60)
STEP_S = 15.0


def walk(uses: Sequence[int | None]) -> list[PowerProfile]:
    """Profiles after each look, 15 seconds apart."""
    level, profiles = LoadLevel(), []
    for number, use in enumerate(uses):
        level = step_level(level, use, FOLLOW, number * STEP_S)
        profiles.append(level.profile)
    return profiles


def test_a_low_use_steps_down_after_it_has_lasted() -> None:
    assert walk([10] * 5) == [BALANCED] * 4 + [ECO]


def test_a_high_use_steps_up_one_profile_at_a_time() -> None:
    assert walk([10] * 5 + [95] * 11) == [BALANCED] * 4 + [ECO] * 5 + [BALANCED] * 5 + [PERFORMANCE] * 2


def test_a_short_dip_changes_nothing() -> None:
    assert set(walk([50, 10, 10, 50, 10, 10, 50])) == {BALANCED}


def test_between_the_thresholds_a_profile_rests() -> None:
    assert walk([95] * 5 + [50] * 20)[-1] is PERFORMANCE


@pytest.mark.parametrize("use", [None, 30, 80])
def test_no_figure_and_the_thresholds_themselves_ask_for_no_step(use: int | None) -> None:
    assert set(walk([use] * 10)) == {BALANCED}


@UNHURRIED
@given(st.lists(st.none() | st.integers(0, 100), max_size=60))
def test_a_profile_never_moves_twice_within_the_hold_time(uses: list[int | None]) -> None:
    profiles = walk(uses)
    moves = [number for number in range(1, len(profiles)) if profiles[number] is not profiles[number - 1]]

    assert all(later - earlier >= FOLLOW.hold_seconds / STEP_S for earlier, later in itertools.pairwise(moves))
