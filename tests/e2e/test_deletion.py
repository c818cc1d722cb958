"""Things go when they are told to, with or without an operator, and take exactly what is theirs with them."""

from __future__ import annotations

import pytest

from support.kube_client import KubeClient, eventually
from support.operator_process import OperatorProcess
from support.services import API, CHILD_KINDS, OWNED, children, service, tenant, wait_ready

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("clean")]

EVERYTHING = [*CHILD_KINDS, ("apps/v1", "ReplicaSet"), ("v1", "Pod"), ("discovery.k8s.io/v1", "EndpointSlice")]


def left_of(kube: KubeClient, name: str, namespace: str = "team-a") -> list[str]:
    found = [f"{API} {name}"] if kube.get(API, "InferenceService", name, namespace) else []
    selector = f"app.kubernetes.io/instance={name}"
    return found + [
        f"{kind} {item['metadata']['name']}"
        for api, kind in EVERYTHING
        for item in kube.list(api, kind, namespace, selector)
    ]


@pytest.mark.parametrize("policy", ["Background", "Foreground"])
def test_deletion_finishes_with_the_operator_stopped(kube: KubeClient, operator: OperatorProcess, policy: str) -> None:
    kube.apply(service(scaling={"minReplicas": 2, "maxReplicas": 3}))
    wait_ready(kube)
    assert operator.stop() == 0

    kube.request("DELETE", kube.path_of(service()), {"propagationPolicy": policy})

    eventually(lambda: left_of(kube, "chat"), lambda found: not found, timeout_s=30)


@pytest.mark.usefixtures("operator")
def test_deletion_takes_everything_and_touches_no_neighbour(kube: KubeClient) -> None:
    for name in ("chat", "chat-2"):
        kube.apply(service(name))
    for name in ("chat", "chat-2"):
        wait_ready(kube, name)
    neighbours = {item["metadata"]["uid"] for item in children(kube, "chat-2")}

    kube.delete(API, "InferenceService", "chat", "team-a")

    eventually(lambda: left_of(kube, "chat"), lambda found: not found)
    assert {item["metadata"]["uid"] for item in children(kube, "chat-2")} == neighbours


@pytest.mark.parametrize("operator_runs", [True, False], ids=["with the operator", "without it"])
def test_a_namespace_with_services_can_be_deleted(
    kube: KubeClient, operator: OperatorProcess, operator_runs: bool
) -> None:
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "short-lived"}})
    kube.apply(tenant("short", "short-lived"))
    kube.apply(service("chat", "short-lived"))
    wait_ready(kube, "chat", "short-lived")
    kube.delete(API, "Tenant", "short")
    if not operator_runs:
        operator.stop()

    kube.delete("v1", "Namespace", "short-lived")

    eventually(lambda: kube.get("v1", "Namespace", "short-lived"), lambda found: found is None, timeout_s=60)


@pytest.mark.usefixtures("operator")
def test_a_namespace_under_a_live_tenant_comes_back_empty(kube: KubeClient) -> None:
    """The Tenant still asks for it; the services that were in it are gone for good."""
    kube.apply(tenant("short", "short-lived"))
    first = eventually(lambda: kube.get("v1", "Namespace", "short-lived"), bool)
    kube.apply(service("chat", "short-lived"))
    wait_ready(kube, "chat", "short-lived")

    kube.delete("v1", "Namespace", "short-lived")

    def again() -> str | None:
        return (kube.get("v1", "Namespace", "short-lived") or {}).get("metadata", {}).get("uid")

    try:
        eventually(again, lambda uid: uid not in (None, first["metadata"]["uid"]), timeout_s=60)
        assert kube.list(API, "InferenceService", "short-lived") == []
    finally:
        kube.delete(API, "Tenant", "short")
        kube.delete("v1", "Namespace", "short-lived")


@pytest.mark.usefixtures("operator")
def test_deleting_a_tenant_keeps_its_namespaces_and_their_data(kube: KubeClient) -> None:
    kube.apply(tenant("leaving", "leaving-ns", isolation="Isolated"))
    eventually(lambda: kube.list("networking.k8s.io/v1", "NetworkPolicy", "leaving-ns"), bool)
    kube.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "theirs", "namespace": "leaving-ns"}, "data": {}}
    )

    kube.delete(API, "Tenant", "leaving")

    policies = eventually(
        lambda: kube.list("networking.k8s.io/v1", "NetworkPolicy", "leaving-ns", OWNED), lambda found: not found
    )
    assert policies == []
    assert kube.get("v1", "Namespace", "leaving-ns") is not None
    assert kube.get("v1", "ConfigMap", "theirs", "leaving-ns") is not None
    kube.delete("v1", "Namespace", "leaving-ns")


@pytest.mark.usefixtures("operator")
def test_nothing_that_windlass_makes_carries_a_finalizer(kube: KubeClient) -> None:
    kube.apply(service(scaling={"minReplicas": 1, "maxReplicas": 2}))
    wait_ready(kube)

    owned = [item for api, kind in EVERYTHING for item in kube.list(api, kind, "team-a", OWNED)]
    ours = [item for kind in ("InferenceService", "Tenant", "GPUClass") for item in kube.list(API, kind)]

    marked = [item for item in owned + ours if item["metadata"].get("finalizers")]
    assert marked == []


@pytest.mark.usefixtures("operator")
def test_a_service_deleted_and_created_again_under_its_name_gets_children_of_its_own(kube: KubeClient) -> None:
    first = kube.apply(service())
    wait_ready(kube)

    kube.delete(API, "InferenceService", "chat", "team-a")
    second = kube.apply(service())

    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    wait_ready(kube, timeout_s=60)
    owners = {owner["uid"] for item in children(kube) for owner in item["metadata"]["ownerReferences"]}
    assert owners == {second["metadata"]["uid"]}
