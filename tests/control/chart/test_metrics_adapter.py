"""The metrics adapter of the chart: off unless asked for, the code's own settings, and few rights."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from windlass_operator.serve.settings import LISTS, PATTERNS, RANGES, AdapterSettings, parse_adapter_settings

from .conftest import ROOT, Manifest, RefusedError, Render, only

SCHEMA = json.loads((ROOT / "helm/windlass/values.schema.json").read_text())
SETTINGS = SCHEMA["properties"]["metricsAdapter"]["properties"]["settings"]["properties"]
NOT_SETTINGS = {"kubeconfig", "namespace", "service_name", "secret_name", "namespaces", "apis"}
"""What the chart itself knows."""
FIELDS = [field.name for field in dataclasses.fields(AdapterSettings) if field.name not in NOT_SETTINGS]
OTHERS: dict[str, Any] = {
    "host": "::",
    "probe_host": "::1",
    "port": 9443,
    "probe_port": 9090,
    "source": "prometheus",
    "prometheus_url": "https://prometheus.example.com",
    "prometheus_token_file": "/etc/token",
    "prometheus_ca_file": "/etc/ca.crt",
    "prometheus_matchers": 'cluster="one"',
    "prometheus_namespace_label": "exported_namespace",
    "prometheus_pod_label": "exported_pod",
    "replica_url": "https://{ip}/metrics",
    "gateway_url": "https://{ip}:9443/metrics",
    "gpu_use_query": "avg by (namespace, pod) (gpu_use)",
    "log_level": "DEBUG",
}
NAME = "windlass-metrics-adapter"


def adapter(**values: Any) -> Manifest:
    return {"metricsAdapter": {"enabled": True, **values}}


def of_adapter(manifests: list[Manifest]) -> list[Manifest]:
    component = "app.kubernetes.io/component"
    return [item for item in manifests if item["metadata"]["labels"][component] == "metrics-adapter"]


def key_of(field: str) -> str:
    """`max_age_s` -> `maxAgeSeconds`."""
    words = re.sub(r"_s$", "_seconds", field).split("_")
    return words[0] + "".join(word.capitalize() for word in words[1:])


def settings_of(manifests: list[Manifest]) -> AdapterSettings:
    (container,) = only(manifests, "Deployment", NAME)["spec"]["template"]["spec"]["containers"]
    return parse_adapter_settings({item["name"]: item["value"] for item in container["env"]})


def rules_of(manifests: list[Manifest]) -> dict[tuple[str, str], list[Manifest]]:
    return {
        (item["metadata"].get("namespace", ""), item["metadata"]["name"]): item["rules"]
        for item in of_adapter(manifests)
        if item["kind"] in ("Role", "ClusterRole")
    }


PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
API_SERVICES = {
    "apiGroups": ["apiregistration.k8s.io"],
    "resources": ["apiservices"],
    "resourceNames": ["v1beta2.custom.metrics.k8s.io", "v1beta1.external.metrics.k8s.io"],
    "verbs": ["get", "patch"],
}
CERTIFICATE = {
    "apiGroups": [""],
    "resources": ["secrets"],
    "resourceNames": [f"{NAME}-certificate"],
    "verbs": ["get", "update"],
}


def test_it_is_off_by_default_because_a_cluster_has_room_for_one_adapter(render: Render) -> None:
    manifests = render()

    assert of_adapter(manifests) == []
    assert "APIService" not in {item["kind"] for item in manifests}


@pytest.mark.parametrize(
    ("values", "registered"),
    [
        pytest.param({}, ["v1beta2.custom.metrics.k8s.io"], id="custom metrics only, unless asked"),
        pytest.param(
            {"externalMetrics": {"enabled": True}},
            ["v1beta2.custom.metrics.k8s.io", "v1beta1.external.metrics.k8s.io"],
            id="both",
        ),
        pytest.param(
            {"customMetrics": {"enabled": False}, "externalMetrics": {"enabled": True}},
            ["v1beta1.external.metrics.k8s.io"],
            id="external metrics only",
        ),
    ],
)
def test_it_registers_what_is_asked_for(render: Render, values: Manifest, registered: list[str]) -> None:
    manifests = render(adapter(**values))

    found = [item for item in manifests if item["kind"] == "APIService"]
    assert {item["metadata"]["name"] for item in found} == set(registered)
    for item in found:
        group, version = item["spec"]["group"], item["spec"]["version"]
        assert item["metadata"]["name"] == f"{version}.{group}"
        assert item["spec"]["service"] == {"namespace": "windlass-system", "name": NAME, "port": 443}
    assert len(settings_of(manifests).apis) == len(registered)


def test_no_certificate_is_in_the_chart_and_none_goes_unchecked(render: Render) -> None:
    manifests = of_adapter(render(adapter(externalMetrics={"enabled": True})))

    assert not {"caBundle", "insecureSkipTLSVerify"} & set(str(manifests).replace("'", " ").split())
    assert only(manifests, "Secret").keys() == {"apiVersion", "kind", "type", "metadata"}


def test_default_values_are_the_defaults_of_the_code(render: Render) -> None:
    assert settings_of(render(adapter())) == AdapterSettings()


def test_every_setting_is_reachable(render: Render) -> None:
    others = {name: OTHERS.get(name, getattr(AdapterSettings(), name)) for name in FIELDS}
    others |= {name: value + 1 for name, value in others.items() if name not in OTHERS}

    found = settings_of(render(adapter(settings={key_of(name): value for name, value in others.items()})))

    assert {name: getattr(found, name) for name in FIELDS} == others
    assert not [name for name in FIELDS if getattr(found, name) == getattr(AdapterSettings(), name)]


def test_schema_and_code_know_the_same_settings() -> None:
    assert SETTINGS.keys() == {key_of(name) for name in FIELDS}
    assert set(PATTERNS) | set(RANGES) | set(LISTS) <= {field.name for field in dataclasses.fields(AdapterSettings)}


@pytest.mark.parametrize("name", sorted(RANGES))
def test_the_schema_knows_the_range_of_a_number(name: str) -> None:
    entry, (low, high) = SETTINGS[key_of(name)], RANGES[name]

    # Ports below 1024 need a capability that the pod drops; draining ends before the pod is killed.
    low, high = {"port": (1024, high), "probe_port": (1024, high), "drain_timeout_s": (low, 25)}.get(name, (low, high))
    assert (entry["minimum"], entry["maximum"]) == (low, high)
    assert entry["type"] == ("integer" if isinstance(getattr(AdapterSettings(), name), int) else "number")


def test_it_may_list_pods_ask_who_may_and_keep_its_own_certificate(render: Render) -> None:
    manifests = render(adapter())

    assert rules_of(manifests) == {
        ("", NAME): [API_SERVICES, PODS],
        ("windlass-system", f"{NAME}-certificate"): [CERTIFICATE],
    }
    bindings = {
        (item["metadata"].get("namespace", ""), item["roleRef"]["name"]): item
        for item in of_adapter(manifests)
        if item["kind"].endswith("Binding")
    }
    assert bindings.keys() == {
        ("", NAME),
        ("", "system:auth-delegator"),
        ("windlass-system", f"{NAME}-certificate"),
        ("kube-system", "extension-apiserver-authentication-reader"),
    }
    for item in bindings.values():
        assert item["subjects"] == [{"kind": "ServiceAccount", "name": NAME, "namespace": "windlass-system"}]


def test_in_namespaced_mode_it_lists_pods_there_only(render: Render) -> None:
    manifests = render({"watchNamespaces": ["team-a", "team-b"], **adapter()})

    assert rules_of(manifests) == {
        ("", NAME): [API_SERVICES],
        ("team-a", NAME): [PODS],
        ("team-b", NAME): [PODS],
        ("windlass-system", NAME): [PODS],  # of the gateways
        ("windlass-system", f"{NAME}-certificate"): [CERTIFICATE],
    }
    assert settings_of(manifests).namespaces == ("team-a", "team-b")


def test_it_changes_nothing_of_the_operator(render: Render) -> None:
    plain, both = render(), render(adapter(externalMetrics={"enabled": True}))

    assert [item for item in both if item not in of_adapter(both)] == plain


def test_its_selector_never_changes_and_reaches_its_pods_alone(render: Render) -> None:
    manifests = of_adapter(render(adapter(podLabels={"app.kubernetes.io/component": "mine"})))
    frozen = {"app.kubernetes.io/instance": "windlass", "app.kubernetes.io/component": "metrics-adapter"}

    deployment = only(manifests, "Deployment")["spec"]
    assert deployment["selector"] == {"matchLabels": frozen}
    assert deployment["template"]["metadata"]["labels"].items() >= frozen.items()
    assert only(manifests, "Service")["spec"]["selector"] == frozen
    assert only(manifests, "PodDisruptionBudget")["spec"]["selector"] == {"matchLabels": frozen}
    assert only(manifests, "NetworkPolicy")["spec"]["podSelector"] == {"matchLabels": frozen}


def test_its_pod_passes_the_restricted_level(render: Render) -> None:
    pod = only(render(adapter()), "Deployment", NAME)["spec"]["template"]["spec"]
    operator = only(render(), "Deployment", "windlass-operator")["spec"]["template"]["spec"]

    assert pod["securityContext"] == operator["securityContext"]
    assert pod["containers"][0]["securityContext"] == operator["containers"][0]["securityContext"]
    assert all("hostPath" not in volume for volume in pod["volumes"])


def test_ports_of_pod_and_service_are_those_of_the_settings(render: Render) -> None:
    manifests = of_adapter(render(adapter(settings={"port": 9443, "probePort": 9090})))

    (container,) = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"https": 9443, "probes": 9090}
    assert [port["targetPort"] for port in only(manifests, "Service")["spec"]["ports"]] == ["https"]


def test_an_account_of_somebody_else_is_bound_but_not_made(render: Render) -> None:
    manifests = of_adapter(render(adapter(serviceAccount={"create": False, "name": "theirs"})))

    assert not [item for item in manifests if item["kind"] == "ServiceAccount"]
    assert only(manifests, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == "theirs"
    assert {subject["name"] for item in manifests for subject in item.get("subjects", ())} == {"theirs"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"customMetrics": {"enabled": False}}, "expected customMetrics.enabled or externalMetrics.enabled to be true"),
        ({"settings": {"source": "prometheus"}}, "expected an address for the source prometheus, found none"),
        ({"settings": {"intervalSeconds": 60}}, "expected less than maxAgeSeconds (60), found 60"),
        ({"settings": {"maxAge": 60}}, "additional properties 'maxAge' not allowed"),
        ({"settings": {"source": "graphite"}}, "value must be one of 'replicas', 'prometheus'"),
    ],
)
def test_values_that_cannot_work_are_refused(render: Render, values: Manifest, words: str) -> None:
    with pytest.raises(RefusedError) as refused:
        render(adapter(**values))

    assert words in str(refused.value)
