"""The adapter's settings: every key known, every value in range."""

from __future__ import annotations

import dataclasses

import pytest

from windlass_operator.errors import SettingsError
from windlass_operator.serve.settings import AdapterSettings, parse_adapter_settings, variable_of


def test_nothing_given_is_the_defaults() -> None:
    assert parse_adapter_settings({}) == AdapterSettings()


def test_flags_win_over_the_environment_and_none_is_not_given() -> None:
    found = parse_adapter_settings(
        {"WINDLASS_ADAPTER_PORT": "9443", "WINDLASS_ADAPTER_LOG_LEVEL": "DEBUG"}, {"port": "10443", "log_level": None}
    )

    assert (found.port, found.log_level) == (10443, "DEBUG")


def test_lists_are_separated_by_commas() -> None:
    found = parse_adapter_settings(
        {"WINDLASS_ADAPTER_NAMESPACES": "team-a, team-b,team-a", "WINDLASS_ADAPTER_APIS": "external"}
    )

    assert (found.namespaces, found.apis) == (("team-a", "team-b"), ("external",))


def test_variables_of_others_are_left_alone() -> None:
    others = {"WINDLASS_WORKER_COUNT": "8", "PATH": "/bin", "WINDLASS_ADAPTER_SERVICE_HOST": "10.0.0.1"}

    assert parse_adapter_settings(others) == AdapterSettings()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("port", "0", "a whole number from 1 to 65535"),
        ("port", "https", "a whole number from 1 to 65535"),
        ("max_age_s", "nan", "a number from 2 to 3600"),
        ("source", "graphite", "replicas or prometheus"),
        ("source", "prometheus", "an address for the source prometheus, found none"),
        ("prometheus_url", "prometheus:9090", "an http or https address"),
        ("prometheus_pod_label", "pod-name", "a label name"),
        ("replica_url", "10.0.0.1/metrics", "an http or https address"),
        ("replica_url", "http://{host}/metrics", "no places but {ip}, {namespace} and {pod}"),
        ("replica_url", "http://{/metrics", "no places but {ip}, {namespace} and {pod}"),
        ("replica_url", "http://{ip.__class__}/", "no places but {ip}, {namespace} and {pod}"),
        ("apis", "custom,resource", "custom, external or both"),
        ("namespaces", "team_a", "namespace names separated by commas"),
        ("interval_s", "60", "less than WINDLASS_ADAPTER_MAX_AGE_S (60), found 60"),
        ("log_level", "debug", "DEBUG, INFO, WARNING or ERROR"),
    ],
)
def test_a_wrong_value_stops_the_start(name: str, text: str, words: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_adapter_settings({variable_of(name): text})

    assert words in str(refused.value)
    assert "WINDLASS_ADAPTER_" in str(refused.value)


def test_an_unknown_key_stops_the_start_with_a_hint() -> None:
    with pytest.raises(SettingsError, match=r"WINDLASS_ADAPTER_MAXAGE_S.*did you mean WINDLASS_ADAPTER_MAX_AGE_S"):
        parse_adapter_settings({"WINDLASS_ADAPTER_MAXAGE_S": "3"})


def test_a_misspelt_port_is_not_taken_for_what_kubernetes_sets_for_services() -> None:
    with pytest.raises(SettingsError, match="WINDLASS_ADAPTER_API_PORT"):
        parse_adapter_settings({"WINDLASS_ADAPTER_API_PORT": "9443"})


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        parse_adapter_settings({"WINDLASS_ADAPTER_PORT": "x", "WINDLASS_ADAPTER_SOURCE": "y"})

    assert len(str(refused.value).splitlines()) == 2


def test_every_default_is_a_value_that_would_be_taken() -> None:
    texts = {}
    for field in dataclasses.fields(AdapterSettings):
        value = getattr(AdapterSettings(), field.name)
        texts[variable_of(field.name)] = ",".join(value) if isinstance(value, tuple) else str(value)

    assert parse_adapter_settings(texts) == AdapterSettings()
