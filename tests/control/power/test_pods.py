"""What the agent asks of the API server, through the real client against a server of canned answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from windlass_operator.api.v1alpha1.power import PowerProfile
from windlass_operator.cluster.kubernetes_access import Access
from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.domain import labels
from windlass_operator.errors import ClusterUnavailable
from windlass_operator.power.energy import ServiceKey
from windlass_operator.power.pods import SELECTOR, PodDirectory, ReplicaPod

from .test_agent import POLICY

Json = dict[str, Any]


class Server:
    """Paths and what they answer; requests are recorded."""

    def __init__(self) -> None:
        self.answers: dict[str, Json | int] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, dict(request.query)))
        answer = self.answers.get(request.path, 404)
        if isinstance(answer, int):
            return web.json_response({"message": "as the test wants"}, status=answer)
        return web.json_response(answer)

    def put(self, pods: list[Json], services: list[Json], classes: list[Json]) -> None:
        self.answers["/api/v1/pods"] = {"items": pods}
        self.answers["/apis/windlass.dev/v1alpha1/gpuclasses"] = {"items": classes}
        for item in services:
            name, namespace = item["metadata"]["name"], item["metadata"]["namespace"]
            self.answers[f"/apis/windlass.dev/v1alpha1/namespaces/{namespace}/inferenceservices/{name}"] = item


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[KubernetesClient]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    async with TestServer(app) as running:

        async def access() -> Access:
            return Access(str(running.make_url("")).rstrip("/"), "test")

        async with KubernetesClient(access, 5) as opened:
            yield opened


def build_pod(name: str = "chat-1", service: str = "chat", gpu_class: str = "h200") -> Json:
    names = {"windlass.dev/service": service, "windlass.dev/gpu-class": gpu_class}
    return {"metadata": {"name": name, "namespace": "team-a", "labels": names}, "status": {"podIP": "10.0.0.7"}}


def build_service(name: str = "chat", **spec: Any) -> Json:
    return {"metadata": {"name": name, "namespace": "team-a"}, "spec": {"model": {"uri": "hf://a/b"}, **spec}}


def build_class(name: str = "h200", **spec: Any) -> Json:
    base = {"nodeSelector": {"a": "b"}, "memory": "141Gi", "computeCapability": "9.0"}
    return {"metadata": {"name": name}, "spec": {**base, **spec}}


async def replicas(client: KubernetesClient, *namespaces: str) -> dict[str, ReplicaPod]:
    return await PodDirectory(client, "node-1", namespaces).replicas()


async def test_a_replica_has_its_service_address_policy_and_profile(server: Server, client: KubernetesClient) -> None:
    server.put([build_pod()], [build_service(powerProfile="Performance")], [build_class(power=POLICY)])

    found = (await replicas(client))["team-a/chat-1"]

    assert (found.service, found.ip) == (ServiceKey("team-a", "chat"), "10.0.0.7")
    assert found.holder.profile is PowerProfile.PERFORMANCE
    assert found.holder.power is not None
    assert found.holder.power.bounds.max_watts == 700


async def test_only_replicas_of_this_node_are_asked_for(server: Server, client: KubernetesClient) -> None:
    server.put([], [], [])

    assert await replicas(client) == {}
    assert server.asked == [
        ("/api/v1/pods", {"limit": "500", "labelSelector": SELECTOR, "fieldSelector": "spec.nodeName=node-1"})
    ]


async def test_in_namespaced_mode_only_those_are_asked(server: Server, client: KubernetesClient) -> None:
    server.answers["/api/v1/namespaces/team-a/pods"] = {"items": []}
    server.answers["/api/v1/namespaces/team-b/pods"] = {"items": []}

    await replicas(client, "team-a", "team-b")

    assert [path for path, _ in server.asked] == ["/api/v1/namespaces/team-a/pods", "/api/v1/namespaces/team-b/pods"]


async def test_a_service_is_asked_for_once_and_by_name(server: Server, client: KubernetesClient) -> None:
    server.put([build_pod("chat-1"), build_pod("chat-2")], [build_service()], [build_class(power=POLICY)])

    assert len(await replicas(client)) == 2
    asked = [query for path, query in server.asked if path.endswith("/inferenceservices/chat")]
    assert asked == [{"resourceVersion": "0"}]


@pytest.mark.parametrize(
    ("service", "gpu_class"),
    [
        pytest.param(build_service(powerProfile="Turbo"), build_class(power=POLICY), id="profile of a later release"),
        pytest.param(build_service(), build_class(power={"bounds": {}}), id="policy of a later release"),
        pytest.param(build_service(), build_class(), id="class without policy"),
        pytest.param(build_service(), build_class("other", power=POLICY), id="unknown class"),
        pytest.param(build_service("other"), build_class(power=POLICY), id="deleted service"),
    ],
)
async def test_what_is_not_understood_is_no_policy(
    server: Server, client: KubernetesClient, service: Json, gpu_class: Json
) -> None:
    server.put([build_pod()], [service], [gpu_class])

    assert (await replicas(client))["team-a/chat-1"].holder.power is None


async def test_a_claim_that_may_have_ended_on_another_class_has_no_policy(
    server: Server, client: KubernetesClient
) -> None:
    pod = build_pod()
    pod["metadata"]["labels"]["windlass.dev/claim-template"] = "chat-1a2b"
    server.put([pod], [build_service(powerProfile="Eco")], [build_class(power=POLICY)])

    assert labels.CLAIM_TEMPLATE in pod["metadata"]["labels"]
    assert (await replicas(client))["team-a/chat-1"].holder.power is None


async def test_the_tier_decides_where_the_service_does_not(server: Server, client: KubernetesClient) -> None:
    policy = {**POLICY, "tierDefaults": {"batch": "Eco"}}
    server.put([build_pod()], [build_service(tier="Batch")], [build_class(power=policy)])

    assert (await replicas(client))["team-a/chat-1"].holder.profile is PowerProfile.ECO


async def test_a_refusal_names_the_permission(server: Server, client: KubernetesClient) -> None:
    server.answers["/api/v1/pods"] = 403

    with pytest.raises(ClusterUnavailable, match="expected the permission to read"):
        await replicas(client)


async def test_a_server_without_dra_publishes_no_devices(client: KubernetesClient) -> None:
    assert await PodDirectory(client, "node-1", ()).claimed_devices() == {}


async def test_resource_slices_are_asked_for_by_node(server: Server, client: KubernetesClient) -> None:
    device = {"name": "gpu-0", "attributes": {"uuid": {"string": "GPU-a"}}}
    spec = {"driver": "gpu.nvidia.com", "pool": {"name": "node-1"}, "devices": [device]}
    server.answers["/apis/resource.k8s.io/v1/resourceslices"] = {"items": [{"spec": spec}]}

    found = await PodDirectory(client, "node-1", ()).claimed_devices()

    assert list(found.values()) == ["GPU-a"]
    assert server.asked[0][1]["fieldSelector"] == "spec.nodeName=node-1"
