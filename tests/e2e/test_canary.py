"""Canaries in a cluster, whole: the operator judges them by a real Prometheus that scrapes simulated replicas, and the
gateway with the chart's account shares real requests out.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.cluster_gateway import (
    GATEWAY,
    SIMULATED,
    SYSTEM,
    ClusterGateway,
    PodNetwork,
    asking,
    running_gateway,
    running_simulation,
    serving_pods,
)
from support.control_plane import ControlPlane
from support.kube_client import KubeClient, Manifest, eventually
from support.metrics_adapter import running_prometheus
from support.operator_process import OperatorProcess, running_operator
from support.services import API, APPS, OWNED, children, find, service, tenant, wait_ready
from support.tokens import request_token
from windlass_contract.endpoints import digest_key

pytestmark = [pytest.mark.cluster, pytest.mark.own_plane, pytest.mark.usefixtures("clean")]

ROOT = Path(__file__).parents[2]
SECRET = f"{GATEWAY}-routes"
KEY = "key-of-tenant-a-0123456789"
GPUS = {"h200": 6, "a100": 4, "a100-slice": 4, "edge-l4": 2}
QUICK = {"intervalSeconds": 5, "startDelaySeconds": 3, "failureLimit": 1, "passes": 1, "minRequests": 10}
ERRORS = {"type": "ErrorRate", "threshold": 10}


@pytest.fixture(scope="module")
def chart(kube: KubeClient, operator_kubeconfig: Path, helm: Any) -> Iterator[None]:
    place = ("windlass", str(ROOT / "helm" / "windlass"), "--namespace", SYSTEM)
    helm("upgrade", "--install", *place, "--set=gateway.enabled=true")
    keys = {"keys": [{"name": "first", "sha256": digest_key(KEY)}]}
    kube.apply(tenant("a", "team-a", gpus=GPUS, access=keys))
    yield
    kube.apply(tenant("a", "team-a", gpus=GPUS))
    helm("upgrade", *place, "--reset-values")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("canary")


@pytest.fixture(scope="module")
def simulations(folder: Path) -> Iterator[dict[str, str]]:
    """Addresses of simulated replicas by how they behave."""
    with ExitStack() as stack:
        flags = {"good": (), "twin": (), "bad": ("--failure-share", "0.5")}
        yield {name: stack.enter_context(running_simulation(folder, name, *more)) for name, more in flags.items()}


@pytest.fixture(scope="module")
def network(kube: KubeClient) -> Iterator[PodNetwork]:
    with serving_pods() as network:
        network.pods = lambda: kube.list("v1", "Pod", selector=OWNED)
        yield network


@pytest.fixture(scope="module")
def prometheus(network: PodNetwork, folder: Path) -> Iterator[str]:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("missing binary: prometheus, in PATH")
    with running_prometheus(binary, folder, network.port) as url:
        yield url


@pytest.fixture(scope="module")
def operator(
    chart: None,
    prometheus: str,
    network: PodNetwork,
    shared_operator: OperatorProcess,
    operator_kubeconfig: Path,
    folder: Path,
) -> Iterator[OperatorProcess]:
    """An operator that the chart would tell about gateway and Prometheus."""
    if shared_operator.running:
        shared_operator.stop()
    environment = {
        "WINDLASS_ROUTES_SECRET": SECRET,
        "WINDLASS_CANARY_PROMETHEUS_URL": prometheus,
        "WINDLASS_CANARY_PROBE_URL": f"http://127.0.0.1:{network.port}/{{namespace}}/{{name}}",
    }
    with running_operator(operator_kubeconfig, folder / "operator.log", environment) as operator:
        eventually(operator.leads, bool, timeout_s=30)
        yield operator


@pytest.fixture(scope="module")
def gateway(
    control_plane: ControlPlane, kube: KubeClient, operator: OperatorProcess, network: PodNetwork, folder: Path
) -> Iterator[ClusterGateway]:
    access = control_plane.access(request_token(kube, SYSTEM, GATEWAY))
    with running_gateway(access, SECRET, network, folder) as gateway:
        yield gateway


def simulated(name: str, **spec: Any) -> Manifest:
    """A service whose replicas answer to the name of simulated ones."""
    return service(name, model={"uri": "hf://organisation/model", "servedName": SIMULATED}, **spec)


def canary(name: str = "next", percent: int = 50, **fields: Any) -> Manifest:
    return {"name": name, "trafficPercent": percent, **fields}


def state(kube: KubeClient, name: str, position: int = 0) -> Manifest:
    """The status of a canary; empty before there is one."""
    states = find(kube, name).get("status", {}).get("canaries", [])
    return dict(states[position]) if len(states) > position else {}


def wait_phase(kube: KubeClient, name: str, phase: str, *, timeout_s: float = 60) -> Manifest:
    return eventually(lambda: state(kube, name), lambda found: found.get("phase") == phase, timeout_s=timeout_s)


def events(kube: KubeClient, name: str) -> list[tuple[str, str]]:
    found = kube.list("events.k8s.io/v1", "Event", "team-a")
    return [(item["type"], item["reason"]) for item in found if item.get("regarding", {}).get("name") == name]


def wait_answers(gateway: ClusterGateway, name: str) -> None:
    eventually(lambda: gateway.ask(f"team-a/{name}", KEY)[0], lambda status: status == 200, timeout_s=30)


def test_a_bad_canary_is_aborted_and_the_stable_revision_serves_on(
    kube: KubeClient, gateway: ClusterGateway, network: PodNetwork, simulations: dict[str, str]
) -> None:
    network.backends = {"bad": simulations["good"], "bad-next": simulations["bad"]}
    kube.apply(simulated("bad", canaries=[canary(analysis={**QUICK, "metrics": [ERRORS]})]))
    wait_ready(kube, "bad")
    wait_phase(kube, "bad", "Analysing")
    wait_answers(gateway, "bad")

    with asking(gateway, "team-a/bad", KEY) as answers:
        aborted = wait_phase(kube, "bad", "Aborted")
    eventually(lambda: gateway.ask("team-a/bad", KEY, X_Windlass_Canary="next")[0], lambda status: status == 404)
    later = {gateway.ask("team-a/bad", KEY)[0] for _ in range(20)}

    (measure,) = aborted["analysis"]["measures"]
    assert aborted["reason"] == "AnalysisFailed"
    assert aborted["trafficPercent"] == 0
    assert float(measure["value"]) > 10
    assert measure["samples"] >= 10
    assert answers[500, "next"] > 0
    assert not [answer for answer in answers if answer[1] == "" and answer[0] != 200]
    assert later == {200}
    scaled = eventually(
        lambda: kube.get(APPS, "Deployment", "bad-next", "team-a"), lambda found: found["spec"]["replicas"] == 0
    )
    assert scaled is not None
    conditions = {item["type"]: item["status"] for item in find(kube, "bad")["status"]["conditions"]}
    assert (conditions["CanaryAborted"], conditions["Ready"]) == ("True", "True")
    assert eventually(lambda: ("Warning", "CanaryAborted") in events(kube, "bad"), bool)


def test_an_abort_outlives_the_operator_and_ends_with_a_new_spec(
    kube: KubeClient,
    gateway: ClusterGateway,
    network: PodNetwork,
    simulations: dict[str, str],
    operator: OperatorProcess,
) -> None:
    network.backends = {"lasting": simulations["good"], "lasting-next": simulations["bad"]}
    kube.apply(simulated("lasting", canaries=[canary(analysis={**QUICK, "metrics": [ERRORS]})]))
    wait_phase(kube, "lasting", "Analysing")
    wait_answers(gateway, "lasting")
    with asking(gateway, "team-a/lasting", KEY):
        before = wait_phase(kube, "lasting", "Aborted")

    operator.stop()
    operator.start()
    eventually(operator.leads, bool, timeout_s=30)
    kube.apply(simulated("other"))
    wait_ready(kube, "other")
    after = state(kube, "lasting")
    network.backends = {"lasting": simulations["good"], "lasting-next": simulations["twin"]}
    kube.apply(simulated("lasting", canaries=[canary(percent=40, analysis={**QUICK, "metrics": [ERRORS]})]))

    assert (after["phase"], after["message"]) == ("Aborted", before["message"])
    wait_phase(kube, "lasting", "Analysing")


def test_a_good_canary_succeeds_by_all_measures_and_stays(
    kube: KubeClient, gateway: ClusterGateway, network: PodNetwork, simulations: dict[str, str]
) -> None:
    network.backends = {"fine": simulations["good"], "fine-next": simulations["twin"]}
    metrics = [
        ERRORS,
        {"type": "TimeToFirstToken", "threshold": 5000},
        {"type": "TokensPerSecond", "threshold": 95, "comparison": "Stable"},
        {"type": "QualityProbe", "threshold": 90},
    ]
    analysis = {**QUICK, "metrics": metrics, "steps": [25], "prompts": ["Why is the sky blue?"]}
    kube.apply(simulated("fine", canaries=[canary(analysis=analysis)]))
    wait_phase(kube, "fine", "Analysing")
    wait_answers(gateway, "fine")

    with asking(gateway, "team-a/fine", KEY) as answers:
        first = state(kube, "fine")["trafficPercent"]
        succeeded = wait_phase(kube, "fine", "Succeeded", timeout_s=90)

    assert first == 25
    assert succeeded["trafficPercent"] == 50
    assert {measure["type"]: measure["verdict"] for measure in succeeded["analysis"]["measures"]} == {
        "ErrorRate": "Passed",
        "TimeToFirstToken": "Passed",
        "TokensPerSecond": "Passed",
        "QualityProbe": "Passed",
    }
    assert {status for status, _ in answers} == {200}


def test_a_dark_launch_gets_no_request_but_those_that_ask_for_it(
    kube: KubeClient, gateway: ClusterGateway, network: PodNetwork, simulations: dict[str, str]
) -> None:
    network.backends = {}
    kube.apply(simulated("night", canaries=[canary(percent=0)]))
    wait_phase(kube, "night", "Running")
    wait_answers(gateway, "night")

    usual = {gateway.ask("team-a/night", KEY)[1]["pod"] for _ in range(50)}
    asked = eventually(
        lambda: gateway.ask("team-a/night", KEY, X_Windlass_Canary="next"), lambda answer: answer[0] == 200
    )

    assert not [pod for pod in usual if str(pod).startswith("night-next-")]
    assert str(asked[1]["pod"]).startswith("night-next-")


def test_no_data_ends_at_the_deadline(kube: KubeClient, gateway: ClusterGateway, network: PodNetwork) -> None:
    network.backends = {}
    analysis = {**QUICK, "metrics": [ERRORS], "deadlineSeconds": 12}
    kube.apply(simulated("quiet", canaries=[canary(analysis=analysis)]))

    aborted = wait_phase(kube, "quiet", "Aborted")

    assert aborted["reason"] == "DeadlineExceeded"
    assert "Prometheus knows no series" in aborted["message"]


def test_shares_are_exact_over_time(kube: KubeClient, gateway: ClusterGateway, network: PodNetwork) -> None:
    network.backends = {}
    kube.apply(simulated("shares", canaries=[canary(percent=30), canary("other", 20)]))
    eventually(lambda: state(kube, "shares", 1).get("phase"), lambda phase: phase == "Running")
    wait_phase(kube, "shares", "Running")
    eventually(lambda: gateway.ask("team-a/shares", KEY, X_Windlass_Canary="other")[0], lambda status: status == 200)
    eventually(lambda: gateway.ask("team-a/shares", KEY, X_Windlass_Canary="next")[0], lambda status: status == 200)

    pods = [str(gateway.ask("team-a/shares", KEY)[1]["pod"]) for _ in range(100)]

    counts = {name: sum(pod.startswith(f"shares-{name}-") for pod in pods) for name in ("next", "other")}
    assert abs(counts["next"] - 30) <= 2
    assert abs(counts["other"] - 20) <= 2


def test_a_canary_counts_against_the_quota_and_gives_it_back(kube: KubeClient, operator: OperatorProcess) -> None:
    gpu = {"accelerator": {"classes": ["h200"]}}
    kube.apply(simulated("big", replicas=4, canaries=[canary(replicas=2)], **gpu))
    wait_phase(kube, "big", "Running")
    kube.apply(simulated("late", replicas=1, **gpu))
    refused = eventually(
        lambda: [item["reason"] for item in find(kube, "late").get("status", {}).get("conditions", [])],
        lambda reasons: "QuotaExceeded" in reasons,
    )
    used = eventually(
        lambda: {gpu["name"]: gpu["used"] for gpu in find_tenant(kube)["status"]["gpus"]},
        lambda found: found.get("h200") == 6,
    )

    kube.apply(simulated("big", replicas=4, **gpu))

    assert refused
    assert used["h200"] == 6
    wait_ready(kube, "late")


def find_tenant(kube: KubeClient) -> Manifest:
    found = kube.get(API, "Tenant", "a")
    assert found is not None
    return found


def test_removing_a_canary_removes_its_objects_and_leaves_the_service_alone(
    kube: KubeClient, operator: OperatorProcess
) -> None:
    kube.apply(simulated("plain", replicas=2, canaries=[canary(replicas=2)]))
    wait_phase(kube, "plain", "Running")
    wait_ready(kube, "plain")
    ours = f"{OWNED},app.kubernetes.io/instance=plain"
    kinds = [(APPS, "Deployment"), ("v1", "Service"), ("v1", "ConfigMap"), ("policy/v1", "PodDisruptionBudget")]
    before = {(kind, item["metadata"]["name"]) for api, kind in kinds for item in kube.list(api, kind, "team-a", ours)}
    stable = kube.get(APPS, "Deployment", "plain", "team-a")

    kube.apply(simulated("plain", replicas=2))
    left = eventually(
        lambda: {
            (kind, item["metadata"]["name"]) for api, kind in kinds for item in kube.list(api, kind, "team-a", ours)
        },
        lambda found: not [name for _, name in found if "next" in name],
    )

    after = kube.get(APPS, "Deployment", "plain", "team-a")
    assert stable is not None
    assert after is not None
    assert {name for _, name in before - left} == {"plain-next", "plain-next-launch"}
    assert after["metadata"]["generation"] == stable["metadata"]["generation"]
    assert eventually(lambda: find(kube, "plain")["status"].get("canaries", []), lambda found: not found) == []


def test_a_canary_that_runs_quietly_causes_no_writes(kube: KubeClient, operator: OperatorProcess) -> None:
    kube.apply(simulated("still", canaries=[canary()]))
    wait_phase(kube, "still", "Running")
    wait_ready(kube, "still")
    eventually(lambda: state(kube, "still").get("readyReplicas"), lambda ready: ready == 1)

    def seen() -> dict[str, str]:
        found = [*children(kube, "still"), find(kube, "still")]
        return {item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in found}

    before = seen()
    operator.stop()
    operator.start()
    eventually(operator.leads, bool, timeout_s=30)
    kube.apply(simulated("probe"))
    wait_ready(kube, "probe")

    assert len(before) > 8
    assert seen() == before
