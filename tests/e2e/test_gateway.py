"""The gateway in a cluster: `windlass-gateway run` with the chart's account learns its routes from the operator's
Secret and its replicas from the endpoints of Services, which Kubernetes keeps for pods of fake nodes.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.audit_log import AuditLog
from support.cluster_gateway import GATEWAY, SYSTEM, ClusterGateway, PodNetwork, running_gateway, serving_pods
from support.control_plane import ControlPlane
from support.kube_client import KubeClient, eventually
from support.operator_process import OperatorProcess, running_operator
from support.services import API, pods, service, tenant, wait_ready
from support.tokens import request_token
from windlass_contract.endpoints import digest_key

pytestmark = [pytest.mark.cluster, pytest.mark.own_plane, pytest.mark.usefixtures("clean")]

ROOT = Path(__file__).parents[2]
SECRET = f"{GATEWAY}-routes"
KEY = "key-of-tenant-a-0123456789"
RIVAL_KEY = "key-of-tenant-b-9876543210"
GPUS = {"a": {"h200": 6, "a100": 4, "a100-slice": 4, "edge-l4": 2}, "b": {"h200": 2}}


@pytest.fixture(scope="module")
def chart(kube: KubeClient, operator_kubeconfig: Path, helm: Any) -> Iterator[None]:
    """The chart with its gateway; its own pods run on fake nodes and do nothing."""
    place = ("windlass", str(ROOT / "helm" / "windlass"), "--namespace", SYSTEM)
    helm("upgrade", "--install", *place, "--set=gateway.enabled=true")
    for name, key in (("a", KEY), ("b", RIVAL_KEY)):
        access = {"keys": [{"name": "first", "sha256": digest_key(key)}]}
        kube.apply(tenant(name, f"team-{name}", gpus=GPUS[name], access=access))
    yield
    for name in ("a", "b"):
        kube.apply(tenant(name, f"team-{name}", gpus=GPUS[name]))
    helm("upgrade", *place, "--reset-values")


@pytest.fixture(scope="module")
def operator_with_gateway(
    chart: None, shared_operator: OperatorProcess, operator_kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """An operator that the chart tells about its gateway."""
    if shared_operator.running:
        shared_operator.stop()
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    with running_operator(operator_kubeconfig, log, {"WINDLASS_ROUTES_SECRET": SECRET}) as operator:
        eventually(operator.leads, bool, timeout_s=30)
        yield operator


@pytest.fixture(scope="module")
def network() -> Iterator[PodNetwork]:
    with serving_pods() as network:
        yield network


@pytest.fixture(scope="module")
def gateway(
    control_plane: ControlPlane,
    kube: KubeClient,
    operator_with_gateway: OperatorProcess,
    network: PodNetwork,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ClusterGateway]:
    access = control_plane.access(request_token(kube, SYSTEM, GATEWAY))
    with running_gateway(access, SECRET, network, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


def status_of(gateway: ClusterGateway, path: str = "team-a/chat", key: str = KEY) -> int:
    return gateway.ask(path, key)[0]


def wait_status(gateway: ClusterGateway, status: int, path: str = "team-a/chat", key: str = KEY) -> None:
    eventually(lambda: status_of(gateway, path, key), lambda found: found == status)


def test_a_service_is_reached_through_its_ready_pods(kube: KubeClient, gateway: ClusterGateway) -> None:
    kube.apply(service(replicas=2))
    wait_ready(kube)
    wait_status(gateway, 200)

    answered = eventually(
        lambda: {gateway.ask("team-a/chat", KEY)[1]["pod"] for _ in range(4)}, lambda found: len(found) == 2
    )

    assert answered == {pod["metadata"]["name"] for pod in pods(kube)}


def test_scaling_in_takes_no_request_down(kube: KubeClient, gateway: ClusterGateway) -> None:
    kube.apply(service(replicas=3))
    wait_ready(kube)
    wait_status(gateway, 200)

    kube.apply(service(replicas=1))
    seen = []
    eventually(lambda: seen.append(status_of(gateway)) or len(pods(kube)), lambda count: count == 1, timeout_s=60)
    seen += [status_of(gateway) for _ in range(20)]

    assert set(seen) == {200}
    assert {gateway.ask("team-a/chat", KEY)[1]["pod"] for _ in range(5)} == {pods(kube)[0]["metadata"]["name"]}


def test_a_key_opens_the_services_of_its_tenant_only(kube: KubeClient, gateway: ClusterGateway) -> None:
    kube.apply(service())
    kube.apply(service(namespace="team-b"))
    wait_status(gateway, 200)
    wait_status(gateway, 200, "team-b/chat", RIVAL_KEY)

    refused = [status_of(gateway, "team-b/chat", KEY), status_of(gateway, "team-a/chat", RIVAL_KEY)]

    assert refused == [404, 404]
    assert status_of(gateway, "team-a/chat", "somebody") == 401


def test_a_revoked_key_stops_opening(kube: KubeClient, gateway: ClusterGateway) -> None:
    kube.apply(service(namespace="team-b"))
    wait_status(gateway, 200, "team-b/chat", RIVAL_KEY)
    fresh = {"keys": [{"name": "second", "sha256": digest_key("another-key-of-b")}]}

    kube.apply(tenant("b", "team-b", gpus=GPUS["b"], access=fresh))

    try:
        wait_status(gateway, 401, "team-b/chat", RIVAL_KEY)
        wait_status(gateway, 200, "team-b/chat", "another-key-of-b")
    finally:
        old = {"keys": [{"name": "first", "sha256": digest_key(RIVAL_KEY)}]}
        kube.apply(tenant("b", "team-b", gpus=GPUS["b"], access=old))


def test_rates_of_a_tenant_hold_for_its_own_requests_until_they_are_lifted(
    kube: KubeClient, gateway: ClusterGateway
) -> None:
    kube.apply(service())
    kube.apply(service(namespace="team-b"))
    wait_status(gateway, 200)
    wait_status(gateway, 200, "team-b/chat", RIVAL_KEY)
    access = {"keys": [{"name": "first", "sha256": digest_key(RIVAL_KEY)}]}
    few = {"requestsPerMinute": 1, "services": [{"namespace": "team-b", "name": "chat", "concurrentRequests": 1}]}

    kube.apply(tenant("b", "team-b", gpus=GPUS["b"], access=access, rates=few))
    try:
        wait_status(gateway, 429, "team-b/chat", RIVAL_KEY)
        _, words, headers = gateway.ask("team-b/chat", RIVAL_KEY)
        others = [status_of(gateway) for _ in range(5)]
    finally:
        kube.apply(tenant("b", "team-b", gpus=GPUS["b"], access=access))
    wait_status(gateway, 200, "team-b/chat", RIVAL_KEY)
    again = [status_of(gateway, "team-b/chat", RIVAL_KEY) for _ in range(5)]

    assert words["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(headers["Retry-After"]) <= 60
    assert headers["X-Ratelimit-Limit-Requests"] == "1"
    assert set(others) == set(again) == {200}
    assert 'limit="requestsPerMinute"' in gateway.metrics()


def test_a_deleted_service_is_no_longer_found(kube: KubeClient, gateway: ClusterGateway) -> None:
    kube.apply(service("keeper"))
    kube.apply(service())
    wait_status(gateway, 200)

    kube.delete(API, "InferenceService", "chat", "team-a")

    wait_status(gateway, 404)


def test_a_service_without_pods_answers_503_with_a_time_to_come_back(kube: KubeClient, gateway: ClusterGateway) -> None:
    kube.apply(service(replicas=0))

    wait_status(gateway, 503)

    assert gateway.ask("team-a/chat", KEY)[2]["Retry-After"]


def test_clients_do_not_reach_the_metrics_that_name_tenants(gateway: ClusterGateway) -> None:
    assert "windlass_gateway_requests_total" in gateway.metrics()

    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{gateway.url}/metrics", timeout=5)
    refusal.value.close()
    assert refusal.value.code == 404


def test_the_gateway_may_read_one_secret_and_endpoints_and_nothing_else(
    control_plane: ControlPlane, kube: KubeClient, gateway: ClusterGateway
) -> None:
    mine = KubeClient(control_plane.access(request_token(kube, SYSTEM, GATEWAY)))

    assert mine.may("list", "", "secrets", SYSTEM, SECRET)
    assert mine.may("watch", "discovery.k8s.io", "endpointslices")
    assert not mine.may("list", "", "secrets", SYSTEM)
    assert not mine.may("get", "", "secrets", "team-a")
    assert not mine.may("update", "", "secrets", SYSTEM, SECRET)
    assert not mine.may("list", "", "pods", "team-a")
    assert not mine.may("list", "windlass.dev", "tenants")


def test_the_gateway_serves_on_while_the_operator_restarts(
    kube: KubeClient, gateway: ClusterGateway, operator_with_gateway: OperatorProcess
) -> None:
    kube.apply(service())
    wait_ready(kube)
    wait_status(gateway, 200)
    before = kube.get("v1", "Secret", SECRET, SYSTEM)
    assert before is not None

    operator_with_gateway.stop()
    serving = status_of(gateway)
    operator_with_gateway.start()
    eventually(operator_with_gateway.leads, bool, timeout_s=30)
    kube.apply(service("another"))
    wait_ready(kube, "another")
    wait_status(gateway, 200, "team-a/another")
    after = kube.get("v1", "Secret", SECRET, SYSTEM)
    assert after is not None

    assert serving == 200, "the gateway needs no operator to serve"
    assert before["data"] != after["data"]


def test_a_helm_upgrade_leaves_the_table_that_the_operator_wrote(
    kube: KubeClient, gateway: ClusterGateway, helm: Any
) -> None:
    kube.apply(service())
    wait_status(gateway, 200)

    helm(
        "upgrade", "windlass", str(ROOT / "helm" / "windlass"), "--namespace", SYSTEM,
        "--set=gateway.enabled=true", "--set=gateway.replicas=3",
    )  # fmt: skip

    secret = kube.get("v1", "Secret", SECRET, SYSTEM)
    assert secret is not None
    assert secret["data"]
    assert status_of(gateway) == 200


def test_the_table_is_written_only_when_routes_change(
    kube: KubeClient, gateway: ClusterGateway, audit: AuditLog
) -> None:
    kube.apply(service(replicas=1))
    wait_ready(kube)
    wait_status(gateway, 200)
    secret = kube.get("v1", "Secret", SECRET, SYSTEM)
    assert secret is not None

    kube.apply(service(replicas=3))
    wait_ready(kube)
    eventually(lambda: len({gateway.ask("team-a/chat", KEY)[1].get("pod") for _ in range(6)}), lambda seen: seen == 3)

    after = kube.get("v1", "Secret", SECRET, SYSTEM)
    assert after is not None
    assert after["metadata"]["resourceVersion"] == secret["metadata"]["resourceVersion"]
