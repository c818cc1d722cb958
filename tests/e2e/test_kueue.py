"""Kueue's own controller admits pods of services for which a LocalQueue is named, and services say why they wait.

Both quotas apply: the Tenant's decides how many pods there are, Kueue when each of them runs.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.control_plane import ControlPlane
from support.kube_client import KubeClient, Manifest, eventually
from support.kueue import API as KUEUE
from support.kueue import running_kueue
from support.operator_process import OperatorProcess
from support.services import API, QUEUE_LABEL, condition, deployment, find, pods, ready_pods, service, wait_ready
from support.tools import Toolset, go_is_present

pytestmark = [pytest.mark.cluster, pytest.mark.own_plane, pytest.mark.usefixtures("clean")]

SLOW_S = 60.0


@pytest.fixture(scope="module")
def kueue(
    control_plane: ControlPlane, kube: KubeClient, fleet: None, tools: Toolset, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    if not go_is_present():
        pytest.skip("missing binary: go, which builds Kueue")
    folder = tmp_path_factory.mktemp("kueue")
    with running_kueue(folder, tools.require("helm"), control_plane.kubeconfig, kube):
        yield


@pytest.fixture
def queue(kueue: None, kube: KubeClient) -> Iterator[str]:
    """LocalQueue `gpu` of team-a with room for one H200 replica."""
    kube.apply({"apiVersion": KUEUE, "kind": "ResourceFlavor", "metadata": {"name": "any"}, "spec": {}})
    kube.apply(cluster_queue(devices=1))
    for name in ("gpu", "other"):
        metadata = {"name": name, "namespace": "team-a"}
        kube.apply({"apiVersion": KUEUE, "kind": "LocalQueue", "metadata": metadata, "spec": {"clusterQueue": "fleet"}})
    yield "gpu"
    name_queue(kube, "")


@pytest.fixture
def operator(queue: str, no_operator: OperatorProcess) -> OperatorProcess:
    """An operator that starts when Kueue is there: what a cluster offers is looked at then, and every few minutes."""
    no_operator.start()
    eventually(no_operator.leads, bool, timeout_s=SLOW_S)
    return no_operator


def cluster_queue(devices: int) -> Manifest:
    amounts = [
        {"name": "cpu", "nominalQuota": "64"},
        {"name": "memory", "nominalQuota": "1Ti"},
        {"name": "nvidia.com/gpu", "nominalQuota": str(devices)},
    ]
    group = {
        "coveredResources": ["cpu", "memory", "nvidia.com/gpu"],
        "flavors": [{"name": "any", "resources": amounts}],
    }
    return {
        "apiVersion": KUEUE,
        "kind": "ClusterQueue",
        "metadata": {"name": "fleet"},
        "spec": {"namespaceSelector": {}, "resourceGroups": [group]},
    }


def name_queue(kube: KubeClient, queue: str) -> None:
    """Let Tenant `a` name a LocalQueue; empty: none."""
    found = kube.get(API, "Tenant", "a")
    assert found is not None
    kube.merge(found, {"spec": {"localQueue": queue}})


def gpu_service(**spec: object) -> Manifest:
    return service(accelerator={"classes": ["h200"]}, **spec)


def labelled(manifest: Manifest, queue: str) -> Manifest:
    return {**manifest, "metadata": {**manifest["metadata"], "labels": {QUEUE_LABEL: queue}}}


def quota(kube: KubeClient) -> dict[str, str]:
    return condition(kube, kind="QuotaAdmitted")


def test_pods_wait_until_kueue_has_room_and_the_service_says_so_in_kueues_words(
    kube: KubeClient, operator: OperatorProcess, queue: str
) -> None:
    name_queue(kube, queue)

    kube.apply(gpu_service(replicas=2))

    waits = eventually(lambda: quota(kube), lambda found: "insufficient" in found.get("message", ""), timeout_s=SLOW_S)
    assert (waits["status"], waits["reason"]) == ("False", "QueuePending")
    assert "1 pod waits in LocalQueue gpu of Kueue" in waits["message"]
    assert ready_pods(kube) == 1
    assert condition(kube)["reason"] == "PodsPending"

    kube.apply(cluster_queue(devices=2))

    wait_ready(kube, timeout_s=SLOW_S)
    admitted = eventually(lambda: quota(kube), lambda found: found["status"] == "True", timeout_s=SLOW_S)
    assert admitted["reason"] == "QueueAdmitted"
    assert ready_pods(kube) == 2


def test_the_tenants_own_quota_applies_as_well(kube: KubeClient, operator: OperatorProcess, queue: str) -> None:
    kube.apply(cluster_queue(devices=64))
    name_queue(kube, queue)

    kube.apply(gpu_service(replicas=7))  # Tenant a owns six

    refused = eventually(lambda: quota(kube), lambda found: found.get("status") == "False", timeout_s=SLOW_S)
    assert refused["reason"] == "QuotaExceeded"
    assert pods(kube) == [], "Kueue never sees what the Tenant may not have"


def test_a_service_may_name_a_queue_of_its_own(kube: KubeClient, operator: OperatorProcess, queue: str) -> None:
    name_queue(kube, queue)

    kube.apply(labelled(gpu_service(), "other"))

    wait_ready(kube, timeout_s=SLOW_S)
    (pod,) = pods(kube)
    assert deployment(kube)["metadata"]["labels"][QUEUE_LABEL] == "other"
    assert pod["metadata"]["labels"]["kueue.x-k8s.io/managed"] == "true"
    assert [item["choice"] for item in find(kube)["status"]["decisions"] if item["topic"] == "queue"] == ["other"]


def test_a_queue_that_does_not_exist_is_named(kube: KubeClient, operator: OperatorProcess, queue: str) -> None:
    kube.apply(labelled(gpu_service(), "missing"))

    found = eventually(lambda: quota(kube), lambda found: "doesn't exist" in found.get("message", ""), timeout_s=SLOW_S)

    assert "LocalQueue missing" in found["message"]


def test_a_rollout_in_a_full_queue_finishes_one_out_one_in(
    kube: KubeClient, operator: OperatorProcess, queue: str
) -> None:
    """Nodes have free devices, so the successor would start first; Kueue holds it, and the old pod has to make way."""
    name_queue(kube, queue)
    kube.apply(gpu_service(rollout={"minAvailable": 0}))
    wait_ready(kube, timeout_s=SLOW_S)

    kube.apply(gpu_service(rollout={"minAvailable": 0}, drain={"timeoutSeconds": 30}))

    eventually(
        lambda: deployment(kube)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"],
        lambda seconds: seconds == 45,
        timeout_s=SLOW_S,
    )
    wait_ready(kube, timeout_s=3 * SLOW_S)
    assert ready_pods(kube) == 1


def test_a_running_service_joins_a_queue_once_it_is_suspended(
    kube: KubeClient, operator: OperatorProcess, queue: str
) -> None:
    kube.apply(gpu_service())
    wait_ready(kube, timeout_s=SLOW_S)

    name_queue(kube, queue)

    decided = eventually(
        lambda: [item for item in find(kube)["status"]["decisions"] if item["topic"] == "queue"], bool, timeout_s=SLOW_S
    )
    assert decided[0]["choice"] == "none"
    assert "set spec.suspend once" in decided[0]["reason"]
    kube.apply(gpu_service(suspend=True))
    eventually(lambda: deployment(kube)["metadata"]["labels"].get(QUEUE_LABEL), bool, timeout_s=SLOW_S)
    kube.apply(gpu_service())
    wait_ready(kube, timeout_s=SLOW_S)
    (pod,) = [pod for pod in pods(kube) if "deletionTimestamp" not in pod["metadata"]]
    assert pod["metadata"]["labels"]["kueue.x-k8s.io/managed"] == "true"
