"""The API as a whole, with a fake API server behind it: who gets in, and what comes out."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from windlass_contract.metric_names import KV_USE_RATIO, REQUESTS_RUNNING, REQUESTS_WAITING, SERVICE_DEMAND
from windlass_operator.cluster.gateways import Demand
from windlass_operator.errors import RetryLater
from windlass_operator.serve.app import MetricsApi
from windlass_operator.serve.paths import Attributes
from windlass_operator.serve.readings import Replica
from windlass_operator.serve.samples import PodKey, Sample, Samples
from windlass_operator.serve.telemetry import Telemetry
from windlass_operator.serve.users import FrontProxy, User

NOW = 1000.0
PODS = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/team-a/pods"
SERVICES = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/team-a/inferenceservices.windlass.dev"
EXTERNAL = "/apis/external.metrics.k8s.io/v1beta1/namespaces/team-a"
TOKEN = {"Authorization": "Bearer good"}


class World:
    """Everything behind the API."""

    front_proxy = FrontProxy("pem")
    problem = ""

    def __init__(self) -> None:
        self.known: dict[str, Samples] = {}
        self.allowed = True
        self.away = False
        self.asked: list[tuple[User, Attributes]] = []
        self.demand = Demand()
        self.pods = [self._replica("chat-1"), self._replica("chat-2"), self._replica("other", instance="embed")]

    def _replica(self, name: str, instance: str = "chat") -> Replica:
        labels = {"app.kubernetes.io/instance": instance}
        return Replica(PodKey("team-a", name), instance, labels, "10.0.0.7", ready=True)

    async def replicas(self) -> tuple[Replica, ...]:
        return tuple(self.pods)

    async def samples(self, metric: str) -> Samples:
        if metric == KV_USE_RATIO:
            raise ZeroDivisionError
        return self.known.get(metric, {})

    async def get(self) -> Demand:
        """What gateways are asked for."""
        return self.demand

    def problem_of(self, metric: str) -> str:
        return "Prometheus is away"

    async def close(self) -> None:
        """Nothing runs."""

    async def user_of_token(self, token: str) -> User | None:
        if self.away:
            raise RetryLater("the API server is away")
        return User("jane") if token == "good" else None

    async def allows(self, user: User, attributes: Attributes) -> bool:
        self.asked.append((user, attributes))
        return self.allowed


@pytest.fixture
def world() -> World:
    """A queue of 4 at chat-1 and of 5 at chat-2."""
    found = World()
    found.known[REQUESTS_WAITING] = {
        PodKey("team-a", "chat-1"): Sample(4, NOW - 5),
        PodKey("team-a", "chat-2"): Sample(5, NOW - 5),
    }
    return found


@contextlib.asynccontextmanager
async def client_of(world: World) -> AsyncIterator[TestClient[Any, Any]]:
    parts: Any = world
    api = MetricsApi(parts, parts, parts, parts, Telemetry(), parts, max_age_s=60, wall_clock=lambda: NOW)
    async with TestClient(TestServer(api.build_app())) as client:
        yield client


async def ask(world: World, path: str, *, method: str = "GET", **more: Any) -> tuple[int, Any]:
    async with client_of(world) as client, client.request(method, path, **{"headers": TOKEN, **more}) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize(
    ("path", "params", "expected"),
    [
        pytest.param(f"{PODS}/*/{REQUESTS_WAITING}", {}, {"chat-1": "4", "chat-2": "5"}, id="all pods"),
        pytest.param(
            f"{PODS}/*/{REQUESTS_WAITING}",
            {"labelSelector": "app.kubernetes.io/instance in (chat)", "metricLabelSelector": ""},
            {"chat-1": "4", "chat-2": "5"},
            id="pods of one service",
        ),
        pytest.param(f"{PODS}/chat-2/{REQUESTS_WAITING}", {}, {"chat-2": "5"}, id="one pod"),
        pytest.param(f"{SERVICES}/chat/{REQUESTS_WAITING}", {}, {"chat": "9"}, id="one service"),
    ],
)
async def test_values(world: World, path: str, params: dict[str, str], expected: dict[str, str]) -> None:
    code, body = await ask(world, path, params=params)

    assert code == 200
    assert {item["describedObject"]["name"]: item["value"] for item in body["items"]} == expected


async def test_the_demand_for_a_service_is_told_without_a_replica(world: World) -> None:
    world.pods, world.demand = [], Demand({("team-a", "chat"): 3, ("team-b", "chat"): 9}, asked=2)

    code, body = await ask(world, f"{SERVICES}/chat/{SERVICE_DEMAND}")
    assert (code, [item["value"] for item in body["items"]]) == (200, ["3"])
    code, body = await ask(world, f"{SERVICES}/unheard-of/{SERVICE_DEMAND}")
    assert (code, [item["value"] for item in body["items"]]) == (200, ["0"])
    code, body = await ask(world, f"{EXTERNAL}/{SERVICE_DEMAND}", params={"labelSelector": "service=chat"})
    assert (code, [item["value"] for item in body["items"]]) == (200, ["3"])


async def test_replicas_that_see_more_than_the_gateways_count(world: World) -> None:
    """Requests that reach replicas by another way keep them alive too."""
    world.known[REQUESTS_RUNNING] = dict.fromkeys(world.known[REQUESTS_WAITING], Sample(2, NOW - 5))
    world.demand = Demand({("team-a", "chat"): 3}, asked=1)

    code, body = await ask(world, f"{SERVICES}/chat/{SERVICE_DEMAND}")

    assert (code, [item["value"] for item in body["items"]]) == (200, ["13"])


async def test_a_demand_that_may_be_too_low_is_not_told(world: World) -> None:
    world.pods, world.demand = [], Demand({("team-a", "chat"): 3}, missing=1, asked=2)
    code, body = await ask(world, f"{SERVICES}/chat/{SERVICE_DEMAND}")
    assert (code, "all 2 gateways, 1 gave none" in body["message"]) == (404, True)

    world.pods, world.demand = World().pods, Demand(asked=1)
    code, body = await ask(world, f"{SERVICES}/chat/{SERVICE_DEMAND}")
    assert (code, "found 2 of 4" in body["message"]) == (404, True)

    world.demand = Demand()
    code, body = await ask(world, f"{SERVICES}/chat/{SERVICE_DEMAND}")
    assert (code, "expected a gateway" in body["message"]) == (404, True)


async def test_a_pod_has_no_demand(world: World) -> None:
    code, body = await ask(world, f"{PODS}/*/{SERVICE_DEMAND}")

    assert (code, "about a service" in body["message"]) == (404, True)


async def test_external_values(world: World) -> None:
    code, body = await ask(world, f"{EXTERNAL}/{REQUESTS_WAITING}", params={"labelSelector": "service=chat"})

    assert (code, [item["value"] for item in body["items"]]) == (200, ["9"])


@pytest.mark.parametrize(
    ("path", "params", "code", "words"),
    [
        pytest.param(f"{PODS}/*/up", {}, 404, "up: expected one of windlass_", id="a metric that is not ours"),
        pytest.param(f"{PODS}/gone/{REQUESTS_WAITING}", {}, 404, "for 0 matching replicas", id="a pod that is gone"),
        pytest.param(f"{PODS}/other/{REQUESTS_WAITING}", {}, 404, "(Prometheus is away)", id="a pod without a value"),
        pytest.param(
            f"{SERVICES}/embed/{REQUESTS_WAITING}", {}, 404, "ready replicas, found 0", id="a service without"
        ),
        pytest.param(f"{EXTERNAL}/{REQUESTS_WAITING}", {}, 404, "InferenceService team-a/embed", id="a sum with a gap"),
        pytest.param(f"{PODS}/*/{REQUESTS_WAITING}", {"labelSelector": "a>1"}, 400, "found 'a>1'", id="no selector"),
        pytest.param(
            f"{PODS}/*/{REQUESTS_WAITING}", {"metricLabelSelector": "a=b"}, 400, "metricLabelSelector", id="of series"
        ),
        pytest.param("/apis/apps/v1", {}, 404, "serves no /apis/apps/v1", id="another API"),
        pytest.param("/openapi/v2", {}, 404, "serves no /openapi/v2", id="no OpenAPI"),
        pytest.param(f"{PODS}/*/{KV_USE_RATIO}", {}, 500, "internal error", id="a bug of ours"),
    ],
)
async def test_what_cannot_be_told_is_a_status(
    world: World, path: str, params: dict[str, str], code: int, words: str
) -> None:
    found, body = await ask(world, path, params=params)

    assert found == code
    assert (body["kind"], body["status"], body["code"]) == ("Status", "Failure", code)
    assert words in body["message"]


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="nobody"),
        pytest.param({"Authorization": "Bearer bad"}, id="a wrong token"),
        pytest.param({"Authorization": "Bearer "}, id="an empty token"),
        pytest.param({"Authorization": "Basic good"}, id="a password"),
        pytest.param({"X-Remote-User": "system:admin"}, id="a header without a certificate"),
    ],
)
async def test_whoever_is_unknown_is_refused_before_anything_is_said(world: World, headers: dict[str, str]) -> None:
    for path in ("/apis", f"{PODS}/*/{REQUESTS_WAITING}", "/metrics", "/anything"):
        code, body = await ask(world, path, headers=headers)
        assert (code, body["reason"]) == (401, "Unauthorized")
    assert world.asked == []


async def test_whoever_may_not_is_refused_with_name_and_wish(world: World) -> None:
    world.allowed = False

    code, body = await ask(world, f"{PODS}/*/{REQUESTS_WAITING}")

    assert (code, body["reason"]) == (403, "Forbidden")
    assert body["message"] == "user 'jane' may not get pods of custom.metrics.k8s.io in namespace team-a"
    ((user, attributes),) = world.asked
    assert user.groups == ("system:authenticated",)
    assert (attributes.subresource, attributes.name) == (REQUESTS_WAITING, "*")


async def test_while_the_api_server_is_away_nobody_gets_in(world: World) -> None:
    world.away = True

    code, body = await ask(world, "/apis")

    assert (code, body["reason"]) == (503, "ServiceUnavailable")


async def test_nothing_can_be_written(world: World) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        code, body = await ask(world, f"{PODS}/*/{REQUESTS_WAITING}", method=method)
        assert (code, body["reason"]) == (405, "MethodNotAllowed")
    assert {attributes.verb for _, attributes in world.asked} == {"post", "put", "patch", "delete"}


async def test_discovery_and_health(world: World) -> None:
    assert (await ask(world, "/apis"))[1]["kind"] == "APIGroupList"
    assert (await ask(world, "/apis/custom.metrics.k8s.io"))[1]["kind"] == "APIGroup"
    assert (await ask(world, "/apis/external.metrics.k8s.io/v1beta1"))[1]["kind"] == "APIResourceList"
    async with client_of(world) as client:
        for path in ("/healthz", "/livez", "/readyz"):
            answer: aiohttp.ClientResponse = await client.get(path)
            assert (answer.status, await answer.text()) == (200, "ok")
