"""The most requests at once lately, in virtual time."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_gateway.peaks import SLOT_S, Peaks

KEY = ("team", "chat")


@pytest.mark.parametrize(
    ("later_s", "expected"),
    [
        pytest.param(0.0, 3, id="at once"),
        pytest.param(SLOT_S - 1, 3, id="in the same slot"),
        pytest.param(SLOT_S, 3, id="in the next slot"),
        pytest.param(2 * SLOT_S, 0, id="forgotten after that"),
    ],
)
def test_a_peak_is_remembered_for_a_while(later_s, expected):
    peaks = Peaks()
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(peaks.count(KEY, 0.0))

    assert peaks.peak(KEY, later_s) == expected


def test_what_still_runs_is_never_forgotten():
    peaks = Peaks()
    with peaks.count(KEY, 0.0):
        assert peaks.peak(KEY, 10 * SLOT_S) == 1
        peaks.keep_only([])
        assert peaks.peak(KEY, 20 * SLOT_S) == 1
    assert peaks.peak(KEY, 22 * SLOT_S) == 0


def test_services_that_left_are_forgotten():
    peaks = Peaks()
    with peaks.count(KEY, 0.0):
        pass

    peaks.keep_only([])

    assert peaks.peak(KEY, 0.0) == 0


@given(st.lists(st.tuples(st.floats(0.1, 20.0), st.integers(0, 5)), max_size=30))
def test_the_peak_is_at_least_that_of_the_last_slot_and_at_most_that_of_two(waves):
    """Waves of so many requests at once, each over before the next one."""
    peaks, now_s, seen = Peaks(), 0.0, []
    for pause_s, size in waves:
        now_s += pause_s
        with ExitStack() as stack:
            for _ in range(size):
                stack.enter_context(peaks.count(KEY, now_s))
        seen.append((now_s, size))

    lately = max((size for at_s, size in seen if now_s - at_s < SLOT_S), default=0)
    long_ago = max((size for at_s, size in seen if now_s - at_s <= 2 * SLOT_S), default=0)
    assert lately <= peaks.peak(KEY, now_s) <= long_ago
