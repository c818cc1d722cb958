"""A tenant's namespaces: bounded, isolated, and never deleted by us."""

from __future__ import annotations

from typing import Any

import pytest

from support.builders import build_gpu_class, build_snapshot, build_tenant
from windlass_operator.api.v1alpha1.tenant import Role
from windlass_operator.domain import labels
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_tenant
from windlass_operator.render.fleet import render_fleet
from windlass_operator.render.manifest import Manifest
from windlass_operator.render.tenant import RULES, render_tenant

SETTINGS = FleetSettings()


def render(*world: Any, **fields: Any) -> list[Manifest]:
    tenant = build_tenant(**fields)
    return list(render_tenant(plan_tenant(tenant, build_snapshot(tenant, *world), SETTINGS), SETTINGS))


def find(manifests: list[Manifest], kind: str, name: str, namespace: str = "team-a") -> Manifest | None:
    return next(
        (
            item
            for item in manifests
            if item["kind"] == kind
            and item["metadata"]["name"] == name
            and item["metadata"].get("namespace", namespace) == namespace
        ),
        None,
    )


def test_namespaces_come_first_are_restricted_and_outlive_the_tenant():
    manifests = render(namespaces=["team-a", "team-b"])

    spaces = manifests[:2]
    assert [item["metadata"]["name"] for item in spaces] == ["team-a", "team-b"]
    for item in spaces:
        assert item["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
        assert item["metadata"]["labels"][labels.TENANT] == "acme"
        assert item["metadata"]["annotations"] == {labels.PRUNE: labels.PRUNE_NEVER}
    assert all(labels.is_prunable(item) for item in manifests[2:])


def test_namespaces_of_others_and_of_the_platform_are_left_alone():
    older = build_tenant("older", ["shared"], created="2025-01-01T00:00:00Z")

    manifests = render(older, namespaces=["shared", "kube-system", "team-a"])

    touched = {item["metadata"].get("namespace", item["metadata"]["name"]) for item in manifests}
    assert touched == {"team-a"}


def test_the_quota_bounds_gpus_memory_and_services_in_every_namespace():
    manifests = render(
        build_gpu_class(),
        namespaces=["team-a", "team-b"],
        gpus={"h200": 4},
        quota={"cpu": "64000m", "memory": "512Gi", "services": 10},
    )

    for namespace in ("team-a", "team-b"):
        quota = find(manifests, "ResourceQuota", "windlass-quota", namespace)
        assert quota is not None
        assert quota["spec"]["hard"] == {
            "count/inferenceservices.windlass.dev": "10",
            "limits.memory": "512Gi",
            "requests.cpu": "64",
            "requests.memory": "512Gi",
            "requests.nvidia.com/gpu": "4",
        }


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        pytest.param({}, {"type": "Container", "defaultRequest": {"cpu": "1", "memory": "4Gi"}}, id="requests only"),
        pytest.param(
            {"memory": "64Gi"},
            {"type": "Container", "defaultRequest": {"cpu": "1", "memory": "4Gi"}, "default": {"memory": "16Gi"}},
            id="a memory quota demands a limit of every pod",
        ),
    ],
)
def test_containers_that_name_nothing_get_what_the_quota_counts(quota, expected):
    limits = find(render(quota=quota), "LimitRange", "windlass-defaults")

    assert limits is not None
    assert limits["spec"]["limits"] == [expected]


@pytest.mark.parametrize(
    ("tiers", "denied"),
    [
        pytest.param(["Realtime", "Standard", "Batch"], None, id="all granted"),
        pytest.param(["Batch"], ["windlass-realtime", "windlass-standard"], id="only the lowest"),
    ],
)
def test_pods_of_a_tier_that_was_not_granted_are_refused_by_the_cluster_itself(tiers, denied):
    quota = find(render(allowedTiers=tiers), "ResourceQuota", "windlass-denied-tiers")

    if denied is None:
        assert quota is None
    else:
        assert quota is not None
        assert quota["spec"]["hard"] == {"pods": "0"}
        assert quota["spec"]["scopeSelector"]["matchExpressions"][0]["values"] == denied


def test_subjects_are_bound_to_the_role_they_were_given():
    manifests = render(
        subjects=[
            {"kind": "User", "name": "ann"},
            {"kind": "ServiceAccount", "name": "bot", "namespace": "tools", "role": "Viewer"},
        ]
    )

    editor, viewer = (find(manifests, "RoleBinding", f"windlass-{role}") for role in ("editor", "viewer"))
    assert editor is not None
    assert viewer is not None
    assert editor["subjects"] == [{"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"}]
    assert viewer["subjects"] == [{"kind": "ServiceAccount", "name": "bot", "namespace": "tools"}]
    assert editor["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "windlass-editor"}


def test_without_subjects_there_are_no_roles():
    assert not {"Role", "RoleBinding"} & {item["kind"] for item in render()}


@pytest.mark.parametrize("role", list(Role))
def test_no_role_reads_secrets_runs_commands_or_writes_anything_but_services(role):
    for rule in RULES[role]:
        assert not {"secrets", "pods/exec", "pods/attach", "pods/portforward", "serviceaccounts", "*"} & set(
            rule["resources"]
        )
        assert "*" not in rule["verbs"]
        if set(rule["verbs"]) - {"get", "list", "watch"}:
            assert role is Role.EDITOR
            assert rule["apiGroups"] == ["windlass.dev"]
            assert not any(resource.endswith("/status") for resource in rule["resources"])


@pytest.mark.parametrize(
    ("isolation", "present"),
    [pytest.param("Isolated", True, id="isolated"), pytest.param("Open", False, id="open")],
)
def test_isolation_denies_by_default_and_trusts_gateway_metrics_and_the_tenant(isolation, present):
    policy = find(
        render(namespaces=["team-a", "team-b"], isolation=isolation), "NetworkPolicy", "windlass-tenant-isolation"
    )

    assert (policy is not None) == present
    if policy is not None:
        assert policy["spec"]["podSelector"] == {}
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        trusted = [
            peer["namespaceSelector"]["matchExpressions"][0]["values"] for peer in policy["spec"]["ingress"][0]["from"]
        ]
        assert trusted == [["windlass-system"], ["monitoring"], ["team-a", "team-b"]]


def test_the_three_tiers_have_ordered_priorities_and_batch_preempts_nobody():
    classes = render_fleet(SETTINGS)

    assert [item["metadata"]["name"] for item in classes] == [
        "windlass-realtime",
        "windlass-standard",
        "windlass-batch",
    ]
    values = [item["value"] for item in classes]
    assert values == sorted(values, reverse=True)
    assert values[0] < 1_000_000_000, "above that lies Kubernetes' own"
    assert [item["preemptionPolicy"] for item in classes] == ["PreemptLowerPriority", "PreemptLowerPriority", "Never"]
    assert not any(item.get("globalDefault") for item in classes)
