"""The power agent of the chart: off unless asked for, the code's own settings, and the rights it needs and no more."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from windlass_operator.domain import labels
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.power.settings import PATTERNS, RANGES, PowerSettings, parse_power_settings
from windlass_operator.settings import parse_settings

from .conftest import ROOT, Manifest, Render, environment_of, only

SCHEMA = json.loads((ROOT / "helm/windlass/values.schema.json").read_text())
SETTINGS = SCHEMA["properties"]["powerAgent"]["properties"]["settings"]["properties"]
NOT_SETTINGS = {"node", "kubeconfig", "namespaces"}
"""What the chart itself knows."""
FIELDS = [field.name for field in dataclasses.fields(PowerSettings) if field.name not in NOT_SETTINGS]
OTHERS: dict[str, Any] = {
    "mode": "dry-run",
    "pod_resources_socket": "/run/kubelet/pod-resources/kubelet.sock",
    "state_folder": "/var/lib/other",
    "replica_url": "https://{ip}/metrics",
    "probe_host": "::",
    "probe_port": 9090,
    "log_level": "DEBUG",
}
NAME = "windlass-power-agent"


def power(**values: Any) -> Manifest:
    return {"powerAgent": {"enabled": True, **values}}


def of_agent(manifests: list[Manifest]) -> list[Manifest]:
    return [item for item in manifests if item["metadata"]["labels"]["app.kubernetes.io/component"] == "power-agent"]


def key_of(field: str) -> str:
    """`interval_s` -> `intervalSeconds`."""
    words = re.sub(r"_s$", "_seconds", field).split("_")
    return words[0] + "".join(word.capitalize() for word in words[1:])


def pod_of(manifests: list[Manifest]) -> Manifest:
    pod: Manifest = only(manifests, "DaemonSet")["spec"]["template"]["spec"]
    return pod


def settings_of(manifests: list[Manifest]) -> PowerSettings:
    (container,) = pod_of(manifests)["containers"]
    return parse_power_settings({item["name"]: item["value"] for item in container["env"] if "value" in item})


def test_it_is_off_by_default_and_then_nothing_speaks_of_it(render: Render) -> None:
    assert "power" not in json.dumps(render()).lower()


def test_default_values_are_the_defaults_of_the_code(render: Render) -> None:
    assert settings_of(render(power())) == PowerSettings()


def test_the_node_comes_from_the_pod(render: Render) -> None:
    (container,) = pod_of(render(power()))["containers"]

    (node,) = (item for item in container["env"] if item["name"] == "WINDLASS_POWER_NODE")
    assert node["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}


def test_every_setting_is_reachable(render: Render) -> None:
    others = {name: OTHERS.get(name, getattr(PowerSettings(), name)) for name in FIELDS}
    others |= {name: value + 1 for name, value in others.items() if name not in OTHERS}

    found = settings_of(render(power(settings={key_of(name): value for name, value in others.items()})))

    assert {name: getattr(found, name) for name in FIELDS} == others


def test_schema_and_code_know_the_same_settings() -> None:
    assert SETTINGS.keys() == {key_of(name) for name in FIELDS}
    assert set(PATTERNS) | set(RANGES) <= {field.name for field in dataclasses.fields(PowerSettings)} | {"namespaces"}


@pytest.mark.parametrize("name", sorted(RANGES))
def test_the_schema_knows_the_range_of_a_number(name: str) -> None:
    entry, (low, high) = SETTINGS[key_of(name)], RANGES[name]

    assert (entry["minimum"], entry["maximum"]) == (1024 if name == "probe_port" else low, high)


def test_it_may_read_and_write_nothing_in_the_cluster(render: Render) -> None:
    role = only(of_agent(render(power())), "ClusterRole")

    assert role["rules"] == [
        {"apiGroups": ["windlass.dev"], "resources": ["gpuclasses"], "verbs": ["list"]},
        {"apiGroups": ["resource.k8s.io"], "resources": ["resourceslices"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        {"apiGroups": ["windlass.dev"], "resources": ["inferenceservices"], "verbs": ["get"]},
    ]


def test_in_namespaced_mode_it_reads_pods_and_services_there_only(render: Render) -> None:
    manifests = of_agent(render(power() | {"watchNamespaces": ["team-a", "team-b"]}))

    resources = {
        item["metadata"].get("namespace", ""): [rule["resources"][0] for rule in item["rules"]]
        for item in manifests
        if item["kind"] in ("Role", "ClusterRole")
    }
    assert resources == {
        "": ["gpuclasses", "resourceslices"],
        "team-a": ["pods", "inferenceservices"],
        "team-b": ["pods", "inferenceservices"],
    }
    assert settings_of(manifests).namespaces == ("team-a", "team-b")


def test_its_pod_holds_one_capability_and_writes_to_one_folder(render: Render) -> None:
    pod = pod_of(render(power()))
    (container,) = pod["containers"]

    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert writable == [PowerSettings().state_folder]
    assert "limits" in container["resources"]
    assert "nvidia.com/gpu" not in str(container["resources"])


def test_privileged_only_where_asked(render: Render) -> None:
    (container,) = pod_of(render(power(privileged=True)))["containers"]

    assert container["securityContext"] == {"readOnlyRootFilesystem": True, "privileged": True}


def test_folders_follow_the_settings(render: Render) -> None:
    settings = {"podResourcesSocket": "/run/kubelet/pods/kubelet.sock", "stateFolder": "/srv/power"}

    pod = pod_of(render(power(settings=settings)))

    hosts = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert hosts == mounts == {"pod-resources": "/run/kubelet/pods", "state": "/srv/power"}


@pytest.mark.parametrize("namespace", ["windlass-system", "gpu-power"])
def test_everything_of_it_is_in_its_namespace_and_replicas_let_it_in(render: Render, namespace: str) -> None:
    manifests = render(power(namespace="" if namespace == "windlass-system" else namespace))

    agent = of_agent(manifests)
    assert {item["metadata"].get("namespace", namespace) for item in agent} == {namespace}
    (subject,) = only(agent, "ClusterRoleBinding")["subjects"]
    assert (subject["name"], subject["namespace"]) == (NAME, namespace)
    fleet = parse_settings(environment_of(manifests)).fleet
    assert fleet == dataclasses.replace(FleetSettings(), power_agent_namespace=namespace)
    component = only(agent, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
    assert component[labels.COMPONENT] == labels.POWER_AGENT
    assert component[labels.PART_OF] == labels.PRODUCT


def test_its_metrics_keep_the_namespace_of_the_service_they_are_about(render: Render) -> None:
    monitors = of_agent(render(power() | {"monitoring": {"podMonitor": {"enabled": True}}}))

    (endpoint,) = only(monitors, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["honorLabels"] is True
    assert endpoint["port"] in [port["name"] for port in pod_of(monitors)["containers"][0]["ports"]]
