"""The agent's settings: every key known, every value in range."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from windlass_operator.errors import SettingsError
from windlass_operator.power.settings import RANGES, PowerSettings, parse_power_settings, variable_of


def test_nothing_given_is_the_defaults() -> None:
    assert parse_power_settings({}) == PowerSettings()


def test_flags_win_over_the_environment() -> None:
    found = parse_power_settings({"WINDLASS_POWER_NODE": "node-1", "WINDLASS_POWER_MODE": "apply"}, {"mode": "dry-run"})

    assert (found.node, found.mode) == ("node-1", "dry-run")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("node", "Node_1", "a node name"),
        ("mode", "write", "apply or dry-run"),
        ("interval_s", "0", "a number from 1 to 600"),
        ("window_s", "10", "at least WINDLASS_POWER_INTERVAL_S (15), found 10"),
        ("state_folder", "state", "an absolute path"),
        ("probe_port", "99999", "a whole number from 0 to 65535"),
        ("replica_url", "10.0.0.1", "an http or https address"),
        ("replica_url", "http://{host}/metrics", "no places but {ip}, {namespace} and {pod}"),
        ("namespaces", "team_a", "namespace names separated by commas"),
        ("log_level", "debug", "DEBUG, INFO, WARNING or ERROR"),
    ],
)
def test_a_wrong_value_stops_the_start(name: str, text: str, words: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_power_settings({variable_of(name): text})

    assert words in str(refused.value)
    assert variable_of(name) in str(refused.value)


def test_an_unknown_key_is_named_with_the_nearest_one() -> None:
    with pytest.raises(SettingsError, match="did you mean WINDLASS_POWER_INTERVAL_S"):
        parse_power_settings({"WINDLASS_POWER_INTERVALL_S": "5"})


def test_ranges_in_the_docs_are_those_that_are_checked() -> None:
    source = Path(str(__import__(PowerSettings.__module__, fromlist=["x"]).__file__)).read_text()
    for name, (low, high) in RANGES.items():
        doc = re.search(rf"^    {name}: [^\n]*\n    \"\"\"(.*?)\"\"\"", source, re.MULTILINE | re.DOTALL)
        assert doc is not None
        assert f"{low:g} to {high:g}." in " ".join(doc[1].split())
    assert {item.name for item in dataclasses.fields(PowerSettings)} >= RANGES.keys()
