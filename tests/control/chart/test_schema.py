"""Wrong values are refused before anything reaches a cluster, in words that name the value."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from .conftest import ROOT, RefusedError, Render, nested, pod_of

CHARTS = ("windlass", "windlass-crds")
SCHEMA = json.loads((ROOT / "helm/windlass/values.schema.json").read_text())
DEFAULTS = yaml.safe_load((ROOT / "helm/windlass/values.yaml").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
FREE = {"labelSelector", "valueFrom", "nodeAffinity", "podAffinity", "podAntiAffinity", "global"}
"""Objects that Kubernetes checks itself, and what Helm passes to sub-charts."""


def with_value(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of values with one entry changed."""
    changed = copy.deepcopy(values)
    *parents, last = path.split(".")
    inner = changed
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return changed


def closed_problems(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield where an object would take any key."""
    if schema.get("type") == "object" and path.rpartition(".")[2] not in FREE and "additionalProperties" not in schema:
        yield path
    for name, inner in schema.get("properties", {}).items():
        yield from closed_problems(inner, f"{path}.{name}")
    for name, inner in schema.get("$defs", {}).items():
        yield from closed_problems(inner, f"$defs.{name}")
    if isinstance(schema.get("items"), dict):
        yield from closed_problems(schema["items"], f"{path}[]")


@pytest.mark.parametrize("chart", CHARTS)
def test_no_block_takes_an_unknown_key(chart: str) -> None:
    schema = json.loads((ROOT / "helm" / chart / "values.schema.json").read_text())

    assert set(closed_problems(schema)) <= {".extraVolumes[]", ".extraVolumeMounts[]"}


@pytest.mark.parametrize("chart", CHARTS)
def test_schema_and_values_name_the_same_keys(chart: str) -> None:
    schema = json.loads((ROOT / "helm" / chart / "values.schema.json").read_text())
    values = yaml.safe_load((ROOT / "helm" / chart / "values.yaml").read_text())

    def compare(entry: dict[str, Any], value: Any, path: str) -> None:
        if "properties" not in entry or not isinstance(value, dict):
            return
        names = set(entry["properties"]) - {"global", "enabled"} if not path else set(entry["properties"])
        if path not in (".affinity",):
            assert names == set(value), path
        for name in names & set(value):
            compare(entry["properties"][name], value[name], f"{path}.{name}")

    compare(schema, values, "")


@pytest.mark.parametrize("chart", CHARTS)
def test_helm_lint_finds_nothing(helm: Path, chart: str) -> None:
    done = subprocess.run(
        [helm, "lint", "--strict", ROOT / "helm" / chart], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout


@pytest.mark.parametrize(
    ("path", "value", "keyword"),
    [
        pytest.param("replica", 2, "additionalProperties", id="misspelt at the top"),
        pytest.param("operator.workers", 2, "additionalProperties", id="misspelt setting"),
        pytest.param("fleet.image", "a", "additionalProperties", id="misspelt default of the fleet"),
        pytest.param("monitoring.podMonitor.on", True, "additionalProperties", id="misspelt switch"),
        pytest.param("replicas", "2", "type", id="text for a number"),
        pytest.param("replicas", -1, "minimum", id="negative replicas"),
        pytest.param("replicas", None, "type", id="null for a number that is needed"),
        pytest.param("image.repository", "", "pattern", id="no image"),
        pytest.param("image.pullPolicy", "Sometimes", "enum", id="unknown pull policy"),
        pytest.param("image.digest", "sha256:abc", "pattern", id="digest too short"),
        pytest.param("image.tag", "a b", "pattern", id="white space in a tag"),
        pytest.param("imagePullSecrets", ["registry"], "type", id="name for an object"),
        pytest.param("watchNamespaces", "team-a", "type", id="text for a list"),
        pytest.param("watchNamespaces", ["Team_A"], "pattern", id="no namespace name"),
        pytest.param("watchNamespaces", ["a", "a"], "uniqueItems", id="namespace twice"),
        pytest.param("namespaceOverride", "a/b", "pattern", id="no namespace name as override"),
        pytest.param("fullnameOverride", "x" * 41, "maxLength", id="name too long"),
        pytest.param("rbac.create", "false", "type", id="text for a switch"),
        pytest.param("operator.workerCount", 65, "maximum", id="above the range"),
        pytest.param("operator.workerCount", 1.5, "type", id="fraction for a whole number"),
        pytest.param("operator.leaseRetrySeconds", 0.1, "minimum", id="below the range"),
        pytest.param("operator.logLevel", "debug", "enum", id="log level in lower case"),
        pytest.param("operator.probePort", 80, "minimum", id="privileged port"),
        pytest.param("operator.probeHost", "localhost", "pattern", id="name for an address"),
        pytest.param("fleet.defaultMemory", "4 GB", "pattern", id="no quantity"),
        pytest.param("fleet.defaultCpu", 0, "exclusiveMinimum", id="quantity of zero"),
        pytest.param("fleet.runtimeImage", "a b", "pattern", id="white space in an image"),
        pytest.param("fleet.batchPriority", 2_000_000_000, "maximum", id="priority that only Kubernetes may use"),
        pytest.param("resources.limits", {"cpu": "fast"}, "pattern", id="no quantity in resources"),
        pytest.param("resources.limit", {"cpu": "1"}, "additionalProperties", id="misspelt in resources"),
        pytest.param("commonLabels", {"a b": "c"}, "pattern", id="no label key"),
        pytest.param("podLabels", {"a": 1}, "type", id="number for a label"),
        pytest.param("podAnnotations", {"a": True}, "type", id="boolean for an annotation"),
        pytest.param("tolerations", [{"keys": "a"}], "additionalProperties", id="misspelt in a toleration"),
        pytest.param("affinity", {"podAfinity": {}}, "additionalProperties", id="misspelt in affinity"),
        pytest.param("extraEnv", [{"value": "a"}], "required", id="environment without a name"),
        pytest.param("extraVolumeMounts", [{"name": "a"}], "required", id="mount without a place"),
        pytest.param("networkPolicy.apiServer.cidrs", ["10.0.0.1"], "pattern", id="address for a range"),
        pytest.param("networkPolicy.apiServer.ports", ["https"], "type", id="name for a port"),
        pytest.param("monitoring.serviceMonitor.interval", "30", "pattern", id="duration without unit"),
        pytest.param("monitoring.prometheusRule.thresholds.failedRatio", 25, "maximum", id="percent for a share"),
        pytest.param("monitoring.prometheusRule.runbookUrl", "docs", "pattern", id="no URL"),
    ],
)
def test_the_schema_refuses(path: str, value: Any, keyword: str) -> None:
    values = with_value(DEFAULTS, path, value)

    (problem,) = VALIDATOR.iter_errors(values)

    assert problem.validator == keyword
    assert problem.json_path.removeprefix("$.").startswith(path) or keyword == "additionalProperties"


def test_the_defaults_pass_the_schema() -> None:
    assert not list(VALIDATOR.iter_errors(DEFAULTS))


def test_helm_names_every_wrong_value_at_once(render: Render) -> None:
    values = {
        "replica": 2,
        "operator": {"workers": 2, "workerCount": 65, "logLevel": "debug"},
        "fleet": {"defaultMemory": "4 GB"},
        "replicas": None,
        "image": {"tag": None},
    }

    with pytest.raises(RefusedError) as refused:
        render(values)

    for words in (
        "additional properties 'replica' not allowed",
        "at '/operator': additional properties 'workers' not allowed",
        "at '/operator/workerCount': maximum: got 65, want 64",
        "at '/operator/logLevel': value must be one of 'DEBUG', 'INFO', 'WARNING', 'ERROR'",
        "at '/fleet/defaultMemory': '4 GB' does not match pattern",
        "missing property 'replicas'",
        "at '/image': missing property 'tag'",
    ):
        assert words in str(refused.value)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        pytest.param(
            "terminationGracePeriodSeconds",
            20,
            "operator.drainTimeoutSeconds: expected less than terminationGracePeriodSeconds (20), found 20",
            id="killed while draining",
        ),
        pytest.param(
            "operator.leaseRenewSeconds",
            15,
            "operator.leaseRenewSeconds: expected less than operator.leaseDurationSeconds (15), found 15",
            id="lease times out of order",
        ),
        pytest.param(
            "operator.leaseRetrySeconds",
            10,
            "operator.leaseRetrySeconds: expected less than operator.leaseRenewSeconds (10), found 10",
            id="lease retried too late",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(render: Render, path: str, value: Any, words: str) -> None:
    with pytest.raises(RefusedError) as refused:
        render(nested(path, value))

    assert words in str(refused.value)


def test_a_service_monitor_without_its_service_is_refused(render: Render) -> None:
    values = {"metricsService": {"enabled": False}, "monitoring": {"serviceMonitor": {"enabled": True}}}

    with pytest.raises(RefusedError, match=r"expected metricsService\.enabled to be true, found false"):
        render(values)


def test_null_takes_a_default_away(render: Render) -> None:
    paths = ("resources", "nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "extraEnv")

    pod = pod_of(render(dict.fromkeys(paths)))["spec"]

    assert not set(paths) & (pod.keys() | pod["containers"][0].keys())


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_can_be_a_dependency_with_a_condition(render: Render, chart: str) -> None:
    plain = render(chart=chart)

    assert render({"enabled": True, "global": {"anything": [1]}}, chart=chart) == plain


def test_the_crd_chart_refuses_unknown_and_wrong_values(render: Render) -> None:
    for crds, words in (
        ({"instal": False}, "additional properties 'instal' not allowed"),
        ({"install": "no"}, "got string, want boolean"),
        ({"labels": {"a": 1}}, "got number, want string"),
    ):
        with pytest.raises(RefusedError, match=words):
            render({"crds": crds}, chart="windlass-crds")
