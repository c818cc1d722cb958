"""Every setting of the operator has a value, with the operator's own default and range."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.settings import NOT_FROM_ENVIRONMENT, PATTERNS, RANGES, OperatorSettings, parse_settings

from .conftest import ROOT, Render, environment_of, nested

SCHEMA = json.loads((ROOT / "helm/windlass/values.schema.json").read_text())
NOT_IN_OPERATOR = {"namespaces": "watchNamespaces", "lease_namespace": "namespaceOverride"}
FIELDS = [field.name for field in dataclasses.fields(OperatorSettings) if field.name not in NOT_FROM_ENVIRONMENT]
FIELDS += [
    name for field in dataclasses.fields(FleetSettings) if (name := f"fleet.{field.name}") not in NOT_FROM_ENVIRONMENT
]
OTHERS: dict[str, Any] = {
    "kubeconfig": "/etc/other",
    "namespaces": ["team-a", "team-b"],
    "lease_namespace": "elsewhere",
    "lease_name": "other",
    "lease_duration_s": 16.5,
    "lease_renew_s": 9.5,
    "lease_retry_s": 1.5,
    "probe_host": "::",
    "probe_port": 9090,
    "canary_prometheus_url": "https://prometheus.example.com",
    "canary_prometheus_namespace_label": "exported_namespace",
    "canary_prometheus_pod_label": "exported_pod",
    "canary_probe_url": "https://{name}.{namespace}.example.com",
    "log_level": "DEBUG",
    "usage_source": "replicas",
    "usage_prometheus_url": "http://prometheus.example",
    "usage_replica_url": "https://{ip}:8443/metrics",
    "fleet.runtime_image": "example.com/runtime@sha256:0",
    "fleet.cluster_domain": "example.com",
    "fleet.currency": "EUR",
    "gateway_url": "https://{ip}:9443/metrics",
    "fleet.autoscaler": "ScaledObject",
    "fleet.http_route_gateway": "gateways/public",
    "fleet.endpoint_picker": "{name}-epp:9002",
    "fleet.mesh_routes": "Istio",
    "fleet.prometheus_url": "http://prometheus.monitoring:9090",
    "fleet.realtime_priority": 1_000_000_000,
    "fleet.standard_priority": -1_000_000_000,
}
"""A value for each field that is not its default; the others get one more than that."""


def value_path(field: str) -> str:
    """`worker_count` -> `operator.workerCount`, `fleet.startup_timeout_s` -> `fleet.startupTimeoutSeconds`."""
    if field in NOT_IN_OPERATOR:
        return NOT_IN_OPERATOR[field]
    block, _, name = f"operator.{field}".removeprefix("operator.fleet.").rpartition(".")
    words = re.sub(r"_s$", "_seconds", name).replace("_per_seconds", "_per_second").split("_")
    return f"{block or 'fleet'}.{words[0]}{''.join(word.capitalize() for word in words[1:])}"


def other_value(field: str) -> Any:
    """A value that is not the default."""
    if field in OTHERS:
        return OTHERS[field]
    default = read(OperatorSettings(), field)
    if isinstance(default, str):
        return "other" if field.endswith("_namespace") else f"7{default}"
    return default + 1


def merged(by_field: dict[str, Any]) -> dict[str, Any]:
    """Values of the chart from values by field."""
    values: dict[str, Any] = {}
    for field, value in by_field.items():
        (top, inner), *_ = nested(value_path(field), value).items()
        values[top] = values.get(top, {}) | inner if isinstance(inner, dict) else inner
    return values


def read(settings: OperatorSettings, field: str) -> Any:
    block, _, name = field.rpartition(".")
    return getattr(settings.fleet if block else settings, name)


def schema_of(path: str) -> dict[str, Any]:
    entry: dict[str, Any] = SCHEMA
    for key in path.split("."):
        entry = entry["properties"][key]
        if "$ref" in entry:
            entry = SCHEMA["$defs"][entry["$ref"].rpartition("/")[2]]
    return entry


def test_default_values_are_the_defaults_of_the_code(render: Render) -> None:
    environment = environment_of(render())

    assert parse_settings(environment) == OperatorSettings()
    assert len(environment) == len([field for field in FIELDS if read(OperatorSettings(), field) not in ("", ())])


def test_every_setting_is_reachable(render: Render) -> None:
    others = {field: other_value(field) for field in FIELDS}

    settings = parse_settings(environment_of(render(merged(others))))

    expected = {name: tuple(value) if isinstance(value, list) else value for name, value in others.items()}
    assert {name: read(settings, name) for name in FIELDS} == expected
    assert not [name for name in FIELDS if read(settings, name) == read(OperatorSettings(), name)]


def test_null_leaves_a_setting_to_the_operator(render: Render) -> None:
    nulls = {field: None for field in FIELDS if field not in NOT_IN_OPERATOR}

    environment = environment_of(render(merged(nulls)))

    assert environment.keys() == {"WINDLASS_LEASE_NAMESPACE"}
    assert parse_settings(environment) == OperatorSettings()


@pytest.mark.parametrize("field", sorted(RANGES))
def test_the_schema_knows_the_range_of_a_number(field: str) -> None:
    entry = schema_of(value_path(field))

    low, high = RANGES[field]
    # Ports below 1024 need a capability that the operator drops, and 0 picks one that no Service would know.
    assert (entry["minimum"], entry["maximum"]) == (1024 if field == "probe_port" else low, high)
    assert entry["type"] == ("integer" if isinstance(read(OperatorSettings(), field), int) else "number")


@pytest.mark.parametrize("field", sorted(PATTERNS.keys() - NOT_IN_OPERATOR.keys()))
def test_the_schema_knows_the_form_of_a_text(field: str) -> None:
    entry = schema_of(value_path(field))

    pattern = entry.get("pattern") or "^(" + "|".join(entry["enum"]) + ")$"
    assert pattern == PATTERNS[field][0]
