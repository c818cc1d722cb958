"""Our autoscalers work with our metrics adapter: the real HorizontalPodAutoscaler controller asks the real aggregation
layer, which asks `windlass metrics-adapter run` with the chart's account, once per source of values.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Authority, Files
from support.control_plane import ControlPlane, free_ports
from support.kube_client import KubeClient, Manifest, RefusedError, eventually
from support.metrics_adapter import (
    ADAPTER,
    API_SERVICES,
    SYSTEM,
    AdapterProcess,
    Exporter,
    api_service,
    is_available,
    redirect_to_loopback,
    running_adapter,
    running_prometheus,
    serving_exporter,
)
from support.services import RUNTIME, condition, deployment, pods, service, wait_ready
from support.tokens import request_token

pytestmark = [pytest.mark.cluster, pytest.mark.own_plane, pytest.mark.usefixtures("operator", "clean")]

ROOT = Path(__file__).parents[2]
CUSTOM = "/apis/custom.metrics.k8s.io/v1beta2"
EXTERNAL = "/apis/external.metrics.k8s.io/v1beta1"
WAITING = "windlass_requests_waiting"
CACHE = "windlass_kv_use_ratio"
TOKENS = "windlass_generated_tokens_per_second"
FIRST_TOKEN = "windlass_time_to_first_token_p95_seconds"
SCALED = {"minReplicas": 2, "maxReplicas": 6, "metrics": [{"type": "QueueDepth", "target": 4}]}
SECRET = f"{ADAPTER}-certificate"
ANY_SOURCE = pytest.mark.parametrize("adapter", ["replicas"], indirect=True)
"""For tests that do not depend on where values come from."""


@pytest.fixture(scope="module")
def port(kube: KubeClient, operator_kubeconfig: Path, helm: Any) -> Iterator[int]:
    """Where the API server looks for the adapter, as the chart registers it but on this machine."""
    chart = ("windlass", str(ROOT / "helm" / "windlass"), "--namespace", SYSTEM)
    switches = ("metricsAdapter.enabled", "metricsAdapter.externalMetrics.enabled")
    helm("upgrade", "--install", *chart, *(f"--set={switch}=true" for switch in switches))
    found = free_ports(1)[0]
    redirect_to_loopback(kube, found)
    yield found
    helm("upgrade", *chart, "--reset-values")  # without the flag Helm keeps the switches of the last time


@pytest.fixture(scope="module")
def adapter_kubeconfig(
    control_plane: ControlPlane, kube: KubeClient, port: int, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Kubeconfig of the account that the chart gives the adapter."""
    token = request_token(kube, SYSTEM, ADAPTER)
    return control_plane.access(token).write_kubeconfig(tmp_path_factory.mktemp("adapter") / "kubeconfig.json")


@pytest.fixture(scope="module")
def shared_exporter(kube: KubeClient) -> Iterator[Exporter]:
    with serving_exporter(Exporter(), lambda: kube.list("v1", "Pod", selector=RUNTIME)) as exporter:
        yield exporter


@pytest.fixture
def exporter(shared_exporter: Exporter) -> Exporter:
    """All replicas report a queue of 4, which is on target."""
    shared_exporter.values = {WAITING: 4, CACHE: 0.25}
    shared_exporter.by_pod, shared_exporter.silent, shared_exporter.down = {}, set(), False
    shared_exporter.counters = str
    return shared_exporter


def settings(exporter: Exporter, **more: str) -> dict[str, str]:
    """Of an adapter that is quick to notice."""
    values = {
        "NAMESPACE": SYSTEM,
        "APIS": "custom,external",
        "REPLICA_URL": f"http://127.0.0.1:{exporter.port}/{{namespace}}/{{pod}}/metrics",
        "INTERVAL_S": "1",
        "MAX_AGE_S": "6",
        "TRUST_INTERVAL_S": "1",
        "RATE_WINDOW_S": "10",
        **more,
    }
    return {f"WINDLASS_ADAPTER_{name}": value for name, value in values.items()}


@pytest.fixture(scope="module", params=["replicas", "prometheus"])
def adapter(
    request: pytest.FixtureRequest,
    kube: KubeClient,
    adapter_kubeconfig: Path,
    port: int,
    shared_exporter: Exporter,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[AdapterProcess]:
    """A running adapter, available through the API server: once with each source."""
    folder = tmp_path_factory.mktemp("adapter")
    with contextlib.ExitStack() as stack:
        more = {"SOURCE": request.param}
        if request.param == "prometheus":
            binary = shutil.which("prometheus")
            if binary is None:
                pytest.skip("missing binary: prometheus, in PATH")
            more["PROMETHEUS_URL"] = stack.enter_context(running_prometheus(binary, folder, shared_exporter.port))
        found = stack.enter_context(
            running_adapter(adapter_kubeconfig, folder / "adapter.log", port, settings(shared_exporter, **more))
        )
        for name in API_SERVICES:
            eventually(lambda name=name: is_available(kube, name), bool, timeout_s=60)
        yield found


def pods_path(name: str, metric: str = WAITING, pod: str = "*") -> str:
    selector = f"app.kubernetes.io%2Finstance%3D{name}%2Capp.kubernetes.io%2Fcomponent%3Druntime"
    return f"{CUSTOM}/namespaces/team-a/pods/{pod}/{metric}?labelSelector={selector}"


def ask(kube: KubeClient, path: str) -> Manifest:
    """A GET through the API server; a refusal as the code and message it carries."""
    try:
        found: Manifest = kube.request("GET", path)
    except RefusedError as exc:
        return {"code": exc.code, "message": exc.message}
    return found


def values_by_pod(answer: Mapping[str, Any]) -> dict[str, str]:
    return {item["describedObject"]["name"]: item["value"] for item in answer.get("items", ())}


def wanted(kube: KubeClient, name: str) -> int:
    found: int = deployment(kube, name)["spec"]["replicas"]
    return found


def apply_scaled(kube: KubeClient, name: str) -> list[str]:
    """A service with an autoscaler that has seen its metrics; returns the names of its pods."""
    kube.apply(service(name, scaling=SCALED))
    wait_ready(kube, name, timeout_s=60)
    eventually(
        lambda: condition(kube, name, kind="ScalingActive"),
        lambda found: found.get("status") == "True",
        timeout_s=60,
    )
    return sorted(pod["metadata"]["name"] for pod in pods(kube, name))


# -- what autoscalers do -----------------------------------------------------------------------------------------------


def test_a_longer_queue_brings_more_replicas(kube: KubeClient, adapter: AdapterProcess, exporter: Exporter) -> None:
    apply_scaled(kube, "adapter-up")

    exporter.values[WAITING] = 8

    eventually(lambda: wanted(kube, "adapter-up"), lambda replicas: replicas >= 4, timeout_s=60)


def test_lost_metrics_hold_the_number_of_replicas_and_show_on_the_service(
    kube: KubeClient, adapter: AdapterProcess, exporter: Exporter
) -> None:
    apply_scaled(kube, "adapter-lost")
    exporter.values[WAITING] = 8
    raised = eventually(lambda: wanted(kube, "adapter-lost"), lambda replicas: replicas >= 4, timeout_s=60)

    exporter.down = True

    lost = eventually(
        lambda: condition(kube, "adapter-lost", kind="ScalingActive"),
        lambda found: found.get("status") == "False",
        timeout_s=60,
    )
    assert lost["reason"] == "AutoscalerProblem"
    assert "found none for" in lost["message"]
    assert wanted(kube, "adapter-lost") >= raised


def test_a_replica_that_reports_nothing_is_missing_and_not_zero(
    kube: KubeClient, adapter: AdapterProcess, exporter: Exporter
) -> None:
    silent, other = apply_scaled(kube, "adapter-silent")

    exporter.silent = {silent}

    found = eventually(
        lambda: ask(kube, pods_path("adapter-silent")),
        lambda answer: silent not in values_by_pod(answer),
        timeout_s=60,
    )
    assert values_by_pod(found) == {other: "4"}
    assert ask(kube, pods_path("adapter-silent", pod=silent))["code"] == 404
    total = ask(kube, f"{CUSTOM}/namespaces/team-a/inferenceservices.windlass.dev/adapter-silent/{WAITING}")
    assert total["code"] == 404
    assert "from all 2 ready replicas, found 1" in total["message"]


def growing(tokens_per_s: float, first_tokens_per_s: float) -> str:
    """Counters of a replica whose requests wait from half a second to one second, since the epoch."""
    now_s = time.time()
    first, labels = now_s * first_tokens_per_s, 'tenant="a",model="m"'
    buckets = [("0.5", 0.0), ("1.0", first), ("+Inf", first)]
    lines = [f'windlass_time_to_first_token_seconds_bucket{{{labels},le="{le}"}} {value}' for le, value in buckets]
    return "\n".join([f"windlass_generated_tokens_total{{{labels}}} {now_s * tokens_per_s}", *lines, ""])


def amount(answer: Mapping[str, Any], pod: str) -> float:
    """A pod's value as a number; -1 while it has none."""
    text = values_by_pod(answer).get(pod, "-1")
    return float(text.removesuffix("m")) / (1000 if text.endswith("m") else 1)


def test_rates_and_percentiles_are_those_of_the_last_seconds(
    kube: KubeClient, adapter: AdapterProcess, exporter: Exporter
) -> None:
    """Both sources tell the same from the same counters: one by two readings, the other by a query."""
    exporter.values |= {"windlass_requests_running": 1}
    first, _ = apply_scaled(kube, "adapter-rates")
    exporter.counters = lambda: growing(50, 4)

    eventually(
        lambda: amount(ask(kube, pods_path("adapter-rates", TOKENS)), first),
        lambda value: 40 <= value <= 60,
        timeout_s=60,
    )
    found = eventually(
        lambda: amount(ask(kube, pods_path("adapter-rates", FIRST_TOKEN)), first), lambda value: value > 0, timeout_s=60
    )
    assert 0.9 <= found <= 1.0  # the 95th percentile between the two bounds

    exporter.counters = str
    exporter.values |= {"windlass_requests_running": 0, WAITING: 0}
    # As one that was never asked: without such counters, and idle.
    for metric in (TOKENS, FIRST_TOKEN):
        eventually(
            lambda metric=metric: amount(ask(kube, pods_path("adapter-rates", metric)), first),
            lambda value: value == 0,
            timeout_s=60,
        )


def test_values_come_in_every_form_that_autoscalers_ask_for(
    kube: KubeClient, adapter: AdapterProcess, exporter: Exporter
) -> None:
    first, second = apply_scaled(kube, "adapter-forms")
    exporter.by_pod = {first: {WAITING: 3, CACHE: 0.5}}

    eventually(
        lambda: values_by_pod(ask(kube, pods_path("adapter-forms"))),
        lambda found: found == {first: "3", second: "4"},
        timeout_s=60,
    )
    one = ask(kube, pods_path("adapter-forms", pod=first))
    assert values_by_pod(one) == {first: "3"}
    assert values_by_pod(ask(kube, pods_path("adapter-forms", CACHE))) == {first: "500m", second: "250m"}
    (total,) = ask(kube, f"{CUSTOM}/namespaces/team-a/inferenceservices.windlass.dev/adapter-forms/{WAITING}")["items"]
    assert (total["value"], total["describedObject"]["kind"]) == ("7", "InferenceService")
    (external,) = ask(kube, f"{EXTERNAL}/namespaces/team-a/{CACHE}?labelSelector=service%3Dadapter-forms")["items"]
    assert external["value"] == "375m"
    assert external["metricLabels"] == {"namespace": "team-a", "service": "adapter-forms"}


def test_many_questions_cost_the_source_one_reading_per_interval(
    kube: KubeClient, adapter: AdapterProcess, exporter: Exporter
) -> None:
    apply_scaled(kube, "adapter-shared")
    before = readings(adapter)

    for _ in range(30):
        ask(kube, pods_path("adapter-shared"))

    assert readings(adapter) - before < 15


def readings(adapter: AdapterProcess) -> float:
    """How often the adapter has read one metric, or all replicas."""
    return sum(
        float(line.rpartition(" ")[2])
        for line in adapter.metrics().splitlines()
        if line.startswith("windlass_adapter_read_duration_seconds_count") and 'what="pods"' not in line
    )


# -- trust -------------------------------------------------------------------------------------------------------------


@ANY_SOURCE
def test_the_api_server_checks_the_certificate_that_the_adapter_made(kube: KubeClient, adapter: AdapterProcess) -> None:
    for name in API_SERVICES:
        spec = api_service(kube, name)["spec"]
        assert not spec.get("insecureSkipTLSVerify")
        assert b"BEGIN CERTIFICATE" in base64.b64decode(spec["caBundle"])
        managers = {item["manager"] for item in api_service(kube, name)["metadata"]["managedFields"]}
        assert "windlass-metrics-adapter" in managers


@ANY_SOURCE
def test_a_lost_certificate_is_made_anew_without_a_restart(
    kube: KubeClient, adapter: AdapterProcess, exporter: Exporter
) -> None:
    secret = kube.get("v1", "Secret", SECRET, SYSTEM)
    assert secret is not None
    before = secret["data"]

    kube.merge(secret, {"data": dict.fromkeys(before)})

    made = eventually(
        lambda: (kube.get("v1", "Secret", SECRET, SYSTEM) or {}).get("data", {}),
        lambda data: data.keys() == before.keys() and data != before,
        timeout_s=60,
    )
    for name in API_SERVICES:
        eventually(
            lambda name=name: api_service(kube, name)["spec"]["caBundle"],
            lambda bundle: bundle == made["ca.crt"],
            timeout_s=60,
        )
    eventually(lambda: ask(kube, f"{CUSTOM}/").get("groupVersion"), bool, timeout_s=60)


@ANY_SOURCE
def test_two_adapters_share_one_certificate(
    kube: KubeClient,
    adapter: AdapterProcess,
    adapter_kubeconfig: Path,
    exporter: Exporter,
    tmp_path: Path,
) -> None:
    other_port = free_ports(1)[0]
    with running_adapter(adapter_kubeconfig, tmp_path / "second.log", other_port, settings(exporter)):
        served = {ssl.get_server_certificate(("127.0.0.1", at)) for at in (adapter.port, other_port)}

    assert len(served) == 1


@ANY_SOURCE
def test_the_api_of_another_adapter_is_left_alone(kube: KubeClient, adapter: AdapterProcess, port: int) -> None:
    name = API_SERVICES[1]
    theirs = {"service": {"name": "keda", "port": 443}, "caBundle": base64.b64encode(b"theirs").decode()}
    ours = {"service": {"name": ADAPTER, "port": port}}
    # The API server accepts any text as an authority; what counts is that nobody replaces it.
    kube.merge(api_service(kube, name), {"spec": theirs})
    try:
        eventually(lambda: adapter.log.read_text(), lambda text: f"found {SYSTEM}/keda" in text, timeout_s=30)
        assert api_service(kube, name)["spec"]["caBundle"] == theirs["caBundle"]
    finally:
        kube.merge(api_service(kube, name), {"spec": ours})
    eventually(lambda: is_available(kube, name), bool, timeout_s=60)


@ANY_SOURCE
def test_helm_does_not_take_the_api_from_another_adapter(kube: KubeClient, adapter: AdapterProcess, helm: Any) -> None:
    chart = (str(ROOT / "helm" / "windlass"), "--namespace", "default", "--set", "metricsAdapter.enabled=true")

    with pytest.raises(AssertionError, match=r"APIService .*v1beta2\.custom\.metrics\.k8s\.io.* exists and cannot be"):
        helm("install", "second", *chart)

    assert kube.list("apps/v1", "Deployment", "default") == []
    assert {api_service(kube, name)["spec"]["service"]["namespace"] for name in API_SERVICES} == {SYSTEM}


# -- who may ask -------------------------------------------------------------------------------------------------------


def ask_directly(
    kube: KubeClient,
    port: int,
    path: str,
    headers: Mapping[str, str] | None = None,
    certificate: Files | None = None,
) -> tuple[int, Any]:
    """A GET past the API server; code and body. Raises OSError where the connection is refused."""
    secret = kube.get("v1", "Secret", SECRET, SYSTEM)
    assert secret is not None
    context = ssl.create_default_context(cadata=base64.b64decode(secret["data"]["ca.crt"]).decode())
    context.check_hostname = False  # the certificate is for the Service's name
    if certificate is not None:
        context.load_cert_chain(certificate.certificate, certificate.key)
    request = urllib.request.Request(f"https://127.0.0.1:{port}{path}", headers=dict(headers or {}))
    try:
        with urllib.request.urlopen(request, context=context, timeout=20) as answer:
            return answer.status, json.loads(answer.read() or "null")
    except urllib.error.HTTPError as exc:
        return exc.code, json.loads(exc.read())


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="nobody"),
        pytest.param({"X-Remote-User": "system:admin", "X-Remote-Group": "system:masters"}, id="forged headers"),
        pytest.param({"Authorization": "Bearer not-a-token"}, id="an invalid token"),
        pytest.param({"Authorization": "Basic YTpi"}, id="a password"),
    ],
)
@ANY_SOURCE
@pytest.mark.parametrize("path", [pods_path("any"), f"{EXTERNAL}/namespaces/team-a/{WAITING}", CUSTOM, "/apis"])
def test_whoever_is_unknown_is_refused(
    kube: KubeClient, adapter: AdapterProcess, headers: dict[str, str], path: str
) -> None:
    code, body = ask_directly(kube, adapter.port, path, headers)

    assert code == 401
    assert (body["kind"], body["reason"], body["code"]) == ("Status", "Unauthorized", 401)


@ANY_SOURCE
def test_a_client_certificate_of_another_authority_is_refused(
    kube: KubeClient, adapter: AdapterProcess, tmp_path: Path
) -> None:
    forged = Authority(tmp_path, "front-proxy").client("aggregator")
    headers = {"X-Remote-User": "system:admin", "X-Remote-Group": "system:masters"}

    with pytest.raises(OSError, match=r"(?i)unknown ca|reset|closed|EOF|broken"):
        ask_directly(kube, adapter.port, pods_path("any"), headers, forged)


@ANY_SOURCE
def test_an_account_needs_the_permission_to_read_metrics(
    control_plane: ControlPlane, kube: KubeClient, adapter: AdapterProcess, exporter: Exporter
) -> None:
    apply_scaled(kube, "adapter-may")
    token = request_token(kube, "team-a", "default")
    headers = {"Authorization": f"Bearer {token}"}
    path = pods_path("adapter-may")

    code, body = ask_directly(kube, adapter.port, path, headers)
    assert (code, body["reason"]) == (403, "Forbidden")
    assert ask(KubeClient(control_plane.access(token)), path)["code"] == 403

    rules = [{"apiGroups": ["custom.metrics.k8s.io"], "resources": ["pods/" + WAITING], "verbs": ["get"]}]
    metadata = {"name": "metrics-reader", "namespace": "team-a"}
    rbac = "rbac.authorization.k8s.io"
    kube.apply({"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": metadata, "rules": rules})
    kube.apply(
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "metrics-reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "team-a"}],
        }
    )
    eventually(lambda: ask_directly(kube, adapter.port, path, headers)[0], lambda code: code == 200, timeout_s=40)
    # Through the API server, and no other metric.
    assert values_by_pod(ask(KubeClient(control_plane.access(token)), path))
    assert ask_directly(kube, adapter.port, pods_path("adapter-may", CACHE), headers)[0] == 403


@ANY_SOURCE
def test_health_is_told_to_everybody(kube: KubeClient, adapter: AdapterProcess) -> None:
    for path in ("/healthz", "/livez", "/readyz"):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        url = f"https://127.0.0.1:{adapter.port}{path}"
        with urllib.request.urlopen(url, context=context, timeout=10) as answer:
            assert answer.read() == b"ok"
