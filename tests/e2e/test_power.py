"""The power agent with the account and the roles that the chart gives it, on pods of a real API server.

GPUs and kubelet are stand-ins: a `libnvidia-ml.so.1` without GPUs, and a gRPC server that says which pod holds which.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.control_plane import ControlPlane
from support.fake_kubelet import FakeKubelet, serving_kubelet
from support.fake_nvml import FakeNvml, build_library
from support.kube_client import KubeClient, Manifest, eventually
from support.metrics_adapter import Exporter, serving_exporter
from support.power_agent import PowerAgentProcess
from support.services import API, pods, service, wait_ready
from support.tokens import request_token
from windlass_contract import metric_names
from windlass_operator.power.holding import ClaimedDevice, PodDevices

pytestmark = [pytest.mark.cluster, pytest.mark.own_plane, pytest.mark.usefixtures("operator", "clean")]

ROOT = Path(__file__).parents[2]
SYSTEM = "windlass-system"
AGENT = "windlass-power-agent"
GPUS = ("GPU-0", "GPU-1")
AS_FOUND = {"GPU-0": (700, 0), "GPU-1": (700, 0)}
POLICY = {
    "bounds": {"minWatts": 300, "maxWatts": 700, "minGraphicsClockMHz": 900, "maxGraphicsClockMHz": 1980},
    "profiles": {"eco": {"powerLimitWatts": 400, "maxGraphicsClockMHz": 1410}, "performance": {"powerLimitWatts": 650}},
    "tierDefaults": {"batch": "Eco"},
}


@pytest.fixture(scope="module")
def daemon_set(kube: KubeClient, operator_kubeconfig: Path, helm: Any) -> Iterator[Manifest]:
    """The agent as the chart installs it; its pods on fake nodes do nothing."""
    chart = ("windlass", str(ROOT / "helm" / "windlass"), "--namespace", SYSTEM)
    helm("upgrade", "--install", *chart, "--set=powerAgent.enabled=true")
    (found,) = kube.list("apps/v1", "DaemonSet", SYSTEM, "app.kubernetes.io/component=power-agent")
    yield found
    helm("upgrade", *chart, "--reset-values")


@pytest.fixture(scope="module")
def agent_client(control_plane: ControlPlane, kube: KubeClient, daemon_set: Manifest) -> KubeClient:
    return KubeClient(control_plane.access(request_token(kube, SYSTEM, AGENT)))


@pytest.fixture(scope="module")
def agent_kubeconfig(
    control_plane: ControlPlane, kube: KubeClient, daemon_set: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Kubeconfig of the account that the chart gives the agent."""
    token = request_token(kube, SYSTEM, AGENT)
    return control_plane.access(token).write_kubeconfig(tmp_path_factory.mktemp("agent") / "kubeconfig.json")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(tmp_path: Path) -> FakeNvml:
    return FakeNvml(tmp_path / "node.bin", GPUS)


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[FakeKubelet]:
    with serving_kubelet(tmp_path / "kubelet.sock") as running:
        yield running


@pytest.fixture
def policy(kube: KubeClient, fleet: None) -> Iterator[None]:
    """Power profiles on the class h200."""
    gpu_class = {"apiVersion": API, "kind": "GPUClass", "metadata": {"name": "h200"}}
    kube.merge(gpu_class, {"spec": {"power": POLICY}})
    yield
    kube.merge(gpu_class, {"spec": {"power": None}})


@pytest.fixture
def exporter(kube: KubeClient) -> Iterator[Exporter]:
    """What replicas report."""
    running = "app.kubernetes.io/component=runtime"
    with serving_exporter(Exporter(), lambda: kube.list("v1", "Pod", selector=running)) as found:
        yield found


class Node:
    """The node of a replica, with its agent."""

    def __init__(self, kube: KubeClient, driver: FakeNvml, kubelet: FakeKubelet) -> None:
        self.kube, self.driver, self.kubelet = kube, driver, kubelet

    def place(self, name: str = "chat", **spec: Any) -> Manifest:
        """Run a service on H200s and let its pod hold the first GPU; return the pod."""
        self.kube.apply(service(name, accelerator={"classes": ["h200"]}, **spec))
        wait_ready(self.kube, name)
        (pod,) = pods(self.kube, name)
        self.kubelet.pods = (*self.kubelet.pods, PodDevices("team-a", pod["metadata"]["name"], ids=("GPU-0",)))
        return pod

    def becomes(self, watts: int, clock_mhz: int) -> None:
        """Wait until the first GPU has these limits, and see that the other has none of ours."""
        eventually(self.driver.limits, lambda limits: limits["GPU-0"] == (watts, clock_mhz), timeout_s=30)
        assert self.driver["GPU-1"].writes == 0


@pytest.fixture
def node(kube: KubeClient, driver: FakeNvml, kubelet: FakeKubelet, policy: None) -> Node:
    return Node(kube, driver, kubelet)


@pytest.fixture
def start(node: Node, library: Path, agent_kubeconfig: Path, exporter: Exporter, tmp_path: Path) -> Iterator[Any]:
    """Start the agent of a pod's node."""
    started: list[PowerAgentProcess] = []

    def start(pod: Manifest) -> PowerAgentProcess:
        url = f"http://127.0.0.1:{exporter.port}/{{namespace}}/{{pod}}/metrics"
        flags = ("--node", pod["spec"]["nodeName"], "--kubeconfig", str(agent_kubeconfig))
        flags += ("--state-folder", str(tmp_path / "state"), "--pod-resources-socket", str(node.kubelet.socket))
        environment = {"WINDLASS_POWER_REPLICA_URL": url}
        started.append(PowerAgentProcess(node.driver, library, tmp_path / "agent.log", *flags, environment=environment))
        started[-1].wait_until_ready()
        return started[-1]

    yield start
    for process in started:
        process.__exit__()


def test_the_daemon_set_runs_on_nodes_with_gpus_and_on_no_other(kube: KubeClient, daemon_set: Manifest) -> None:
    def nodes() -> set[str]:
        found = kube.list("v1", "Pod", SYSTEM, "app.kubernetes.io/component=power-agent")
        # A pod of a DaemonSet names its node by affinity until the scheduler binds it.
        return {pod["spec"].get("nodeName", "") for pod in found}

    with_gpus = {item["metadata"]["name"] for item in kube.list("v1", "Node", selector="nvidia.com/gpu.present=true")}

    assert with_gpus
    assert eventually(nodes, lambda found: found == with_gpus, timeout_s=60) == with_gpus


def test_its_account_reads_what_it_must_and_nothing_else(agent_client: KubeClient) -> None:
    assert agent_client.may("list", "", "pods")
    assert agent_client.may("get", API.partition("/")[0], "inferenceservices", "team-a")
    assert agent_client.may("list", API.partition("/")[0], "gpuclasses")
    for verb, group, resource in (
        ("get", "", "secrets"),
        ("list", "", "secrets"),
        ("patch", "", "pods"),
        ("delete", "", "pods"),
        ("create", "", "pods"),
        ("patch", "", "nodes"),
        ("list", API.partition("/")[0], "inferenceservices"),
        ("patch", API.partition("/")[0], "inferenceservices"),
        ("patch", API.partition("/")[0], "gpuclasses"),
        ("list", API.partition("/")[0], "tenants"),
    ):
        assert not agent_client.may(verb, group, resource, "team-a"), f"{verb} {resource}"


def test_a_profile_reaches_the_gpu_and_a_new_one_restarts_nothing(node: Node, start: Any) -> None:
    pod = node.place(powerProfile="Eco")
    agent = start(pod)
    node.becomes(400, 1410)

    node.kube.merge(service(), {"spec": {"powerProfile": "Performance"}})
    node.becomes(650, 0)
    node.kube.merge(service(), {"spec": {"powerProfile": None}})
    node.becomes(700, 0)

    wait_ready(node.kube)
    assert [item["metadata"]["uid"] for item in pods(node.kube)] == [pod["metadata"]["uid"]]
    assert agent.samples()[metric_names.POWER_GPU_STATE, "GPU-0", "found"] == 1


def test_the_class_decides_for_a_tier_and_the_status_says_so(node: Node, start: Any) -> None:
    pod = node.place(tier="Batch")

    start(pod)

    node.becomes(400, 1410)
    decisions = wait_ready(node.kube)["status"]["decisions"]
    (power,) = [item for item in decisions if item["topic"] == "power"]
    assert power["choice"] == "Eco"
    assert "at most 400 W per GPU" in power["reason"]


def test_taking_the_policy_away_gives_the_gpu_back(node: Node, start: Any, kube: KubeClient) -> None:
    pod = node.place(powerProfile="Eco")
    start(pod)
    node.becomes(400, 1410)

    kube.merge({"apiVersion": API, "kind": "GPUClass", "metadata": {"name": "h200"}}, {"spec": {"power": None}})

    node.becomes(700, 0)


def test_sigterm_gives_the_gpu_back(node: Node, start: Any) -> None:
    agent = start(node.place(powerProfile="Eco"))
    node.becomes(400, 1410)

    assert agent.terminate() == 0

    assert node.driver.limits() == AS_FOUND


def test_a_gpu_of_a_resource_claim_is_found_by_what_its_driver_publishes(
    node: Node, start: Any, kube: KubeClient
) -> None:
    pod = node.place(powerProfile="Eco")
    name, driver = pod["spec"]["nodeName"], "power.example.com"
    device = {"name": "gpu-7", "attributes": {"uuid": {"string": "GPU-0"}}}
    pool = {"name": name, "generation": 1, "resourceSliceCount": 1}
    kube.apply(
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceSlice",
            "metadata": {"name": "power-e2e"},
            "spec": {"driver": driver, "nodeName": name, "pool": pool, "devices": [device]},
        }
    )
    claimed = ClaimedDevice(driver, name, "gpu-7")
    node.kubelet.pods = (PodDevices("team-a", pod["metadata"]["name"], claimed=(claimed,)),)
    try:
        start(pod)
        node.becomes(400, 1410)
    finally:
        kube.delete("resource.k8s.io/v1", "ResourceSlice", "power-e2e")


def test_joules_per_token_join_the_counter_with_the_replicas(node: Node, start: Any, exporter: Exporter) -> None:
    tokens = metric_names.GENERATED_TOKENS_TOTAL
    exporter.values = {tokens: 100}
    agent = start(node.place(powerProfile="Eco"))
    eventually(lambda: exporter.reads, lambda reads: reads > 1)

    node.driver["GPU-0"].energy_mj += 8_000_000
    exporter.values = {tokens: 500}

    key = (metric_names.POWER_JOULES_PER_TOKEN, "team-a", "chat")
    # The counter and the page move one after the other, so two looks may each see one of them.
    assert eventually(agent.samples, lambda samples: samples.get(key) == 20)[key] == 20
