"""Who owns the number of replicas: the real HorizontalPodAutoscaler controller, fed by a metrics API of the test.

Every test has a service of its own name: the controller remembers by name how fast it scaled lately.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.kube_client import KubeClient, Manifest, eventually
from support.metrics_api import MetricsApi, serving_metrics
from support.replica_watcher import ReplicaWatcher
from support.services import condition, deployment, ready_pods, service, wait_ready

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator", "clean")]

WAITING = "windlass_requests_waiting"
SCALED = {"minReplicas": 2, "maxReplicas": 6, "metrics": [{"type": "QueueDepth", "target": 4}]}


@pytest.fixture
def metrics(kube: KubeClient, tmp_path: Path) -> Iterator[MetricsApi]:
    """A metrics API in which every pod of team-a reports the same value; a queue of 4 is on target."""

    def names(namespace: str, selector: str) -> list[str]:
        return [pod["metadata"]["name"] for pod in kube.list("v1", "Pod", namespace, selector)]

    api = MetricsApi(names, {WAITING: "4"})
    with serving_metrics(kube, tmp_path, api):
        yield api


def grace_of(found: Manifest) -> int:
    period: int = found["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    return period


def test_a_longer_queue_brings_more_replicas(kube: KubeClient, metrics: MetricsApi) -> None:
    kube.apply(service("longer-queue", scaling=SCALED))
    wait_ready(kube, "longer-queue", timeout_s=120)
    eventually(
        lambda: condition(kube, "longer-queue", kind="ScalingActive"), lambda found: found.get("status") == "True"
    )

    metrics.values[WAITING] = "8"

    eventually(
        lambda: deployment(kube, "longer-queue")["spec"]["replicas"], lambda replicas: replicas >= 4, timeout_s=120
    )
    assert any("horizontal-pod-autoscaler" in user for user in metrics.users)


def test_a_new_revision_under_load_never_lowers_the_number_of_replicas(kube: KubeClient, metrics: MetricsApi) -> None:
    """The most repeated bug of the field: an update resets what the autoscaler had raised."""
    kube.apply(service("new-revision", scaling=SCALED))
    wait_ready(kube, "new-revision", timeout_s=120)
    metrics.values[WAITING] = "8"
    eventually(
        lambda: deployment(kube, "new-revision")["spec"]["replicas"], lambda replicas: replicas >= 4, timeout_s=120
    )
    metrics.values[WAITING] = "4"
    eventually(lambda: ready_pods(kube, "new-revision"), lambda ready: ready >= 4)
    watcher = ReplicaWatcher(kube, "new-revision")

    with watcher.watching():
        kube.apply(service("new-revision", scaling=SCALED, drain={"timeoutSeconds": 30}))
        eventually(lambda: deployment(kube, "new-revision"), lambda found: grace_of(found) == 45)
        wait_ready(kube, "new-revision", timeout_s=120)

    assert len(watcher.wanted) > 5
    assert min(watcher.wanted) >= 4
    assert min(watcher.ready) >= 2  # minReplicas of ready pods at every moment
    assert min(watcher.ready) >= 4 - 1  # and in fact at most one below what the autoscaler wants


def test_lost_metrics_never_shrink_the_fleet_and_show_on_the_service(kube: KubeClient, metrics: MetricsApi) -> None:
    kube.apply(service("lost-metrics", scaling=SCALED))
    wait_ready(kube, "lost-metrics", timeout_s=120)
    metrics.values[WAITING] = "8"
    raised = eventually(
        lambda: deployment(kube, "lost-metrics")["spec"]["replicas"], lambda replicas: replicas >= 4, timeout_s=120
    )

    del metrics.values[WAITING]

    lost = eventually(
        lambda: condition(kube, "lost-metrics", kind="ScalingActive"),
        lambda found: found.get("status") == "False",
        timeout_s=120,
    )
    assert lost["reason"] == "AutoscalerProblem"
    assert deployment(kube, "lost-metrics")["spec"]["replicas"] >= raised


def test_handing_the_replicas_to_an_autoscaler_never_lowers_them(kube: KubeClient, metrics: MetricsApi) -> None:
    kube.apply(service("handed-over", replicas=3))
    wait_ready(kube, "handed-over")
    watcher = ReplicaWatcher(kube, "handed-over")

    with watcher.watching():
        kube.apply(service("handed-over", scaling={**SCALED, "minReplicas": 3}))
        eventually(lambda: kube.get("autoscaling/v2", "HorizontalPodAutoscaler", "handed-over", "team-a"), bool)
        eventually(
            lambda: condition(kube, "handed-over", kind="ScalingActive"), lambda found: found.get("status") == "True"
        )

    assert min(watcher.wanted) == 3
    assert deployment(kube, "handed-over")["spec"]["replicas"] == 3


def test_taking_the_replicas_back_removes_the_autoscaler_first(kube: KubeClient, metrics: MetricsApi) -> None:
    kube.apply(service("taken-back", scaling=SCALED))
    wait_ready(kube, "taken-back", timeout_s=120)

    kube.apply(service("taken-back", replicas=1))

    eventually(
        lambda: kube.get("autoscaling/v2", "HorizontalPodAutoscaler", "taken-back", "team-a"), lambda item: not item
    )
    eventually(lambda: deployment(kube, "taken-back")["spec"]["replicas"], lambda replicas: replicas == 1)


def test_an_autoscaler_may_drive_the_service_itself_through_its_scale_subresource(
    kube: KubeClient, metrics: MetricsApi
) -> None:
    """Bring your own scaler: an HPA that somebody points at the InferenceService works, and nobody fights it."""
    kube.apply(service("own-scaler", replicas=2))
    wait_ready(kube, "own-scaler")
    target = {"apiVersion": "windlass.dev/v1alpha1", "kind": "InferenceService", "name": "own-scaler"}
    pods_metric = {"metric": {"name": WAITING}, "target": {"type": "AverageValue", "averageValue": "4"}}
    spec = {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 5}
    metadata = {"name": "theirs", "namespace": "team-a"}
    hpa = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata}
    kube.apply(hpa | {"spec": spec | {"metrics": [{"type": "Pods", "pods": pods_metric}]}})
    try:
        metrics.values[WAITING] = "8"

        eventually(lambda: ready_pods(kube, "own-scaler"), lambda ready: ready >= 4, timeout_s=120)
    finally:
        kube.delete("autoscaling/v2", "HorizontalPodAutoscaler", "theirs", "team-a")


def test_a_second_autoscaler_on_the_same_pods_is_named_and_nobody_scales(kube: KubeClient, metrics: MetricsApi) -> None:
    """Kubernetes stops both; silence about it would leave a fleet that never scales again."""
    kube.apply(service("contested", scaling=SCALED))
    wait_ready(kube, "contested", timeout_s=60)
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "contested"}
    pods_metric = {"metric": {"name": WAITING}, "target": {"type": "AverageValue", "averageValue": "4"}}
    spec = {"scaleTargetRef": target, "maxReplicas": 9, "metrics": [{"type": "Pods", "pods": pods_metric}]}
    metadata = {"name": "theirs", "namespace": "team-a"}
    hpa = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": spec}
    kube.apply(hpa)
    try:
        found = eventually(
            lambda: condition(kube, "contested", kind="ScalingActive"),
            lambda item: item.get("reason") == "ForeignScaler",
            timeout_s=60,
        )
        assert (found["status"], "theirs" in found["message"]) == ("False", True)
        assert deployment(kube, "contested")["spec"]["replicas"] == 2
    finally:
        kube.delete("autoscaling/v2", "HorizontalPodAutoscaler", "theirs", "team-a")
    eventually(
        lambda: condition(kube, "contested", kind="ScalingActive"),
        lambda item: item.get("status") == "True",
        timeout_s=60,
    )
