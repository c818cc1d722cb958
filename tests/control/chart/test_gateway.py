"""The gateway of the chart: off unless asked for, few rights, and a command line that its own parser takes."""

from __future__ import annotations

from typing import Any

import pytest

from windlass_gateway.main import cli
from windlass_gateway.settings import Settings

from .conftest import Manifest, RefusedError, Render, environment_of, only

NAME = "windlass-gateway"
SECRET = f"{NAME}-routes"


def gateway(**values: Any) -> Manifest:
    return {"gateway": {"enabled": True, **values}}


def of_gateway(manifests: list[Manifest]) -> list[Manifest]:
    component = "app.kubernetes.io/component"
    return [item for item in manifests if item["metadata"]["labels"][component] == "gateway"]


def pod_of_gateway(manifests: list[Manifest]) -> Manifest:
    spec: Manifest = only(manifests, "Deployment", NAME)["spec"]["template"]["spec"]
    return spec


def options_of(manifests: list[Manifest]) -> dict[str, Any]:
    """What the process makes of the container's arguments."""
    (container,) = pod_of_gateway(manifests)["containers"]
    assert container["command"] == ["windlass-gateway"]
    name, *arguments = container["args"]
    command = cli.commands[name]
    return command.make_context(name, list(arguments)).params


def operator_environment(manifests: list[Manifest]) -> dict[str, str]:
    return environment_of([item for item in manifests if item["metadata"]["name"] != NAME])


def rules_of(manifests: list[Manifest]) -> dict[tuple[str, str], list[Manifest]]:
    return {
        (item["metadata"].get("namespace", ""), item["metadata"]["name"]): item["rules"]
        for item in manifests
        if item["kind"] in ("Role", "ClusterRole") and "gateway" in str(item["rules"]) + item["metadata"]["name"]
    }


ENDPOINTS = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}
READ_TABLE = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [SECRET], "verbs": ["list", "watch"]}
FIND_GATEWAYS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
WRITE_TABLE = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [SECRET], "verbs": ["get", "patch"]}


def test_it_is_off_by_default(render: Render) -> None:
    manifests = render()

    assert not of_gateway(manifests)
    assert "WINDLASS_ROUTES_SECRET" not in environment_of(manifests)
    assert not rules_of(manifests)


def test_its_defaults_are_those_of_the_process(render: Render) -> None:
    options = options_of(render(gateway()))

    defaults = Settings()
    assert (options["max_connections"], options["max_body_bytes"], options["drain_timeout"]) == (
        defaults.max_connections,
        defaults.max_body_bytes,
        defaults.drain_timeout_s,
    )
    assert options["routes"] is None


@pytest.mark.parametrize(("replicas", "gateways"), [(1, 1), (3, 3)])
def test_each_of_its_replicas_grants_its_part_of_the_limits(render: Render, replicas: int, gateways: int) -> None:
    assert options_of(render(gateway(replicas=replicas)))["gateways"] == gateways


def test_every_setting_reaches_the_process(render: Render) -> None:
    settings = {
        "host": "::",
        "port": 9000,
        "probePort": 9001,
        "maxConnections": 1_000_000,
        "maxBodyBytes": 1_073_741_824,
        "drainTimeoutSeconds": 12.5,
    }

    manifests = render({**gateway(settings=settings), "watchNamespaces": ["team-a", "team-b"]})

    options = options_of(manifests)
    assert {name: options[name] for name in ("host", "port", "probe_port", "max_connections", "max_body_bytes")} == {
        "host": "::",
        "port": 9000,
        "probe_port": 9001,
        "max_connections": 1_000_000,
        "max_body_bytes": 1_073_741_824,
    }
    assert options["drain_timeout"] == 12.5
    assert options["namespaces"] == "team-a,team-b"


def test_operator_and_gateway_mean_the_same_secret(render: Render) -> None:
    manifests = render(gateway())

    assert options_of(manifests)["routes_secret"] == f"windlass-system/{SECRET}"
    assert operator_environment(manifests)["WINDLASS_ROUTES_SECRET"] == SECRET
    assert "data" not in only(manifests, "Secret", SECRET), "an upgrade must leave what the operator wrote"


def test_its_rights_are_few(render: Render) -> None:
    assert rules_of(render(gateway())) == {
        ("", NAME): [ENDPOINTS],
        ("windlass-system", SECRET): [READ_TABLE],
        ("windlass-system", "windlass-operator-routes"): [WRITE_TABLE, FIND_GATEWAYS],
    }


def test_with_namespaces_it_follows_endpoints_there_only(render: Render) -> None:
    found = rules_of(render({**gateway(), "watchNamespaces": ["team-a"]}))

    assert ("", NAME) not in found
    assert found["team-a", NAME] == [ENDPOINTS]


def test_replicas_let_it_in_by_the_labels_that_it_carries(render: Render) -> None:
    template = only(render(gateway()), "Deployment", NAME)["spec"]["template"]

    labels = template["metadata"]["labels"]
    assert labels["app.kubernetes.io/component"] == "gateway"
    assert labels["app.kubernetes.io/part-of"] == "windlass"


def test_clients_reach_the_port_that_has_no_metrics(render: Render) -> None:
    manifests = render(gateway())

    (port,) = only(manifests, "Service", NAME)["spec"]["ports"]
    first, second = only(manifests, "NetworkPolicy", NAME)["spec"]["ingress"]
    assert port["targetPort"] == "http"
    assert (first["ports"][0]["port"], "from" in first) == ("http", False)
    assert (second["ports"][0]["port"], "from" in second) == ("probes", True)


def test_streams_get_their_time_before_the_pod_is_killed(render: Render) -> None:
    pod = pod_of_gateway(render(gateway(settings={"drainTimeoutSeconds": 99.5})))

    (container,) = pod["containers"]
    slept = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= slept + 99.5 + 5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        pytest.param(
            {"fleet": {"gatewayNamespace": "edge"}}, "fleet.gatewayNamespace: expected windlass-system", id="ns"
        ),
        pytest.param({"gateway": {"settings": {"probePort": 8000}}}, "probePort: expected another port", id="ports"),
    ],
)
def test_values_that_cannot_work_together_are_refused(render: Render, values: Manifest, words: str) -> None:
    both = {**gateway(), **values, "gateway": {**gateway()["gateway"], **values.get("gateway", {})}}

    with pytest.raises(RefusedError) as refusal:
        render(both)

    assert words in str(refusal.value)
