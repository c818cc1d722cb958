"""Services with no replica, on a real control plane: the real autoscaler where it goes to zero, our own operator where
it does not, the real gateway that holds requests, and the real adapter between them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.control_plane import ControlPlane, free_ports
from support.kube_client import KubeClient, eventually
from support.live_pods import LivePods, Streams, serving_live_pods
from support.metrics_adapter import (
    ADAPTER,
    API_SERVICES,
    AdapterProcess,
    is_available,
    redirect_to_loopback,
    running_adapter,
)
from support.operator_process import OperatorProcess, running_operator
from support.services import condition, deployment, find, pods, ready_pods, service, tenant, wait_ready
from support.tokens import request_token
from windlass_contract.endpoints import digest_key

pytestmark = [pytest.mark.cluster, pytest.mark.own_plane, pytest.mark.usefixtures("clean")]

ROOT = Path(__file__).parents[2]
SYSTEM = "windlass-system"
SECRET = "windlass-gateway-routes"
KEY = "key-of-tenant-a-0123456789"
GPUS = {"h200": 6, "a100": 4, "a100-slice": 4, "edge-l4": 2}
ASLEEP = {
    "minReplicas": 0,
    "maxReplicas": 4,
    "scaleDownDelaySeconds": 8,
    "hold": {"timeoutSeconds": 40, "maxRequests": 30},
}
LIMITS = {"maxRunningRequests": 4}
PATH = "team-a/{}"


@dataclass
class Front:
    """A running gateway and the pods behind it."""

    url: str
    probe_url: str
    pods: LivePods

    def streams(self) -> Streams:
        """Clients of this gateway."""
        return Streams(self.url, KEY)

    def metric(self, name: str, service: str) -> float:
        """A gauge of one service; 0.0 while it is not shown."""
        with urllib.request.urlopen(f"{self.probe_url}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        lines = [line for line in text.splitlines() if line.startswith(name + "{") and f'service="{service}"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.fixture(scope="module")
def chart(kube: KubeClient, operator_kubeconfig: Path, helm: Any) -> Iterator[int]:
    """The chart with one gateway and the adapter; yields the port where the API server looks for the adapter."""
    place = ("windlass", str(ROOT / "helm" / "windlass"), "--namespace", SYSTEM)
    switches = ("gateway.enabled=true", "gateway.replicas=1", "metricsAdapter.enabled=true")
    more = ("metricsAdapter.externalMetrics.enabled=true",)
    helm("upgrade", "--install", *place, *(f"--set={switch}" for switch in (*switches, *more)))
    access = {"keys": [{"name": "first", "sha256": digest_key(KEY)}]}
    kube.apply(tenant("a", "team-a", gpus=GPUS, access=access))
    port = free_ports(1)[0]
    redirect_to_loopback(kube, port)
    yield port
    kube.apply(tenant("a", "team-a", gpus=GPUS))
    helm("upgrade", *place, "--reset-values")


@pytest.fixture(scope="module")
def probe_port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def live_pods() -> Iterator[LivePods]:
    with serving_live_pods(LivePods()) as found:
        yield found


@pytest.fixture(scope="module")
def awake_operator(
    chart: int,
    probe_port: int,
    adapter: AdapterProcess,
    shared_operator: OperatorProcess,
    operator_kubeconfig: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OperatorProcess]:
    """An operator that knows the gateway."""
    if shared_operator.running:
        shared_operator.stop()
    settings = {
        "WINDLASS_ROUTES_SECRET": SECRET,
        "WINDLASS_GATEWAY_URL": f"http://127.0.0.1:{probe_port}/metrics",
    }
    with running_operator(operator_kubeconfig, tmp_path_factory.mktemp("operator") / "operator.log", settings) as found:
        eventually(found.leads, bool, timeout_s=30)
        yield found


@pytest.fixture(scope="module")
def adapter(
    control_plane: ControlPlane,
    kube: KubeClient,
    chart: int,
    probe_port: int,
    live_pods: LivePods,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[AdapterProcess]:
    folder = tmp_path_factory.mktemp("adapter")
    token = request_token(kube, SYSTEM, ADAPTER)
    kubeconfig = control_plane.access(token).write_kubeconfig(folder / "kubeconfig.json")
    values = {
        "NAMESPACE": SYSTEM,
        "APIS": "custom,external",
        "REPLICA_URL": live_pods.metrics_url,
        "GATEWAY_URL": f"http://127.0.0.1:{probe_port}/metrics",
        "INTERVAL_S": "1",
        "MAX_AGE_S": "6",
        "TRUST_INTERVAL_S": "1",
    }
    environment = {f"WINDLASS_ADAPTER_{name}": value for name, value in values.items()}
    with running_adapter(kubeconfig, folder / "adapter.log", chart, environment) as found:
        for name in API_SERVICES:
            eventually(lambda name=name: is_available(kube, name), bool, timeout_s=60)
        yield found


@pytest.fixture(scope="module")
def front(
    control_plane: ControlPlane,
    kube: KubeClient,
    awake_operator: OperatorProcess,
    live_pods: LivePods,
    probe_port: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Front]:
    """The gateway, with the chart's account."""
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "token").write_text(request_token(kube, SYSTEM, "windlass-gateway"))
    (folder / "ca.crt").write_bytes(control_plane.admin.ca_file.read_bytes())
    port = free_ports(1)[0]
    flags = [f"--routes-secret={SYSTEM}/{SECRET}", f"--api-server={control_plane.url}", f"--api-credentials={folder}"]
    flags += [f"--replica-url={live_pods.replica_url}", f"--port={port}", f"--probe-port={probe_port}"]
    with (folder / "gateway.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "windlass_gateway", "run", *flags, "--drain-timeout=2"],
            stdout=log,
            stderr=log,
            env=os.environ,
        )
    found = Front(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{probe_port}", live_pods)

    def answers() -> bool:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{found.probe_url}/readyz", timeout=2).close()
            return True
        return False

    try:
        eventually(answers, bool, timeout_s=60)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def wanted(kube: KubeClient, name: str) -> int:
    found: int = deployment(kube, name)["spec"]["replicas"]
    return found


def put_to_sleep(kube: KubeClient, name: str, **scaling: Any) -> None:
    """A service that has fallen asleep."""
    kube.apply(service(name, scaling={**ASLEEP, **scaling}, limits=LIMITS))
    eventually(lambda: kube.get("apps/v1", "Deployment", name, "team-a"), bool)
    eventually(lambda: wanted(kube, name), lambda replicas: replicas == 0, timeout_s=90)
    eventually(lambda: pods(kube, name), lambda found: not found, timeout_s=30)


def hpa(kube: KubeClient, name: str) -> dict[str, Any]:
    found = kube.get("autoscaling/v2", "HorizontalPodAutoscaler", name, "team-a")
    assert found is not None
    return found


def in_background(streams: Streams, name: str, count: int) -> threading.Thread:
    thread = threading.Thread(target=streams.run, args=(PATH.format(name), count), daemon=True)
    thread.start()
    return thread


def test_a_service_that_nobody_asks_for_goes_to_zero_and_says_so(
    kube: KubeClient, front: Front, awake_operator: OperatorProcess, minor: str
) -> None:
    put_to_sleep(kube, "unasked")

    found = wait_ready(kube, "unasked")

    assert condition(kube, "unasked")["reason"] == "ScaledToZero"
    (decision,) = (item for item in found["status"]["decisions"] if item["topic"] == "replicas")
    native = tuple(int(part) for part in minor.split(".")) >= (1, 37)
    assert ("the autoscaler takes" if native else "the operator takes") in decision["reason"]
    assert hpa(kube, "unasked")["spec"]["minReplicas"] == (0 if native else 1)
    assert condition(kube, "unasked", kind="ScalingActive")["status"] != "False"


def test_a_request_waits_at_the_gateway_while_the_first_replica_starts(kube: KubeClient, front: Front) -> None:
    put_to_sleep(kube, "woken")
    streams = front.streams()

    streams.run(PATH.format("woken"), 1)

    assert (streams.finished, streams.broken) == (1, [])
    assert wanted(kube, "woken") == 1
    assert streams.first_byte_s[0] < 20


def test_many_who_wait_wake_as_many_replicas_as_they_fill_and_are_all_answered(kube: KubeClient, front: Front) -> None:
    put_to_sleep(kube, "crowd")
    streams = front.streams()

    thread = in_background(streams, "crowd", 10)
    woken = eventually(lambda: wanted(kube, "crowd"), lambda replicas: replicas > 0, timeout_s=30)
    thread.join(60)

    assert woken == 3  # ten requests, four of them start one replica
    assert (streams.finished, streams.broken) == (10, [])


def test_beyond_its_bound_the_gateway_says_when_to_come_back(kube: KubeClient, front: Front) -> None:
    put_to_sleep(kube, "full", hold={"timeoutSeconds": 30, "maxRequests": 2})
    kube.apply(service("full", scaling={**ASLEEP, "hold": {"timeoutSeconds": 30, "maxRequests": 2}}, limits=LIMITS))
    streams = front.streams()

    streams.run(PATH.format("full"), 6)

    assert streams.finished == 2
    assert len(streams.broken) == 4
    assert all("wake_queue_full" in text for text in streams.broken)


def test_a_service_in_use_is_not_put_to_sleep(kube: KubeClient, front: Front) -> None:
    put_to_sleep(kube, "in-use")
    streams = front.streams()

    # One short stream every two seconds, for three times the delay.
    streams.run(PATH.format("in-use"), 12, gap_s=2.0)

    assert (streams.finished, streams.broken) == (12, [])
    assert wanted(kube, "in-use") >= 1
    assert max(streams.first_byte_s[1:]) < 5, "only the first one had to wait for a replica"


def test_a_minimum_of_certain_hours_wakes_without_a_request(kube: KubeClient, front: Front) -> None:
    always = {"name": "always", "timeZone": "Etc/UTC", "start": "00:00", "end": "00:00", "minReplicas": 2}
    put_to_sleep(kube, "hours")

    kube.apply(service("hours", scaling={**ASLEEP, "schedules": [always]}, limits=LIMITS))

    eventually(lambda: ready_pods(kube, "hours"), lambda ready: ready == 2, timeout_s=60)
    (decision,) = (item for item in find(kube, "hours")["status"]["decisions"] if item["topic"] == "replicas")
    assert "schedule always holds" in decision["reason"]
