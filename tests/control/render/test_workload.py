"""A service's children: which exist, in which order, and which fields belong to somebody else."""

from __future__ import annotations

from typing import Any

import pytest

from support.builders import build_gpu_class, build_service, build_snapshot, build_tenant
from windlass_contract import metric_names
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_service
from windlass_operator.render.manifest import Manifest
from windlass_operator.render.workload import render_service

SETTINGS = FleetSettings()


def render(*world: Any, settings: FleetSettings = SETTINGS, **fields: Any) -> dict[str, Manifest]:
    service = build_service(**fields)
    plan = plan_service(service, build_snapshot(service, *world), settings)
    return {child["kind"]: child for child in render_service(plan, settings)}


BASE = ["ServiceAccount", "ConfigMap", "NetworkPolicy", "Service", "Deployment"]


@pytest.mark.parametrize(
    ("fields", "extra"),
    [
        pytest.param({}, ["PodDisruptionBudget"], id="fixed"),
        pytest.param(
            {"scaling": {"maxReplicas": 3}}, ["HorizontalPodAutoscaler", "PodDisruptionBudget"], id="autoscaled"
        ),
        pytest.param({"rollout": {"minAvailable": 0}}, [], id="nothing promised"),
        pytest.param({"suspend": True}, [], id="suspended"),
        pytest.param({"suspend": True, "scaling": {"maxReplicas": 3}}, [], id="suspended: no autoscaler may wake it"),
        pytest.param({"replicas": 0}, [], id="zero replicas"),
    ],
)
def test_children_come_in_the_order_pods_need_them(fields, extra):
    assert list(render(**fields)) == BASE + extra


@pytest.mark.parametrize(
    ("fields", "replicas"),
    [
        pytest.param({"replicas": 3}, 3, id="fixed"),
        pytest.param({}, 1, id="default"),
        pytest.param({"suspend": True}, 0, id="suspended"),
        pytest.param({"scaling": {"maxReplicas": 3}}, None, id="an autoscaler owns it: the field is absent"),
    ],
)
def test_replicas_are_written_only_while_nobody_else_owns_them(fields, replicas):
    assert render(**fields)["Deployment"]["spec"].get("replicas") == replicas


def test_the_selector_is_frozen_and_finds_exactly_the_services_own_pods():
    children = render(podTemplate={"labels": {"team": "a"}})
    deployment = children["Deployment"]["spec"]

    frozen = {"app.kubernetes.io/instance": "chat", "app.kubernetes.io/component": "runtime"}
    assert deployment["selector"] == {"matchLabels": frozen}
    assert frozen.items() <= deployment["template"]["metadata"]["labels"].items()
    assert children["Service"]["spec"]["selector"] == frozen
    assert children["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == frozen
    assert children["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == frozen


def test_the_strategy_is_the_planned_one():
    strategy = render(replicas=2)["Deployment"]["spec"]["strategy"]

    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        pytest.param({"type": "QueueDepth", "target": 4}, (metric_names.REQUESTS_WAITING, "4"), id="queue"),
        pytest.param({"type": "RunningRequests", "target": 48}, (metric_names.REQUESTS_RUNNING, "48"), id="running"),
        pytest.param(
            {"type": "CacheUse", "target": 85},
            (metric_names.KV_USE_RATIO, "850m"),
            id="cache use: percent becomes a ratio",
        ),
        pytest.param({"type": "CacheUse", "target": 100}, (metric_names.KV_USE_RATIO, "1"), id="a full cache"),
    ],
)
def test_pod_metrics_carry_the_runtimes_names_and_units(metric, expected):
    (rendered,) = render(scaling={"maxReplicas": 3, "metrics": [metric]})["HorizontalPodAutoscaler"]["spec"]["metrics"]

    assert rendered["type"] == "Pods"
    assert (rendered["pods"]["metric"]["name"], rendered["pods"]["target"]["averageValue"]) == expected


def test_cpu_use_is_a_share_of_a_request_that_always_exists():
    children = render(scaling={"maxReplicas": 3, "metrics": [{"type": "CPUUtilization", "target": 70}]})

    (metric,) = children["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["resource"] == {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}
    assert children["Deployment"]["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "1"


def test_an_autoscaler_grows_at_once_and_shrinks_after_the_delay():
    behavior = render(scaling={"maxReplicas": 3, "scaleDownDelaySeconds": 600})["HorizontalPodAutoscaler"]["spec"][
        "behavior"
    ]

    assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 600


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"replicas": 3, "rollout": {"minAvailable": 2}}, 2, id="as promised"),
        pytest.param({"replicas": 1, "rollout": {"minAvailable": 2}}, 1, id="never more than there are"),
    ],
)
def test_the_budget_protects_what_was_promised_but_never_broken_pods(fields, expected):
    budget = render(**fields)["PodDisruptionBudget"]["spec"]

    assert budget["minAvailable"] == expected
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def peers(policy: Manifest) -> list[tuple[tuple[str, ...], bool]]:
    """(namespaces, whether only some pods of them) of every allowed source."""
    return [
        (tuple(peer["namespaceSelector"]["matchExpressions"][0]["values"]), "podSelector" in peer)
        for peer in policy["spec"]["ingress"][0]["from"]
    ]


def test_only_gateway_metrics_and_the_tenants_namespaces_reach_a_replica():
    policy = render(build_tenant(namespaces=["team-a", "team-b"]))["NetworkPolicy"]

    assert peers(policy) == [(("windlass-system",), True), (("monitoring",), False), (("team-a", "team-b"), False)]
    assert policy["spec"]["ingress"][0]["ports"] == [{"port": 8000, "protocol": "TCP"}]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_without_tenants_only_the_services_own_namespace_is_trusted():
    assert peers(render()["NetworkPolicy"])[-1] == (("team-a",), False)


@pytest.mark.parametrize(
    ("uri", "ports"),
    [
        pytest.param("file:///models/chat", [53, 53], id="a local model needs names only"),
        pytest.param("pvc://models", [53, 53], id="a volume needs names only"),
        pytest.param("hf://org/chat@v1", [53, 53, 443], id="the hub needs HTTPS"),
    ],
)
def test_a_replica_reaches_out_only_where_its_model_lies(uri, ports):
    egress = render(uri=uri)["NetworkPolicy"]["spec"]["egress"]

    assert [port["port"] for rule in egress for port in rule["ports"]] == ports
    for rule in egress[1:]:
        assert any("169.254.0.0/16" in peer["ipBlock"]["except"] for peer in rule["to"])


def test_settings_of_the_installation_reach_the_objects():
    settings = FleetSettings(
        runtime_image="r.io/runtime@sha256:1", gateway_namespace="edge", metrics_namespace="prom", dns_namespace="dns"
    )
    children = render(settings=settings)

    assert children["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"] == "r.io/runtime@sha256:1"
    assert [names for names, _ in peers(children["NetworkPolicy"])][:2] == [("edge",), ("prom",)]
    dns = children["NetworkPolicy"]["spec"]["egress"][0]["to"][0]["namespaceSelector"]["matchExpressions"][0]["values"]
    assert dns == ["dns"]


def test_the_account_is_never_the_namespaces_default_and_has_no_token():
    account = render(name="default")["ServiceAccount"]

    assert account["metadata"]["name"] == "default-runtime"
    assert account["automountServiceAccountToken"] is False


def test_rendering_is_deterministic_whatever_order_labels_were_written_in():
    first = render(
        build_gpu_class(nodeSelector={"a": "1", "b": "2"}),
        classes=["h200"],
        podTemplate={"nodeSelector": {"x": "1", "c": "2"}},
    )
    second = render(
        build_gpu_class(nodeSelector={"b": "2", "a": "1"}),
        classes=["h200"],
        podTemplate={"nodeSelector": {"c": "2", "x": "1"}},
    )

    assert str(first["Deployment"]) == str(second["Deployment"])
