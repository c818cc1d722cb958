"""The certificate is made once for all adapters, and announced only where the API is ours."""

from __future__ import annotations

import base64
import copy
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Authority
from windlass_operator.errors import ApplyConflict, RetryLater
from windlass_operator.serve.certificates import Bundle, Renewal, issue_bundle, service_hosts
from windlass_operator.serve.settings import AdapterSettings
from windlass_operator.serve.telemetry import Telemetry
from windlass_operator.serve.tls import ServingContext
from windlass_operator.serve.trust import FIELD_MANAGER, TrustKeeper, registration_problem
from windlass_operator.serve.users import CONFIG_PATH

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
SETTINGS = AdapterSettings()
SECRET = "/api/v1/namespaces/windlass-system/secrets/windlass-metrics-adapter-certificate"
CUSTOM = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta2.custom.metrics.k8s.io"


class FakeClient:
    """Objects by path. `rival` is what another adapter writes into the Secret right before our next write."""

    def __init__(self, authority: str) -> None:
        service = {"namespace": "windlass-system", "name": "windlass-metrics-adapter"}
        self.objects: dict[str, dict[str, Any]] = {
            CONFIG_PATH: {"data": {"requestheader-client-ca-file": authority}},
            SECRET: {"metadata": {"name": "x", "namespace": "windlass-system"}},
            CUSTOM: {"spec": {"service": service}},
        }
        self.rival: Bundle | None = None
        self.writes: list[str] = []

    async def get_at(self, path: str) -> dict[str, Any] | None:
        return copy.deepcopy(self.objects.get(path))

    async def replace(self, kind: Any, manifest: Mapping[str, Any]) -> dict[str, Any]:
        if self.rival is not None:
            self.objects[SECRET]["data"], self.rival = self.rival.to_data(), None
            raise ApplyConflict("changed")
        self.writes.append("Secret")
        self.objects[SECRET] = dict(manifest)
        return dict(manifest)

    async def request(
        self, method: str, path: str, body: Mapping[str, Any], *, params: Mapping[str, str], content_type: str
    ) -> dict[str, Any]:
        assert (method, params["fieldManager"]) == ("PATCH", FIELD_MANAGER)
        self.writes.append(path.rpartition("/")[2])
        self.objects[path]["spec"] |= body["spec"]
        return {}

    @property
    def bundle(self) -> Bundle | None:
        return Bundle.from_data(self.objects[SECRET].get("data"))

    @property
    def announced(self) -> str:
        return base64.b64decode(self.objects[CUSTOM]["spec"].get("caBundle", "")).decode()


@pytest.fixture
def client(tmp_path: Path) -> FakeClient:
    return FakeClient(Authority(tmp_path, "front-proxy").file.read_text())


def keeper(client: FakeClient, now: datetime.datetime = NOW) -> TrustKeeper:
    return TrustKeeper(client, ServingContext(), SETTINGS, lambda: now, Telemetry())  # type: ignore[arg-type]


async def test_the_first_adapter_makes_a_certificate_and_announces_it(client: FakeClient) -> None:
    trust = keeper(client)

    await trust.refresh()

    assert client.writes == ["Secret", "v1beta2.custom.metrics.k8s.io"]
    assert client.bundle is not None
    assert client.announced == client.bundle.authority
    assert trust.ready.is_set()
    assert trust.front_proxy.username_headers == ()


async def test_a_second_look_and_a_second_adapter_write_nothing(client: FakeClient) -> None:
    trust = keeper(client)
    await trust.refresh()

    await trust.refresh()
    await keeper(client).refresh()

    assert client.writes == ["Secret", "v1beta2.custom.metrics.k8s.io"]


async def test_the_slower_of_two_adapters_takes_what_the_faster_one_wrote(client: FakeClient) -> None:
    hosts = service_hosts(SETTINGS.service_name, SETTINGS.namespace)
    client.rival = issue_bundle(None, Renewal.AUTHORITY, hosts, NOW)
    theirs = client.rival

    await keeper(client).refresh()

    assert client.bundle == theirs
    assert client.announced == theirs.authority


async def test_a_certificate_is_renewed_before_it_ends(client: FakeClient) -> None:
    await keeper(client).refresh()
    first = client.bundle
    assert first is not None

    await keeper(client, NOW + datetime.timedelta(days=70)).refresh()

    assert client.bundle is not None
    assert client.bundle.certificate != first.certificate
    assert client.bundle.authority == first.authority


async def test_the_secret_is_never_made(client: FakeClient) -> None:
    del client.objects[SECRET]
    trust = keeper(client)

    with pytest.raises(RetryLater, match="expected it to exist, found none"):
        await trust.refresh()

    assert (client.writes, trust.ready.is_set()) == ([], False)


async def test_while_nobody_is_trusted_nothing_is_served(client: FakeClient) -> None:
    del client.objects[CONFIG_PATH]
    trust = keeper(client)

    with pytest.raises(RetryLater, match="requestheader-client-ca-file"):
        await trust.refresh()

    assert not trust.ready.is_set()


async def test_the_api_of_another_adapter_is_left_alone_but_ours_is_served(client: FakeClient) -> None:
    client.objects[CUSTOM]["spec"]["service"]["name"] = "prometheus-adapter"
    trust = keeper(client)

    await trust.refresh()

    assert client.writes == ["Secret"]
    assert trust.ready.is_set()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        pytest.param(None, "found none", id="none"),
        pytest.param({}, "found /", id="a local API"),
        pytest.param({"service": {"namespace": "keda", "name": "keda"}}, "found keda/keda", id="another adapter"),
        pytest.param(
            {"service": {"namespace": "windlass-system", "name": "windlass-metrics-adapter"}}, "", id="our own"
        ),
        pytest.param(
            {
                "service": {"namespace": "windlass-system", "name": "windlass-metrics-adapter"},
                "insecureSkipTLSVerify": True,
            },
            "expected insecureSkipTLSVerify to be off",
            id="unchecked",
        ),
    ],
)
def test_whose_registration_it_is(spec: dict[str, Any] | None, words: str) -> None:
    problem = registration_problem("x", None if spec is None else {"spec": spec}, SETTINGS)

    assert words in problem
    assert bool(problem) is bool(words)
