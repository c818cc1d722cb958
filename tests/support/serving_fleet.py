"""Everything between a client and fake pods, for tests of scaling: the chart with gateway and adapter, live replicas in
the pods, a running adapter, an operator that knows the gateway, and the gateway itself. All on loopback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.control_plane import ControlPlane, free_ports
from support.kube_client import KubeClient, eventually
from support.live_pods import LivePods, Streams
from support.metrics_adapter import (
    ADAPTER,
    API_SERVICES,
    is_available,
    redirect_to_loopback,
    running_adapter,
)
from support.operator_process import running_operator
from support.services import tenant
from support.tokens import request_token
from windlass_contract.endpoints import digest_key

ROOT = Path(__file__).parents[2]
SYSTEM = "windlass-system"
SECRET = "windlass-gateway-routes"
KEY = "key-of-tenant-a-0123456789"
GPUS = {"h200": 6, "a100": 4, "a100-slice": 4, "edge-l4": 2}
SWITCHES = (
    "gateway.enabled=true",
    "gateway.replicas=1",
    "metricsAdapter.enabled=true",
    "metricsAdapter.externalMetrics.enabled=true",
)


@dataclass
class Front:
    """A running gateway and the pods behind it."""

    url: str
    probe_url: str
    pods: LivePods

    def streams(self) -> Streams:
        """Clients of this gateway."""
        return Streams(self.url, KEY)

    def is_ready(self) -> bool:
        """Whether it has its routes."""
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{self.probe_url}/readyz", timeout=2).close()
            return True
        return False


@contextlib.contextmanager
def installed(kube: KubeClient, helm: Any) -> Iterator[int]:
    """The chart with one gateway and the adapter; yields the port where the API server looks for the adapter."""
    place = ("windlass", str(ROOT / "helm" / "windlass"), "--namespace", SYSTEM)
    helm("upgrade", "--install", *place, *(f"--set={switch}" for switch in SWITCHES))
    access = {"keys": [{"name": "first", "sha256": digest_key(KEY)}]}
    kube.apply(tenant("a", "team-a", gpus=GPUS, access=access))
    port = free_ports(1)[0]
    redirect_to_loopback(kube, port)
    try:
        yield port
    finally:
        kube.apply(tenant("a", "team-a", gpus=GPUS))
        helm("upgrade", *place, "--reset-values")


@contextlib.contextmanager
def serving_fleet(
    plane: ControlPlane,
    kube: KubeClient,
    operator_kubeconfig: Path,
    folder: Path,
    pods: LivePods,
    adapter_port: int,
    adapter: Mapping[str, str] | None = None,
) -> Iterator[Front]:
    """Adapter, operator and gateway, started in this order and stopped in the other one. `adapter`: more settings."""
    port, probe_port = free_ports(2)
    gateway_url = f"http://127.0.0.1:{probe_port}/metrics"
    values = {
        "NAMESPACE": SYSTEM,
        "APIS": "custom,external",
        "REPLICA_URL": pods.metrics_url,
        "GATEWAY_URL": gateway_url,
        "INTERVAL_S": "1",
        "MAX_AGE_S": "6",
        "TRUST_INTERVAL_S": "1",
        **(adapter or {}),
    }
    environment = {f"WINDLASS_ADAPTER_{name}": value for name, value in values.items()}
    told = {"WINDLASS_ROUTES_SECRET": SECRET, "WINDLASS_GATEWAY_URL": gateway_url}
    kubeconfig = plane.access(request_token(kube, SYSTEM, ADAPTER)).write_kubeconfig(folder / "adapter.json")
    with contextlib.ExitStack() as stack:
        stack.enter_context(running_adapter(kubeconfig, folder / "adapter.log", adapter_port, environment))
        for name in API_SERVICES:
            eventually(lambda name=name: is_available(kube, name), bool, timeout_s=60)
        operator = stack.enter_context(running_operator(operator_kubeconfig, folder / "operator.log", told))
        eventually(operator.leads, bool, timeout_s=30)
        yield stack.enter_context(_running_gateway(plane, kube, folder, pods, port, probe_port))


@contextlib.contextmanager
def _running_gateway(
    plane: ControlPlane, kube: KubeClient, folder: Path, pods: LivePods, port: int, probe_port: int
) -> Iterator[Front]:
    """The gateway, with the chart's account."""
    account = folder / "gateway"
    account.mkdir()
    (account / "token").write_text(request_token(kube, SYSTEM, "windlass-gateway"))
    (account / "ca.crt").write_bytes(plane.admin.ca_file.read_bytes())
    flags = [f"--routes-secret={SYSTEM}/{SECRET}", f"--api-server={plane.url}", f"--api-credentials={account}"]
    flags += [f"--replica-url={pods.replica_url}", f"--port={port}", f"--probe-port={probe_port}"]
    command = [sys.executable, "-m", "windlass_gateway", "run", *flags, "--drain-timeout=2"]
    with (folder / "gateway.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
    front = Front(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{probe_port}", pods)
    try:
        eventually(front.is_ready, bool, timeout_s=60)
        yield front
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
