"""`windlass-gateway run` as a pod of the chart would run it, and a stand-in for the network of pods, all on loopback.

kwok's pods run nothing. The pod network takes `/NAMESPACE/POD/v1/...`, the address that the gateway is told to use, and
hands it to what stands in for that pod.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from support.control_plane import Access, free_ports
from support.kube_client import Manifest, eventually

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
GATEWAY = "windlass-gateway"
SYSTEM = "windlass-system"
SIMULATED = "simulated"
"""The model that simulated replicas answer to."""


@dataclass
class PodNetwork:
    """Answers for every pod with the pod's name, or passes on to the address in `backends` that fits its name."""

    answered: Counter[str] = field(default_factory=Counter)
    """Requests by pod."""
    backends: dict[str, str] = field(default_factory=dict)
    """Beginning of a pod's name -> base URL of what runs in it; the longest one wins."""
    pods: Callable[[], list[Manifest]] = list
    """Pods that there are; at /targets for a Prometheus, those with something that runs in them."""
    port: int = 0

    @property
    def template(self) -> str:
        """The gateway's --replica-url."""
        return f"http://127.0.0.1:{self.port}/{{namespace}}/{{pod}}"

    def targets(self) -> list[dict[str, object]]:
        """What a Prometheus should scrape, as its HTTP service discovery takes it."""
        named = [(pod["metadata"]["namespace"], pod["metadata"]["name"]) for pod in self.pods()]
        return [
            {
                "targets": [backend.removeprefix("http://")],
                "labels": {"namespace": namespace, "pod": pod, "instance": pod},
            }
            for namespace, pod in named
            if (backend := self.backend_of(pod))
        ]

    def backend_of(self, pod: str) -> str:
        """What runs in a pod; empty where nothing does."""
        found = [prefix for prefix in self.backends if pod.startswith(prefix)]
        return self.backends[max(found, key=len)] if found else ""


@contextlib.contextmanager
def serving_pods() -> Iterator[PodNetwork]:
    """A pod network that is gone when the block ends."""
    network = PodNetwork()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(200, json.dumps(network.targets()).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            _, _, pod, path = self.path.split("/", 3)
            network.answered[pod] += 1
            backend = network.backend_of(pod)
            status, data = _pass_on(f"{backend}/{path}", body) if backend else (200, json.dumps({"pod": pod}).encode())
            self._answer(status, data)

        def _answer(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    network.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield network
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def _pass_on(url: str, body: bytes) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read()


@dataclass
class ClusterGateway:
    """A running gateway."""

    url: str
    probe_url: str
    log: Path

    def ask(self, path: str, key: str, **headers: str) -> tuple[int, dict[str, object], dict[str, str]]:
        """POST a small completion; status, body and headers of the answer."""
        sent = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        body = json.dumps({"model": SIMULATED, "prompt": "hello", "max_tokens": 4}).encode()
        request = urllib.request.Request(f"{self.url}/{path}/v1/completions", data=body, headers=sent)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.loads(answer.read()), dict(answer.headers)
        except urllib.error.HTTPError as exc:
            return exc.code, json.loads(exc.read()), dict(exc.headers)

    def probe(self, name: str) -> int:
        """Status of a probe on the port that clients do not reach."""
        try:
            with urllib.request.urlopen(f"{self.probe_url}/{name}", timeout=2) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as exc:
            return exc.code
        except OSError:
            return 0

    def metrics(self) -> str:
        """Its own metrics."""
        with urllib.request.urlopen(f"{self.probe_url}/metrics", timeout=5) as answer:
            text: bytes = answer.read()
            return text.decode()


@contextlib.contextmanager
def running_gateway(access: Access, secret: str, network: PodNetwork, folder: Path) -> Iterator[ClusterGateway]:
    """A gateway with the rights of an account, ready, and gone when the block ends."""
    credentials = folder / "account"
    credentials.mkdir()
    (credentials / "token").write_text(access.token)
    (credentials / "ca.crt").write_bytes(access.ca_file.read_bytes())
    port, probe_port = free_ports(2)
    flags = [f"--routes-secret={SYSTEM}/{secret}", f"--api-server={access.url}", f"--api-credentials={credentials}"]
    flags += [f"--replica-url={network.template}", f"--port={port}", f"--probe-port={probe_port}", "--drain-timeout=2"]
    log = folder / "gateway.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "windlass_gateway", "run", *flags], stdout=file, stderr=file, env=os.environ
        )
    gateway = ClusterGateway(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{probe_port}", log)
    try:
        eventually(lambda: gateway.probe("readyz"), lambda status: status == 200, timeout_s=START_TIMEOUT_S)
        yield gateway
    finally:
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if process.poll() is None:
            process.kill()


@contextlib.contextmanager
def running_simulation(folder: Path, name: str, *flags: str) -> Iterator[str]:
    """`windlass-runtime simulate` in a process of its own; yields its address."""
    command = [sys.executable, "-m", "windlass_runtime", "simulate", "--profile", "instant", "--port", "0", *flags]
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        with process.stdout as lines:
            yield next(json.loads(line)["url"] for line in lines if "listening" in line)
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


@contextlib.contextmanager
def asking(gateway: ClusterGateway, path: str, key: str, pause_s: float = 0.03) -> Iterator[Counter[tuple[int, str]]]:
    """Requests in the background while the block runs, counted by status and the canary that answered."""
    answers: Counter[tuple[int, str]] = Counter()
    stop = threading.Event()

    def ask_on() -> None:
        while not stop.wait(pause_s):
            status, _, headers = gateway.ask(path, key)
            answers[status, headers.get("X-Windlass-Canary", "")] += 1

    thread = threading.Thread(target=ask_on)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()
