"""Limits are told in the headers that OpenAI's clients read."""

from __future__ import annotations

import pytest

from windlass_gateway.limits import Limit, Reading
from windlass_gateway.rate_headers import format_duration, render_readings, render_wait


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0ms"), (0.0171, "18ms"), (1, "1s"), (1.25, "1.25s"), (59.9994, "1m0s"), (360, "6m0s"), (3661, "1h1m1s")],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


def test_each_rate_has_three_headers() -> None:
    assert render_readings({Limit.TOKENS: Reading(1000, 900, 6.0)}) == {
        "X-Ratelimit-Limit-Tokens": "1000",
        "X-Ratelimit-Remaining-Tokens": "900",
        "X-Ratelimit-Reset-Tokens": "6s",
    }


def test_a_wait_is_never_zero() -> None:
    assert render_wait(1e-9) == {"Retry-After-Ms": "1"}
