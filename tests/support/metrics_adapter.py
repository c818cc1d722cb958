"""The metrics adapter as the API server meets it, and the replicas and the Prometheus it reads: all on loopback.

kwok's pods run nothing. An exporter stands in for all of them: `/NAMESPACE/POD/metrics` is what that pod would report.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.control_plane import free_ports
from support.kube_client import KubeClient, Manifest, eventually
from support.patience import stretched

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
ADAPTER = "windlass-metrics-adapter"
SYSTEM = "windlass-system"
API_SERVICES = ("v1beta2.custom.metrics.k8s.io", "v1beta1.external.metrics.k8s.io")


@dataclass
class Exporter:
    """What replicas report. `values` holds for every pod, `by_pod` for single ones; a pod in `silent` answers 503."""

    values: dict[str, float] = field(default_factory=dict)
    by_pod: dict[str, dict[str, float]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    down: bool = False
    """Nobody answers."""
    counters: Callable[[], str] = str
    """Lines of every page beside the values: what grows while nobody sets it."""
    reads: int = 0
    """Pages that were read so far."""
    port: int = 0

    def page(self, pod: str) -> str | None:
        """The metrics of one pod; None where it does not answer."""
        self.reads += 1
        if self.down or pod in self.silent:
            return None
        values = {**self.values, **self.by_pod.get(pod, {})}
        gauges = "".join(f'# TYPE {name} gauge\n{name}{{model="m"}} {value}\n' for name, value in values.items())
        return gauges + self.counters()


@contextlib.contextmanager
def serving_exporter(exporter: Exporter, pods: Callable[[], list[Manifest]]) -> Iterator[Exporter]:
    """Serve the pages of all pods, and at /targets where they are, for Prometheus."""

    def targets() -> str:
        return json.dumps(
            [
                {
                    "targets": [f"127.0.0.1:{exporter.port}"],
                    "labels": {
                        "__metrics_path__": f"/{pod['metadata']['namespace']}/{pod['metadata']['name']}/metrics",
                        "namespace": pod["metadata"]["namespace"],
                        "pod": pod["metadata"]["name"],
                    },
                }
                for pod in pods()
            ]
        )

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            kind = "text/plain"
            if self.path == "/targets":
                kind, page = "application/json", targets()
            else:
                page = exporter.page(self.path.split("/")[2])
            data = (page or "").encode()
            self.send_response(503 if page is None else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    exporter.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield exporter
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class AdapterProcess:
    """`windlass metrics-adapter run`, started and stopped by process id."""

    def __init__(self, kubeconfig: Path, log: Path, port: int, environment: Mapping[str, str]) -> None:
        self.port = port
        self.probe_port = free_ports(1)[0]
        self.log = log
        flags = ["--kubeconfig", str(kubeconfig), "--port", str(port), "--probe-port", str(self.probe_port)]
        settings = {"WINDLASS_ADAPTER_HOST": "127.0.0.1", "WINDLASS_ADAPTER_PROBE_HOST": "127.0.0.1"}
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "windlass_operator", "metrics-adapter", "run", *flags],
                stdout=file,
                stderr=file,
                env={**os.environ, **settings, **environment},
            )

    def wait_ready(self) -> None:
        """Wait until it serves. Raises AssertionError with the log."""
        deadline = time.monotonic() + stretched(START_TIMEOUT_S)
        while not self._is_ready():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError(f"the adapter is not ready; its log:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.1)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_TIMEOUT_S)

    def metrics(self) -> str:
        """Its own metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.probe_port}/metrics", timeout=5) as answer:
            text: bytes = answer.read()
            return text.decode()

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{self.probe_port}/readyz", timeout=2).close()
            return True
        return False


@contextlib.contextmanager
def running_adapter(kubeconfig: Path, log: Path, port: int, environment: Mapping[str, str]) -> Iterator[AdapterProcess]:
    """An adapter that is ready, and gone when the block ends."""
    adapter = AdapterProcess(kubeconfig, log, port, environment)
    try:
        adapter.wait_ready()
        yield adapter
    finally:
        adapter.stop()


@contextlib.contextmanager
def running_prometheus(binary: str, folder: Path, targets_port: int = 0, **more: Any) -> Iterator[str]:
    """A real Prometheus that scrapes every second what /targets names; yields its address. `more` is configuration."""
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    discovery = {"url": f"http://127.0.0.1:{targets_port}/targets", "refresh_interval": "1s"}
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [{"job_name": "replicas", "http_sd_configs": [discovery]}],
        **more,
    }
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    command = [binary, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("ab") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)

    def answers() -> bool:
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"{url}/-/ready", timeout=2).close()
            return True
        return False

    try:
        eventually(answers, bool, timeout_s=START_TIMEOUT_S)
        yield url
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


def redirect_to_loopback(kube: KubeClient, port: int) -> None:
    """Let the API server find the adapter on this machine: the chart's Service becomes a name for loopback.

    Everything else of the registration stays as the chart made it; the name in the certificate is still the Service's.
    """
    kube.delete("v1", "Service", ADAPTER, SYSTEM)
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": ADAPTER, "namespace": SYSTEM},
            "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
        }
    )
    for name in API_SERVICES:
        kube.merge(api_service(kube, name), {"spec": {"service": {"port": port}}})


def api_service(kube: KubeClient, name: str) -> Manifest:
    """One registration. Raises AssertionError where there is none."""
    found = kube.get("apiregistration.k8s.io/v1", "APIService", name)
    assert found is not None, f"APIService {name} is gone"
    return found


def is_available(kube: KubeClient, name: str) -> bool:
    """Whether the API server reaches what is registered, and trusts it."""
    conditions = api_service(kube, name).get("status", {}).get("conditions") or []
    return any(item["type"] == "Available" and item["status"] == "True" for item in conditions)
