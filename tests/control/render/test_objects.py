"""Every object has the shape its kind has in Kubernetes: the client's own models know each field, or it is misspelt."""

from __future__ import annotations

import json
from typing import Any

import kubernetes.client as k8s
import pytest

from support.builders import build_gpu_class, build_service, build_snapshot, build_tenant
from windlass_operator.domain import labels
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_service, plan_tenant
from windlass_operator.render.fleet import render_fleet
from windlass_operator.render.manifest import Manifest
from windlass_operator.render.tenant import render_tenant
from windlass_operator.render.workload import render_service

SETTINGS = FleetSettings()
MODELS = {
    "PriorityClass": "V1PriorityClass",
    "Namespace": "V1Namespace",
    "ResourceQuota": "V1ResourceQuota",
    "LimitRange": "V1LimitRange",
    "Role": "V1Role",
    "RoleBinding": "V1RoleBinding",
    "NetworkPolicy": "V1NetworkPolicy",
    "ServiceAccount": "V1ServiceAccount",
    "ConfigMap": "V1ConfigMap",
    "Service": "V1Service",
    "Deployment": "V1Deployment",
    "HorizontalPodAutoscaler": "V2HorizontalPodAutoscaler",
    "PodDisruptionBudget": "V1PodDisruptionBudget",
}


def all_objects() -> list[Manifest]:
    tenant = build_tenant(
        namespaces=["team-a"],
        gpus={"h200": 64},
        quota={"memory": "1Ti", "cpu": "10", "services": 9},
        subjects=[
            {"kind": "User", "name": "ann"},
            {"kind": "ServiceAccount", "name": "bot", "namespace": "tools", "role": "Viewer"},
        ],
    )
    services = [
        build_service(
            "hub",
            classes=["h200"],
            uri="hf://org/chat@v1",
            scaling={
                "maxReplicas": 4,
                "metrics": [
                    {"type": kind, "target": 80}
                    for kind in ("QueueDepth", "RunningRequests", "CacheUse", "CPUUtilization")
                ],
            },
        ),
        build_service(
            "claim",
            classes=["h200"],
            uri="pvc://models/chat",
            podTemplate={"tolerations": [{"key": "a", "value": "b"}]},
        ),
        build_service(
            "image",
            uri="oci://r.io/chat:1",
            replicas=2,
            podTemplate={"resources": {"memory": "8Gi", "ephemeralStorage": "9Gi"}},
        ),
    ]
    snapshot = build_snapshot(tenant, build_gpu_class(), *services, nodes=None)
    plans = [plan_service(service, snapshot, SETTINGS) for service in services]
    return [
        *render_fleet(SETTINGS),
        *render_tenant(plan_tenant(tenant, snapshot, SETTINGS), SETTINGS),
        *(child for plan in plans for child in render_service(plan, SETTINGS)),
    ]


OBJECTS = all_objects()
IDS = [f"{item['kind']}/{item['metadata']['name']}" for item in OBJECTS]


@pytest.fixture(scope="module")
def client() -> k8s.ApiClient:
    return k8s.ApiClient(k8s.Configuration())


@pytest.mark.parametrize("manifest", OBJECTS, ids=IDS)
def test_no_field_is_unknown_to_kubernetes(client: k8s.ApiClient, manifest: Manifest):
    read: Any = client.deserialize(json.dumps(manifest), MODELS[manifest["kind"]], "application/json")

    assert client.sanitize_for_serialization(read) == manifest


def test_every_kind_is_covered():
    assert {item["kind"] for item in OBJECTS} == set(MODELS)


@pytest.mark.parametrize("manifest", OBJECTS, ids=IDS)
def test_labels_and_names_fit_their_limits_and_owners_are_left_to_the_cluster(manifest: Manifest):
    metadata = manifest["metadata"]

    assert "ownerReferences" not in metadata
    assert len(metadata["name"]) <= 253
    assert all(len(value) <= 63 for value in metadata["labels"].values())


def test_only_namespaces_are_kept_from_pruning():
    assert {item["kind"] for item in OBJECTS if not labels.is_prunable(item)} == {"Namespace"}
    assert all(not labels.is_prunable(item) for item in OBJECTS if item["kind"] == "Namespace")


@pytest.mark.parametrize(
    "manifest", [item for item in OBJECTS if item["kind"] not in ("Namespace",)], ids=lambda item: item["kind"]
)
def test_everything_else_says_who_manages_it(manifest: Manifest):
    assert manifest["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "windlass-operator"
    assert manifest["metadata"]["labels"]["app.kubernetes.io/part-of"] == "windlass"
