from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

from windlass_operator import settings as module
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.errors import SettingsError
from windlass_operator.settings import OperatorSettings, parse_settings


def test_an_empty_environment_gives_the_defaults():
    assert parse_settings({"PATH": "/bin"}) == OperatorSettings()


def test_variables_become_values_of_their_types():
    settings = parse_settings(
        {
            "WINDLASS_NAMESPACES": "a, b,,a",
            "WINDLASS_WORKER_COUNT": "3",
            "WINDLASS_RESYNC_INTERVAL_S": "90.5",
            "WINDLASS_FLEET_RUNTIME_IMAGE": "registry.example.com/r@sha256:1",
            "WINDLASS_FLEET_BATCH_PRIORITY": "-5",
        }
    )

    assert (settings.namespaces, settings.worker_count, settings.resync_interval_s) == (("a", "b"), 3, 90.5)
    assert (settings.fleet.runtime_image, settings.fleet.batch_priority) == ("registry.example.com/r@sha256:1", -5)


def test_a_flag_wins_over_its_variable_and_a_flag_not_given_does_not():
    environment = {"WINDLASS_PROBE_PORT": "1000", "WINDLASS_KUBECONFIG": "from-environment"}

    settings = parse_settings(environment, {"probe_port": 2000, "kubeconfig": None})

    assert (settings.probe_port, settings.kubeconfig) == (2000, "from-environment")


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        pytest.param("WINDLASS_WORKER_COUNT", "0", "a whole number from 1 to 64", id="below the range"),
        pytest.param("WINDLASS_WORKER_COUNT", "65", "a whole number from 1 to 64", id="above the range"),
        pytest.param("WINDLASS_WORKER_COUNT", "4.5", "a whole number from 1 to 64", id="no whole number"),
        pytest.param("WINDLASS_RESYNC_INTERVAL_S", "nan", "a number from 10 to 86400", id="not a number"),
        pytest.param("WINDLASS_RESYNC_INTERVAL_S", "10m", "a number from 10 to 86400", id="a unit"),
        pytest.param("WINDLASS_NAMESPACES", "team_a", "namespace names separated by commas", id="no namespace name"),
        pytest.param("WINDLASS_LOG_LEVEL", "verbose", "DEBUG, INFO, WARNING or ERROR", id="no level"),
        pytest.param("WINDLASS_FLEET_SCRATCH_LIMIT", "much", "a quantity such as 2Gi", id="no quantity"),
        pytest.param("WINDLASS_FLEET_RUNTIME_IMAGE", "", "an image reference", id="an empty image"),
        pytest.param(
            "WINDLASS_LEASE_RENEW_S", "20", "less than WINDLASS_LEASE_DURATION_S (15)", id="times in the wrong order"
        ),
    ],
)
def test_a_bad_value_names_key_value_and_range(variable, text, words):
    with pytest.raises(SettingsError) as caught:
        parse_settings({variable: text})

    assert str(caught.value).startswith(f"{variable}: expected {words}, found ")
    assert text.strip() in str(caught.value)


def test_an_unknown_key_is_refused_with_the_one_that_was_meant():
    with pytest.raises(SettingsError, match=r"WINDLASS_WORKERS_COUNT.*did you mean WINDLASS_WORKER_COUNT\?"):
        parse_settings({"WINDLASS_WORKERS_COUNT": "3"})


def test_every_problem_is_reported_at_once():
    with pytest.raises(SettingsError) as caught:
        parse_settings({"WINDLASS_WORKER_COUNT": "x", "WINDLASS_PROBE_PORT": "x", "WINDLASS_NO_SUCH": "x"})

    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        pytest.param("WINDLASS_GATEWAY_SERVICE_HOST", "10.0.0.7", id="host"),
        pytest.param("WINDLASS_GATEWAY_SERVICE_PORT_HTTP", "80", id="named port"),
        pytest.param("WINDLASS_GATEWAY_PORT", "tcp://10.0.0.7:80", id="link"),
        pytest.param("WINDLASS_GATEWAY_PORT_80_TCP_ADDR", "10.0.0.7", id="address"),
    ],
)
def test_what_kubernetes_sets_for_services_of_the_namespace_is_not_ours_to_refuse(variable, text):
    assert parse_settings({variable: text}) == OperatorSettings()


def test_a_mistyped_port_is_not_taken_for_a_service_link():
    with pytest.raises(SettingsError, match="WINDLASS_PROB_PORT"):
        parse_settings({"WINDLASS_PROB_PORT": "80"})


def test_every_number_has_a_range_and_every_setting_a_description():
    source = inspect.getsource(module)
    for owner, prefix in ((OperatorSettings, ""), (FleetSettings, "fleet.")):
        for field in dataclasses.fields(owner):
            if field.type in ("int", "float"):
                assert f"{prefix}{field.name}" in module.RANGES, field.name
    for field in dataclasses.fields(OperatorSettings):
        assert re.search(rf'^    {field.name}: [^\n]+\n    """', source, re.MULTILINE), (
            f"{field.name} has no description"
        )


def test_every_default_lies_in_its_own_range():
    defaults = OperatorSettings()
    for name, (low, high) in module.RANGES.items():
        value = (
            getattr(defaults.fleet, name.removeprefix("fleet."))
            if name.startswith("fleet.")
            else getattr(defaults, name)
        )
        assert low <= value <= high, name


@pytest.mark.parametrize(
    ("picker", "gateway", "expected"),
    [
        pytest.param("{name}-epp:9002", "", "WINDLASS_FLEET_HTTP_ROUTE_GATEWAY: expected the Gateway", id="no Gateway"),
        pytest.param("epp:65536", "a/b", "WINDLASS_FLEET_ENDPOINT_PICKER: expected a port", id="port out of range"),
        pytest.param("epp", "a/b", "WINDLASS_FLEET_ENDPOINT_PICKER: expected name:port", id="no port"),
        pytest.param("{pod}-epp:9002", "a/b", "with no place but {name}, found '{pod}-epp:9002'", id="unknown place"),
    ],
)
def test_an_endpoint_picker_is_a_service_with_a_port_behind_a_gateway(picker, gateway, expected):
    variables = {"WINDLASS_FLEET_ENDPOINT_PICKER": picker, "WINDLASS_FLEET_HTTP_ROUTE_GATEWAY": gateway}

    with pytest.raises(SettingsError, match=re.escape(expected)):
        parse_settings(variables)
