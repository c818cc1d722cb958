"""The agent as a process: a real shared library, a real kubelet socket, a server of canned answers for the API."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fake_kubelet import FakeKubelet, serving_kubelet
from support.fake_nvml import DRIVER_NOT_LOADED, NO_PERMISSION, FakeNvml
from support.power_agent import PowerAgentProcess, agent_environment
from windlass_contract import metric_names
from windlass_operator.power.holding import PodDevices
from windlass_operator.power.ledger import FILE_NAME

from .test_agent import POLICY
from .test_pods import build_class, build_pod, build_service

ANSWERS: dict[str, Any] = {
    "/api/v1/pods": {"items": [build_pod()]},
    "/apis/windlass.dev/v1alpha1/gpuclasses": {"items": [build_class(power=POLICY)]},
    "/apis/windlass.dev/v1alpha1/namespaces/team-a/inferenceservices/chat": build_service(powerProfile="Eco"),
}
HELD = {"GPU-a": (350, 1200), "GPU-b": (700, 0)}
AS_FOUND = {"GPU-a": (700, 0), "GPU-b": (700, 0)}

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A kubeconfig of an API server that knows one replica."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = ANSWERS.get(self.path.partition("?")[0])
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(answer or {}).encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    path = tmp_path_factory.mktemp("access") / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": address}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    path.write_text(json.dumps(config))
    yield path
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[FakeKubelet]:
    with serving_kubelet(tmp_path / "kubelet.sock") as running:
        running.pods = (PodDevices("team-a", "chat-1", ids=("GPU-a",)),)
        yield running


Start = Callable[..., PowerAgentProcess]


@pytest.fixture
def start(
    driver: FakeNvml, nvml_folder: Path, kubelet: FakeKubelet, kubeconfig: Path, tmp_path: Path
) -> Iterator[Start]:
    started: list[PowerAgentProcess] = []

    def start(*flags: str) -> PowerAgentProcess:
        given = ["--node", "node-1", "--kubeconfig", str(kubeconfig), "--state-folder", str(tmp_path / "state")]
        given += ["--pod-resources-socket", str(kubelet.socket)]
        environment = {"WINDLASS_POWER_REPLICA_URL": ""}
        started.append(
            PowerAgentProcess(driver, nvml_folder, tmp_path / "agent.log", *given, *flags, environment=environment)
        )
        started[-1].wait_until_ready()
        return started[-1]

    yield start
    for process in started:
        process.__exit__()


def test_sigterm_restores_what_the_run_changed(start: Start, driver: FakeNvml) -> None:
    agent = start()
    assert driver.limits() == HELD

    assert agent.terminate() == 0

    assert driver.limits() == AS_FOUND
    assert driver["GPU-b"].writes == 0


def test_after_a_crash_the_next_run_restores(start: Start, driver: FakeNvml, kubelet: FakeKubelet) -> None:
    start().crash()
    assert driver.limits() == HELD
    kubelet.pods = ()

    again = start()

    assert driver.limits() == AS_FOUND
    assert "An earlier run did not end in order; restoring. gpus=GPU-a" in again.log.read_text()


def test_after_a_crash_restore_works_without_a_cluster(
    start: Start, driver: FakeNvml, nvml_folder: Path, tmp_path: Path
) -> None:
    start().crash()

    done = restore(driver, nvml_folder, tmp_path / "state")

    assert (done.returncode, driver.limits()) == (0, AS_FOUND)
    assert json.loads((tmp_path / "state" / FILE_NAME).read_text())["gpus"] == {}


def test_a_restore_that_fails_says_why_and_can_be_repeated(
    start: Start, driver: FakeNvml, nvml_folder: Path, tmp_path: Path
) -> None:
    start().crash()
    driver["GPU-a"].fail_power = NO_PERMISSION

    done = restore(driver, nvml_folder, tmp_path / "state")

    assert done.returncode == 1
    assert "GPU-a: power limit of 700 W: Insufficient Permissions; give the container the capability SYS_ADMIN" in (
        done.stderr
    )
    driver["GPU-a"].fail_power = 0
    assert restore(driver, nvml_folder, tmp_path / "state").returncode == 0
    assert driver.limits() == AS_FOUND


def test_a_dry_run_never_writes(start: Start, driver: FakeNvml) -> None:
    agent = start("--dry-run")
    samples = agent.samples()
    agent.terminate()

    assert samples[metric_names.POWER_WANTED_LIMIT, "GPU-a"] == 350
    assert (driver["GPU-a"].writes, driver["GPU-b"].writes) == (0, 0)


def test_a_node_without_a_driver_is_said_and_survived(start: Start, driver: FakeNvml) -> None:
    driver.node.init_error = DRIVER_NOT_LOADED
    agent = start()
    assert agent.samples()[metric_names.POWER_SOURCE_UP, "driver"] == 0
    assert "install the NVIDIA driver on this node" in agent.log.read_text()

    driver.node.init_error = 0

    eventually(lambda: driver.limits() == HELD)
    assert agent.samples()[metric_names.POWER_SOURCE_UP, "driver"] == 1


def test_missing_permission_ends_nothing(start: Start, driver: FakeNvml) -> None:
    driver["GPU-a"].fail_power = driver["GPU-a"].fail_cap = NO_PERMISSION

    agent = start()

    assert agent.samples()[metric_names.POWER_GPU_STATE, "GPU-a", "failed"] == 1
    assert "give the container the capability SYS_ADMIN" in agent.log.read_text()
    assert agent.terminate() == 0


def test_without_a_node_name_it_does_not_start(driver: FakeNvml, nvml_folder: Path) -> None:
    done = run("run", driver=driver, library=nvml_folder)

    assert done.returncode == 1
    assert "WINDLASS_POWER_NODE: expected the name of this node, found none" in done.stderr


def restore(driver: FakeNvml, library: Path, state: Path) -> subprocess.CompletedProcess[str]:
    return run("restore", "--state-folder", str(state), driver=driver, library=library)


def run(*arguments: str, driver: FakeNvml, library: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "windlass_operator", "power-agent", *arguments]
    environment = agent_environment(driver, library)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def eventually(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.1)
