"""Waits get longer on a busy machine, and only there."""

from __future__ import annotations

import os

import pytest

from support.patience import stretched


@pytest.mark.parametrize(
    ("load", "cores", "expected_s"),
    [
        pytest.param(0.1, 2, 10.0, id="idle"),
        pytest.param(2.0, 2, 10.0, id="busy with what it was meant for"),
        pytest.param(6.0, 2, 30.0, id="three want each core"),
        pytest.param(100.0, 2, 50.0, id="hopeless"),
    ],
)
def test_a_timeout_grows_with_the_load_of_each_core(
    monkeypatch: pytest.MonkeyPatch, load: float, cores: int, expected_s: float
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)

    assert stretched(10.0) == expected_s
