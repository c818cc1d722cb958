"""Clusters with KEDA: the real definition of ScaledObjects judges ours, and scalers take turns without ever meeting.

KEDA's own operator does not run here; the test does what it would do with finalizers and with its autoscaler. Its
module can be had, but is one program of 3,300 packages with the SDKs of every cloud it scales by: ten minutes of two
busy cores compiled fewer than a quarter of them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from support.kube_client import KubeClient, Manifest, eventually
from support.operator_process import OperatorProcess, running_operator
from support.services import deployment, find, service, wait_ready

pytestmark = [pytest.mark.cluster, pytest.mark.own_plane, pytest.mark.usefixtures("clean")]

KEDA = "github.com/kedacore/keda/v2@v2.21.0"
CRD = "config/crd/bases/keda.sh_scaledobjects.yaml"
API = "keda.sh/v1alpha1"
PROMETHEUS = "http://prometheus.monitoring:9090"
FINALIZER = "finalizer.keda.sh"
METRICS = [
    {"type": "QueueDepth", "target": 4},
    {"type": "TimeToFirstToken", "target": 2000},
    {"type": "TokensPerSecond", "target": 900},
]
SCALED = {"minReplicas": 0, "maxReplicas": 6, "metrics": METRICS, "fallback": {"replicas": 2}}
Start = Callable[[str], OperatorProcess]


@pytest.fixture(scope="module")
def keda(kube: KubeClient) -> Iterator[None]:
    """The definition of ScaledObjects, from KEDA's Go module."""
    if shutil.which("go") is None:
        pytest.skip("missing binary: go, which brings KEDA's definitions")
    loaded = subprocess.run(["go", "mod", "download", "-json", KEDA], capture_output=True, text=True, check=False)
    if loaded.returncode:
        pytest.skip(f"{KEDA} cannot be had: {loaded.stderr.strip()[-300:]}")
    crd = yaml.safe_load((Path(json.loads(loaded.stdout)["Dir"]) / CRD).read_text())
    name = kube.apply(crd)["metadata"]["name"]

    def is_established() -> bool:
        found = kube.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", name) or {}
        conditions = (found.get("status") or {}).get("conditions") or []
        return any(item["type"] == "Established" and item["status"] == "True" for item in conditions)

    eventually(is_established, bool)
    yield
    kube.delete("apiextensions.k8s.io/v1", "CustomResourceDefinition", name)


@pytest.fixture
def start(
    keda: None, no_operator: OperatorProcess, operator_kubeconfig: Path, helm: Callable[..., str], tmp_path: Path
) -> Iterator[Start]:
    """Start an operator that prefers a scaler; the one before it ends first."""
    chart = ("windlass", str(Path(__file__).parents[2] / "helm" / "windlass"), "--namespace", "windlass-system")
    helm("upgrade", *chart, "--reset-values", f"--set=fleet.prometheusUrl={PROMETHEUS}")
    with ExitStack() as outer:
        current: list[ExitStack] = []
        outer.callback(lambda: [stack.close() for stack in current])

        def begin(scaler: str) -> OperatorProcess:
            while current:
                current.pop().close()
            stack = ExitStack()
            settings = {"WINDLASS_FLEET_PROMETHEUS_URL": PROMETHEUS, "WINDLASS_FLEET_AUTOSCALER": scaler}
            log = tmp_path / f"operator-{scaler or 'chosen'}.log"
            found = stack.enter_context(running_operator(operator_kubeconfig, log, settings))
            current.append(stack)
            eventually(found.leads, bool, timeout_s=30)
            return found

        yield begin
    helm("upgrade", *chart, "--reset-values")


def scaled_object(kube: KubeClient, name: str) -> Manifest | None:
    return kube.get(API, "ScaledObject", name, "team-a")


def autoscaler(kube: KubeClient, name: str) -> Manifest | None:
    return kube.get("autoscaling/v2", "HorizontalPodAutoscaler", name, "team-a")


def decision(kube: KubeClient, name: str, topic: str) -> dict[str, str]:
    found = find(kube, name).get("status", {}).get("decisions", [])
    return next((item for item in found if item["topic"] == topic), {})


def test_a_cluster_with_keda_gets_scaled_objects_that_its_definition_takes(kube: KubeClient, start: Start) -> None:
    start("")

    kube.apply(service("by-keda", scaling=SCALED))

    found = eventually(lambda: scaled_object(kube, "by-keda"), bool)
    assert autoscaler(kube, "by-keda") is None
    # What the definition does not know it would have dropped, and the operator would say so.
    assert [trigger["type"] for trigger in found["spec"]["triggers"]] == ["prometheus"] * 4
    assert found["spec"]["fallback"]["behavior"] == "currentReplicasIfHigher"
    assert found["spec"]["advanced"]["restoreToOriginalReplicaCount"] is False
    chosen = eventually(lambda: decision(kube, "by-keda", "autoscaler"), bool)
    assert chosen["choice"] == "ScaledObject"
    assert PROMETHEUS in chosen["reason"]


def test_scalers_take_turns_and_the_number_of_replicas_stays(kube: KubeClient, start: Start) -> None:
    scaling = {"minReplicas": 1, "maxReplicas": 6, "metrics": METRICS}
    start("HorizontalPodAutoscaler")
    kube.apply(service("turns", scaling=scaling))
    eventually(lambda: autoscaler(kube, "turns"), bool)
    wait_ready(kube, "turns", timeout_s=60)
    kube.merge(deployment(kube, "turns"), {"spec": {"replicas": 3}})

    start("ScaledObject")
    held = eventually(lambda: scaled_object(kube, "turns"), bool, timeout_s=60)
    eventually(lambda: autoscaler(kube, "turns"), lambda found: found is None)
    assert deployment(kube, "turns")["spec"]["replicas"] == 3

    # KEDA holds its objects until it has let the workload go.
    kube.merge(held, {"metadata": {"finalizers": [FINALIZER]}})
    start("HorizontalPodAutoscaler")
    leaving = eventually(
        lambda: scaled_object(kube, "turns"),
        lambda found: found is not None and "deletionTimestamp" in found["metadata"],
        timeout_s=60,
    )
    assert autoscaler(kube, "turns") is None, "two scalers would drive one number"
    kube.merge(leaving, {"metadata": {"finalizers": None}})

    eventually(lambda: autoscaler(kube, "turns"), bool, timeout_s=60)
    assert scaled_object(kube, "turns") is None
    assert deployment(kube, "turns")["spec"]["replicas"] == 3


def test_the_autoscaler_that_keda_makes_is_left_alone(kube: KubeClient, start: Start) -> None:
    """KEDA copies the labels and annotations of a ScaledObject to it, those of ours by which we prune too."""
    start("ScaledObject")
    kube.apply(service("copied", scaling=SCALED))
    ours = eventually(lambda: scaled_object(kube, "copied"), bool)
    marks = {key: ours["metadata"][key] for key in ("labels", "annotations")}
    owner = {"apiVersion": API, "kind": "ScaledObject", "name": "copied", "uid": ours["metadata"]["uid"]}
    made = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {
            "name": "keda-hpa-copied",
            "namespace": "team-a",
            "ownerReferences": [owner | {"controller": True}],
            **marks,
        },
        "spec": {
            "scaleTargetRef": ours["spec"]["scaleTargetRef"],
            "minReplicas": 1,
            "maxReplicas": 6,
        },
    }
    kube.apply(made, manager="keda-operator")

    kube.apply(service("copied", scaling={**SCALED, "maxReplicas": 5}))
    eventually(lambda: (scaled_object(kube, "copied") or {})["spec"]["maxReplicaCount"], lambda most: most == 5)

    assert kube.get("autoscaling/v2", "HorizontalPodAutoscaler", "keda-hpa-copied", "team-a") is not None


def test_a_scaled_object_that_somebody_took_away_comes_back(kube: KubeClient, start: Start) -> None:
    start("ScaledObject")
    kube.apply(service("repaired", scaling=SCALED))
    eventually(lambda: scaled_object(kube, "repaired"), bool)

    kube.delete(API, "ScaledObject", "repaired", "team-a")
    kube.apply(service("repaired", scaling={**SCALED, "maxReplicas": 5}))

    found = eventually(lambda: scaled_object(kube, "repaired"), bool)
    assert found["spec"]["maxReplicaCount"] == 5
