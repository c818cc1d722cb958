"""Who may do what: the operator with the chart's roles, tenants among themselves, and what a spec cannot smuggle in."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.control_plane import ControlPlane
from support.kube_client import KubeClient, Manifest, RefusedError, eventually
from support.operator_process import OperatorProcess
from support.services import API, condition, deployment, pods, service, tenant, wait_ready
from support.tokens import request_token

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("clean")]

GROUP = "windlass.dev"
RBAC = "rbac.authorization.k8s.io"
EDITOR = {"kind": "ServiceAccount", "name": "ci", "role": "Editor"}
VIEWER = {"kind": "ServiceAccount", "name": "viewer", "role": "Viewer"}


@pytest.fixture(scope="module")
def operator_client(control_plane: ControlPlane, kube: KubeClient, operator_kubeconfig: Path) -> KubeClient:
    """A client that is the operator's service account."""
    (workload,) = kube.list("apps/v1", "Deployment", "windlass-system", "app.kubernetes.io/component=operator")
    account = workload["spec"]["template"]["spec"]["serviceAccountName"]
    return KubeClient(control_plane.access(request_token(kube, "windlass-system", account)))


@pytest.fixture(scope="module")
def members(
    control_plane: ControlPlane, kube: KubeClient, shared_operator: OperatorProcess
) -> Iterator[dict[str, KubeClient]]:
    """Two tenants, red and blue, each with a namespace: clients of red's editor and viewer and of blue's editor."""
    if not shared_operator.running:
        shared_operator.start()
    for name in ("red", "blue"):
        subjects = [{**subject, "namespace": name} for subject in (EDITOR, VIEWER)]
        kube.apply(tenant(name, name, subjects=subjects, gpus={"h200": 1}, allowedTiers=["Standard", "Batch"]))
        eventually(lambda name=name: kube.get("v1", "Namespace", name), bool)
        for account in ("ci", "viewer"):
            metadata = {"name": account, "namespace": name}
            kube.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
        eventually(lambda name=name: kube.list(f"{RBAC}/v1", "RoleBinding", name), lambda found: len(found) == 2)
    wanted = {"red": ("red", "ci"), "red viewer": ("red", "viewer"), "blue": ("blue", "ci")}
    yield {name: KubeClient(control_plane.access(request_token(kube, *who))) for name, who in wanted.items()}
    for name in ("red", "blue"):
        kube.delete(API, "Tenant", name)
        kube.delete("v1", "Namespace", name)
    eventually(lambda: [kube.get("v1", "Namespace", name) for name in ("red", "blue")], lambda found: not any(found))


@pytest.mark.parametrize(
    ("verb", "group", "resource"),
    [
        pytest.param("*", "*", "*", id="be cluster-admin"),
        pytest.param("get", "", "secrets", id="read Secrets"),
        pytest.param("list", "", "secrets", id="list Secrets"),
        pytest.param("watch", "", "secrets", id="watch Secrets"),
        pytest.param("create", "", "secrets", id="write Secrets"),
        pytest.param("create", "", "pods", id="create pods"),
        pytest.param("create", "", "pods/exec", id="exec into pods"),
        pytest.param("delete", "", "pods", id="delete pods"),
        pytest.param("patch", "", "nodes", id="change nodes"),
        pytest.param("delete", "", "namespaces", id="delete namespaces"),
        pytest.param("escalate", RBAC, "roles", id="escalate roles"),
        pytest.param("bind", RBAC, "roles", id="bind roles it does not hold"),
        pytest.param("create", RBAC, "clusterroles", id="write ClusterRoles"),
        pytest.param("create", RBAC, "clusterrolebindings", id="write ClusterRoleBindings"),
        pytest.param("impersonate", "", "users", id="impersonate"),
        pytest.param("create", "", "serviceaccounts/token", id="issue tokens"),
        pytest.param("patch", "apiextensions.k8s.io", "customresourcedefinitions", id="change CRDs"),
        pytest.param("create", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", id="install webhooks"),
        pytest.param("patch", GROUP, "tenants", id="change tenants"),
        pytest.param("patch", GROUP, "gpuclasses", id="change GPU classes"),
    ],
)
def test_the_operator_may_not(operator_client: KubeClient, verb: str, group: str, resource: str) -> None:
    assert not operator_client.may(verb, group, resource, "team-a")


def test_the_operator_may_keep_leases_in_its_own_namespace_only(operator_client: KubeClient) -> None:
    def may_update(namespace: str, name: str) -> bool:
        return operator_client.may("update", "coordination.k8s.io", "leases", namespace, name)

    assert may_update("windlass-system", "windlass-operator")
    assert not may_update("windlass-system", "somebody-elses")
    assert not may_update("kube-system", "kube-scheduler")


def test_a_tenants_editor_serves_a_model_in_its_own_namespace(kube: KubeClient, members: dict[str, KubeClient]) -> None:
    members["red"].create(service("chat", "red"))

    wait_ready(kube, "chat", "red")

    assert members["red viewer"].get(API, "InferenceService", "chat", "red") is not None


@pytest.mark.parametrize(
    ("verb", "group", "resource"),
    [
        (verb, *where)
        for where in ((GROUP, "inferenceservices"), ("", "pods"), ("", "pods/log"), ("", "configmaps"), ("", "secrets"))
        for verb in ("get", "list", "watch")
    ]
    + [
        ("create", GROUP, "inferenceservices"),
        ("patch", GROUP, "inferenceservices"),
        ("delete", GROUP, "inferenceservices"),
        ("patch", GROUP, "inferenceservices/scale"),
        ("create", "", "pods/exec"),
        ("create", "", "pods/portforward"),
        ("create", "", "services/proxy"),
        ("patch", "apps", "deployments"),
    ],
)
def test_a_tenant_cannot_reach_into_another(
    members: dict[str, KubeClient], verb: str, group: str, resource: str
) -> None:
    assert not members["red"].may(verb, group, resource, "blue")
    assert not members["red"].may(verb, group, resource), "in all namespaces at once"


@pytest.mark.parametrize(
    ("verb", "group", "resource"),
    [
        pytest.param("get", "", "secrets", id="read Secrets"),
        pytest.param("create", "", "pods", id="create pods"),
        pytest.param("create", "", "pods/exec", id="exec into replicas"),
        pytest.param("patch", "apps", "deployments", id="change what the operator made"),
        pytest.param("patch", GROUP, "inferenceservices/status", id="write a status"),
        pytest.param("patch", "", "resourcequotas", id="change its quota"),
        pytest.param("delete", "", "resourcequotas", id="delete its quota"),
        pytest.param("delete", "networking.k8s.io", "networkpolicies", id="open its network"),
        pytest.param("create", RBAC, "rolebindings", id="let others in"),
        pytest.param("patch", "", "namespaces", id="change the Pod Security of its namespace"),
        pytest.param("list", GROUP, "tenants", id="see who else is here"),
        pytest.param("patch", GROUP, "tenants", id="change its Tenant"),
    ],
)
def test_an_editor_may_not_even_at_home(members: dict[str, KubeClient], verb: str, group: str, resource: str) -> None:
    assert not members["red"].may(verb, group, resource, "red")


def test_a_viewer_only_looks(members: dict[str, KubeClient]) -> None:
    viewer = members["red viewer"]

    assert viewer.may("list", GROUP, "inferenceservices", "red")
    assert viewer.may("get", "", "pods/log", "red")
    for verb in ("create", "patch", "update", "delete"):
        assert not viewer.may(verb, GROUP, "inferenceservices", "red")


def test_a_flood_of_one_tenant_leaves_the_others_quota_alone(kube: KubeClient, members: dict[str, KubeClient]) -> None:
    gpu: dict[str, Any] = {"accelerator": {"classes": ["h200"]}}
    for number in range(5):
        members["red"].create(service(f"flood-{number}", "red", **gpu))

    members["blue"].create(service("mine", "blue", **gpu))

    wait_ready(kube, "mine", "blue")
    running = [pod for number in range(5) for pod in pods(kube, f"flood-{number}", "red")]
    assert len(running) <= 1


SMUGGLED: dict[str, dict[str, Any]] = {
    "a privileged container": {"podTemplate": {"containers": [{"securityContext": {"privileged": True}}]}},
    "a host path": {"podTemplate": {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}},
    "the host's network": {"podTemplate": {"hostNetwork": True}},
    "the host's processes": {"podTemplate": {"hostPID": True}},
    "a foreign service account": {"podTemplate": {"serviceAccountName": "admin"}},
    "a priority class": {"podTemplate": {"priorityClassName": "system-node-critical"}},
    "a node": {"podTemplate": {"nodeName": "plain-1"}},
    "an image": {"podTemplate": {"image": "attacker/image"}},
    "a pod security context": {"podTemplate": {"securityContext": {"runAsUser": 0}}},
    "an init container": {"podTemplate": {"initContainers": [{"name": "x", "image": "attacker/image"}]}},
    "a Secret in the environment": {
        "podTemplate": {"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}
    },
    "a library preload": {"podTemplate": {"env": [{"name": "LD_PRELOAD", "value": "/tmp/x.so"}]}},
    "all devices": {"podTemplate": {"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}},
    "an operator's label": {"podTemplate": {"labels": {"app.kubernetes.io/managed-by": "windlass-operator"}}},
    "another tenant's label": {"podTemplate": {"labels": {"windlass.dev/tenant": "blue"}}},
    "an AppArmor annotation": {
        "podTemplate": {"annotations": {"container.apparmor.security.beta.kubernetes.io/runtime": "unconfined"}}
    },
    "a second network": {"podTemplate": {"annotations": {"k8s.v1.cni.cncf.io/networks": "admin-net"}}},
    "every taint": {"podTemplate": {"tolerations": [{"operator": "Exists"}]}},
    "the control plane's nodes": {
        "podTemplate": {"tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]}
    },
    "a path out of a volume": {"model": {"uri": "pvc://models/../../etc"}},
    "a file of the node": {"model": {"uri": "file:///models/../../etc/shadow"}},
    "a plain web address": {"model": {"uri": "http://169.254.169.254/latest"}},
}


@pytest.mark.parametrize("spec", SMUGGLED.values(), ids=SMUGGLED.keys())
def test_a_spec_cannot_smuggle_in(members: dict[str, KubeClient], spec: dict[str, Any]) -> None:
    hostile = service("trojan", "red")
    hostile["spec"] = {**hostile["spec"], **copy.deepcopy(spec)}

    with pytest.raises(RefusedError) as caught:
        members["red"].create(hostile, dry_run=True)

    assert caught.value.code in (400, 422)  # unknown to the schema, or refused by a rule


def test_fields_the_schema_does_not_know_are_dropped_by_clients_that_do_not_ask_for_strictness(
    kube: KubeClient, members: dict[str, KubeClient]
) -> None:
    hostile = service("trojan", "red", podTemplate={"hostNetwork": True, "volumes": [{"hostPath": {"path": "/"}}]})

    path = members["red"].collection_of(API, "InferenceService", "red") + "?fieldValidation=Ignore"
    stored = members["red"].request("POST", path, hostile)

    assert "hostNetwork" not in stored["spec"].get("podTemplate", {})
    wait_ready(kube, "trojan", "red")
    made = deployment(kube, "trojan", "red")["spec"]["template"]["spec"]
    assert "hostNetwork" not in made
    assert not any("hostPath" in volume for volume in made["volumes"])


def test_a_tier_that_the_tenant_was_not_granted_is_refused_whoever_asks(
    kube: KubeClient, members: dict[str, KubeClient]
) -> None:
    members["red"].create(service("urgent", "red", tier="Realtime"))

    refused = eventually(
        lambda: condition(kube, "urgent", "Admitted", "red"), lambda found: found.get("status") == "False"
    )
    assert "Realtime" in refused["message"]
    pod: Manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "urgent", "namespace": "red"},
        "spec": {**restricted(), "priorityClassName": "windlass-realtime"},
    }
    with pytest.raises(RefusedError, match="exceeded quota: windlass-denied-tiers"):
        kube.create(pod)


def test_a_tenants_namespace_refuses_pods_below_the_restricted_standard(
    kube: KubeClient, members: dict[str, KubeClient]
) -> None:
    spec = restricted()
    spec["containers"][0]["securityContext"]["privileged"] = True
    spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "red"}, "spec": spec}

    with pytest.raises(RefusedError, match='violates PodSecurity "restricted'):
        kube.create(pod)


def test_replicas_run_with_an_account_that_holds_no_token_and_no_rights(
    control_plane: ControlPlane, kube: KubeClient, members: dict[str, KubeClient]
) -> None:
    members["red"].create(service("chat", "red"))
    wait_ready(kube, "chat", "red")

    (pod,) = pods(kube, "chat", "red")
    account = pod["spec"]["serviceAccountName"]
    replica = KubeClient(control_plane.access(request_token(kube, "red", account)))

    assert account == "chat-runtime"
    assert pod["spec"]["automountServiceAccountToken"] is False
    for group, resource in ((GROUP, "inferenceservices"), ("", "secrets"), ("", "pods"), ("", "configmaps")):
        assert not replica.may("get", group, resource, "red")


def restricted() -> dict[str, Any]:
    """A pod that the restricted standard accepts."""
    return {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "c",
                "image": "none",
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    }
