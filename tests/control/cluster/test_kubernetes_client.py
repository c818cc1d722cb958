"""The client against scripted answers on loopback: every failure becomes what the caller can do about it."""

from __future__ import annotations

import asyncio
import json
import textwrap

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from windlass_operator import errors
from windlass_operator.cluster.kubernetes_access import Access, access_loader
from windlass_operator.cluster.kubernetes_client import KubernetesClient, NotFound
from windlass_operator.cluster.kubernetes_kinds import KINDS, OWNERS, Ref

SERVICE = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "chat", "namespace": "ns"}}


class Script:
    """Answers requests with what the test lines up, and records them."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict, dict]] = []
        self.requests: list[tuple[str, str, dict, dict, bytes]] = []
        self.tokens = ["token-1"]
        self.logins = 0
        self.hang = False

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append(
            (request.method, request.path, dict(request.query), dict(request.headers), await request.read())
        )
        if self.hang:
            await asyncio.sleep(30)
        status, body, headers = self.answers.pop(0) if self.answers else (200, {}, {})
        return web.json_response(body, status=status, headers=headers)

    def answer(self, status: int, body: dict | None = None, **headers: str) -> None:
        self.answers.append((status, body or {}, {key.replace("_", "-"): value for key, value in headers.items()}))


@pytest.fixture
async def script():
    script = Script()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", script.handle)
    async with TestServer(app) as server:
        script.url = str(server.make_url("")).rstrip("/")
        yield script


@pytest.fixture
async def client(script):
    async def load() -> Access:
        script.logins += 1
        return Access(
            script.url, "a test", authorization=f"Bearer {script.tokens[min(script.logins, len(script.tokens)) - 1]}"
        )

    async with KubernetesClient(load, request_timeout_s=0.3) as client:
        yield client


@pytest.mark.parametrize(
    ("status", "body", "headers", "expected", "detail"),
    [
        pytest.param(409, {"message": "conflict"}, {}, errors.ApplyConflict, None, id="409 conflict"),
        pytest.param(429, {}, {"Retry_After": "7"}, errors.RetryLater, 7.0, id="429 waits as told"),
        pytest.param(429, {}, {"Retry_After": "soon"}, errors.RetryLater, 5.0, id="429 with a date"),
        pytest.param(429, {}, {"Retry_After": "99999"}, errors.RetryLater, 120.0, id="429 with an absurd wait"),
        pytest.param(500, {}, {}, errors.RetryLater, 1.0, id="500 server trouble"),
        pytest.param(
            500,
            {"message": 'Internal error occurred: failed calling webhook "gate.example.com": connection refused'},
            {},
            errors.ApplyRejected,
            "WebhookFailed",
            id="500 of a webhook",
        ),
        pytest.param(503, {}, {"Retry_After": "3"}, errors.RetryLater, 3.0, id="503 overload"),
        pytest.param(410, {}, {}, errors.RetryLater, 1.0, id="410 gone"),
        pytest.param(422, {"message": "spec.replicas: Invalid"}, {}, errors.ApplyRejected, "Invalid", id="422 invalid"),
        pytest.param(
            403, {"message": "exceeded quota: gpus"}, {}, errors.ApplyRejected, "QuotaExceeded", id="403 quota"
        ),
        pytest.param(
            403, {"message": "forbidden by policy"}, {}, errors.ApplyRejected, "Forbidden", id="403 forbidden"
        ),
        pytest.param(404, {"message": 'namespaces "ns" not found'}, {}, NotFound, "NotFound", id="404 no namespace"),
    ],
)
async def test_an_answer_becomes_what_the_caller_can_do(script, client, status, body, headers, expected, detail):
    script.answer(status, body, **headers)

    with pytest.raises(expected) as caught:
        await client.apply(SERVICE)

    assert type(caught.value) is expected
    if detail is not None:
        assert detail in (getattr(caught.value, "after_s", None), getattr(caught.value, "reason", None))


async def test_apply_is_server_side_with_force_strict_and_under_our_name(script, client):
    script.answer(201, {**SERVICE, "metadata": {**SERVICE["metadata"], "resourceVersion": "5"}})

    stored = await client.apply(SERVICE)
    method, path, query, headers, body = script.requests[0]

    assert stored["metadata"]["resourceVersion"] == "5"
    assert (method, path) == ("PATCH", "/api/v1/namespaces/ns/services/chat")
    assert query == {"fieldManager": "windlass", "force": "true", "fieldValidation": "Strict"}
    assert headers["Content-Type"] == "application/apply-patch+yaml"
    assert json.loads(body) == SERVICE


async def test_a_missing_object_reads_as_none_and_deletes_as_false(script, client):
    script.answer(404, {})
    script.answer(404, {})

    assert await client.get(Ref("Service", "ns", "chat")) is None
    assert await client.delete(Ref("Service", "ns", "chat"), "uid") is False


async def test_delete_names_the_uid_so_that_a_successor_survives(script, client):
    await client.delete(Ref("Service", "ns", "chat"), "uid-1")

    assert json.loads(script.requests[0][4])["preconditions"] == {"uid": "uid-1"}


async def test_a_refused_token_is_renewed_once_and_the_request_repeated(script, client):
    script.tokens = ["old", "new"]
    script.answer(401, {})
    script.answer(200, {"gitVersion": "v1.37.0"})

    assert await client.version() == "v1.37.0"
    assert [headers["Authorization"] for *_, headers, _ in script.requests] == ["Bearer token-1", "Bearer new"]


async def test_credentials_that_stay_refused_are_reported_and_not_retried_for_ever(script, client):
    script.answer(401, {"message": "Unauthorized"})
    script.answer(401, {"message": "Unauthorized"})

    with pytest.raises(errors.ClusterUnavailable, match="valid credentials"):
        await client.version()
    assert len(script.requests) == 2


async def test_reading_without_permission_says_so(script, client):
    script.answer(403, {"message": "cannot list"})

    with pytest.raises(errors.ClusterUnavailable, match="permission to read"):
        await client.list_metadata(KINDS["Node"], "", "")


async def test_a_server_that_does_not_answer_in_time_is_tried_later(script, client):
    script.hang = True

    with pytest.raises(errors.RetryLater, match=r"no answer within 0\.3 s"):
        await client.version()


async def test_no_server_at_all_names_the_address_and_where_it_came_from():
    async def load() -> Access:
        return Access("http://127.0.0.1:9", "kubeconfig x")

    async with KubernetesClient(load) as client:
        with pytest.raises(errors.ClusterUnavailable, match=r"http://127\.0\.0\.1:9 \(kubeconfig x\)"):
            await client.version()


async def test_a_long_listing_is_read_page_by_page(script, client):
    heavy = {"managedFields": [{"manager": "m"}], "annotations": {"a": "b"}}
    script.answer(200, {"items": [{"metadata": {"name": "a", "uid": "u", **heavy}}], "metadata": {"continue": "next"}})
    script.answer(200, {"items": [{"metadata": {"name": "b"}}], "metadata": {}})

    listed = await client.list_metadata(KINDS["Pod"], "ns", "app=x")

    assert listed == [{"name": "a", "uid": "u"}, {"name": "b"}]
    assert script.requests[0][2] == {"limit": "500", "labelSelector": "app=x"}
    assert script.requests[1][2] == {"limit": "500", "labelSelector": "app=x", "continue": "next"}


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        pytest.param([{"name": "tenants"}], True, id="served"),
        pytest.param([{"name": "pods"}], False, id="other kinds only"),
    ],
)
async def test_a_kind_is_served_when_discovery_lists_it(script, client, resources, expected):
    script.answer(200, {"resources": resources})

    assert await client.serves(OWNERS[1]) is expected


async def test_a_group_that_does_not_exist_serves_nothing(script, client):
    script.answer(404, {})

    assert await client.serves(OWNERS[0]) is False


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
clusters: [{name: k, cluster: {server: "https://10.0.0.1:6443/", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: secret}}]
contexts: [{name: c, context: {cluster: k, user: u}}]
"""


async def test_a_kubeconfig_gives_server_and_token(tmp_path):
    path = tmp_path / "config"
    path.write_text(KUBECONFIG)

    access = await access_loader(str(path))()

    assert (access.server, access.authorization, access.verify) == ("https://10.0.0.1:6443", "Bearer secret", False)


async def test_a_login_plugin_gives_its_token(tmp_path):
    plugin = tmp_path / "login"
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "fresh"},
    }
    plugin.write_text(f"#!/bin/sh\necho '{json.dumps(credential)}'\n")
    plugin.chmod(0o755)
    path = tmp_path / "config"
    exec_user = {
        "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    }
    path.write_text(KUBECONFIG.replace("{token: secret}", json.dumps(exec_user)))

    assert (await access_loader(str(path))()).authorization == "Bearer fresh"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(None, "expected a file, found none", id="no file"),
        pytest.param("", "expected a kubeconfig", id="empty"),
        pytest.param("a: [", "kubeconfig", id="no yaml"),
        pytest.param(
            textwrap.dedent(KUBECONFIG).replace("current-context: c", "current-context: other"),
            "other",
            id="no such context",
        ),
    ],
)
async def test_a_kubeconfig_that_cannot_be_used_says_why(tmp_path, text, words):
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)

    with pytest.raises(errors.ClusterUnavailable, match=words):
        await access_loader(str(path))()
