"""New revisions: they arrive, they can be taken back, and at no moment fewer replicas serve than promised."""

from __future__ import annotations

import pytest

from support.kube_client import KubeClient, Manifest, eventually
from support.replica_watcher import ReplicaWatcher
from support.services import condition, deployment, pods, ready_pods, service, wait_ready

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator", "clean")]

BROKEN = {"podTemplate": {"labels": {"example.com/never-ready": "true"}}}


def revisions(kube: KubeClient) -> set[str]:
    """Pod template hashes of the pods that stay."""
    return {
        pod["metadata"]["labels"]["pod-template-hash"]
        for pod in pods(kube)
        if "deletionTimestamp" not in pod["metadata"]
    }


def drain_of(found: Manifest) -> int:
    period: int = found["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    return period - 15


def test_a_new_revision_replaces_the_old_one_and_keeps_the_promise(kube: KubeClient) -> None:
    kube.apply(service(replicas=3, rollout={"minAvailable": 2}))
    wait_ready(kube)
    before = revisions(kube)
    watcher = ReplicaWatcher(kube, "chat")

    with watcher.watching():
        kube.apply(service(replicas=3, rollout={"minAvailable": 2}, limits={"maxRunningRequests": 8}))
        wait_ready(kube, timeout_s=60)

    assert len(watcher.ready) > 3
    assert min(watcher.ready) >= 2
    assert len(revisions(kube)) == 1
    assert revisions(kube).isdisjoint(before)


def test_a_service_is_not_ready_while_only_the_old_revision_serves(kube: KubeClient) -> None:
    kube.apply(service(replicas=2))
    wait_ready(kube)

    kube.apply(service(replicas=2, **BROKEN))

    waiting = eventually(lambda: condition(kube), lambda found: found.get("status") == "False")
    assert "2 of an earlier one still serve" in eventually(
        lambda: condition(kube)["message"], lambda text: "earlier" in text
    )
    assert waiting["reason"] in ("RollingOut", "ReplicasNotReady", "PodsPending")
    assert ready_pods(kube) == 2


def test_a_broken_revision_taken_back_leaves_the_old_pods_untouched(kube: KubeClient) -> None:
    kube.apply(service(replicas=2, rollout={"minAvailable": 2}))
    wait_ready(kube)
    before = {pod["metadata"]["uid"] for pod in pods(kube)}
    kube.apply(service(replicas=2, rollout={"minAvailable": 2}, **BROKEN))
    eventually(lambda: len(revisions(kube)), lambda count: count == 2)
    watcher = ReplicaWatcher(kube, "chat")

    with watcher.watching():
        kube.apply(service(replicas=2, rollout={"minAvailable": 2}))
        wait_ready(kube, timeout_s=60)

    assert min(watcher.ready) == 2
    eventually(lambda: {pod["metadata"]["uid"] for pod in pods(kube)}, lambda found: found == before)


@pytest.mark.parametrize("promise", [0, 1])
def test_a_rollout_on_exactly_full_gpus_finishes(kube: KubeClient, promise: int) -> None:
    """The default of the field deadlocks here: the new pod waits for the device that the old one holds."""
    spec = {"accelerator": {"classes": ["edge-l4"]}, "replicas": 2, "rollout": {"minAvailable": promise}}
    kube.apply(service(**spec))
    wait_ready(kube)
    watcher = ReplicaWatcher(kube, "chat")

    with watcher.watching():
        kube.apply(service(**spec, limits={"maxRunningRequests": 8}))
        wait_ready(kube, timeout_s=60)

    assert min(watcher.ready) >= promise
    assert len(revisions(kube)) == 1


def test_edits_in_quick_succession_end_at_the_last_one(kube: KubeClient) -> None:
    kube.apply(service(replicas=3, rollout={"minAvailable": 2}))
    wait_ready(kube)
    watcher = ReplicaWatcher(kube, "chat")

    with watcher.watching():
        for seconds in (10, 20, 30, 40, 50):
            kube.apply(service(replicas=3, rollout={"minAvailable": 2}, drain={"timeoutSeconds": seconds}))
        wait_ready(kube, timeout_s=60)

    assert min(watcher.ready) >= 2
    assert drain_of(deployment(kube)) == 50
    assert len(revisions(kube)) == 1


def test_only_what_a_replica_reads_restarts_it(kube: KubeClient) -> None:
    kube.apply(service(replicas=2))
    wait_ready(kube)
    before = {pod["metadata"]["uid"] for pod in pods(kube)}

    kube.apply(service(replicas=2, rollout={"minAvailable": 2}))
    wait_ready(kube)

    assert {pod["metadata"]["uid"] for pod in pods(kube)} == before
