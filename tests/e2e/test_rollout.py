"""New revisions: they arrive, they can be taken back, and at no moment fewer replicas serve than promised."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.audit_log import AuditLog
from support.kube_client import KubeClient, Manifest, eventually
from support.replica_watcher import ReplicaWatcher
from support.services import condition, deployment, find, pods, ready_pods, service, wait_ready

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


def rollout(kube: KubeClient, name: str = "chat") -> dict[str, Any]:
    """What the status tells of the rollout; empty before the first."""
    found: dict[str, Any] = find(kube, name).get("status", {}).get("rollout", {})
    return found


def steps(kube: KubeClient, name: str = "chat") -> list[tuple[str, int, str]]:
    """Its steps."""
    return [(step["action"], step["replicas"], step["state"]) for step in rollout(kube, name).get("steps", ())]


def uids(kube: KubeClient, name: str = "chat") -> set[str]:
    """Its pods that stay."""
    return {pod["metadata"]["uid"] for pod in pods(kube, name) if "deletionTimestamp" not in pod["metadata"]}


def edge(replicas: int, promise: int, **spec: Any) -> dict[str, Any]:
    """A spec on the class of two nodes with one GPU each."""
    accelerator = {"classes": ["edge-l4"]}
    return {"accelerator": accelerator, "replicas": replicas, "rollout": {"minAvailable": promise}, **spec}


EDIT = {"limits": {"maxRunningRequests": 8}}


@pytest.fixture
def foreign_pod(kube: KubeClient) -> Iterator[Manifest]:
    """A pod that is not ours on one of the two edge GPUs; no book of ours has it."""
    resources = {"limits": {"nvidia.com/gpu": "1"}}
    container = {"name": "job", "image": "example.com/job", "resources": resources}
    # Of a high priority, or the scheduler would take the device back for the new pod.
    priority = {"priorityClassName": "windlass-realtime"}
    spec = {"nodeSelector": {"windlass.dev/pool": "edge"}, "containers": [container], **priority}
    metadata = {"name": "foreign", "namespace": "default"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    kube.apply(pod)
    eventually(lambda: (kube.get("v1", "Pod", "foreign", "default") or {}).get("spec", {}).get("nodeName"), bool)
    yield pod
    kube.delete("v1", "Pod", "foreign", "default")
    eventually(lambda: kube.get("v1", "Pod", "foreign", "default"), lambda found: found is None)


def test_with_a_free_device_the_new_pod_starts_first(kube: KubeClient) -> None:
    kube.apply(service(**edge(1, 1)))
    wait_ready(kube)
    watcher = ReplicaWatcher(kube, "chat")

    with watcher.watching():
        kube.apply(service(**edge(1, 1, **EDIT)))
        wait_ready(kube, timeout_s=60)

    assert min(watcher.ready) == 1
    eventually(lambda: steps(kube), lambda found: found == [("Surge", 1, "Done")])
    assert (rollout(kube)["state"], rollout(kube)["progress"]) == ("Complete", "1/1")


def test_on_a_full_cluster_one_goes_out_and_one_comes_in(kube: KubeClient) -> None:
    kube.apply(service(**edge(2, 1)))
    wait_ready(kube)

    kube.apply(service(**edge(2, 1, **EDIT)))
    wait_ready(kube, timeout_s=60)

    eventually(lambda: steps(kube), lambda found: found == [("OneOutOneIn", 2, "Done")], timeout_s=60)


def test_a_full_cluster_without_a_pod_to_spare_says_what_to_do_and_goes_on_once_it_is_done(kube: KubeClient) -> None:
    kube.apply(service(**edge(2, 2)))
    wait_ready(kube)
    before = uids(kube)

    kube.apply(service(**edge(2, 2, **EDIT)))

    eventually(lambda: rollout(kube).get("state"), lambda state: state == "Blocked")
    assert "lower spec.rollout.minAvailable" in rollout(kube)["steps"][0]["reason"]
    assert "lower spec.rollout.minAvailable" in eventually(
        lambda: condition(kube)["message"], lambda text: "minAvailable" in text
    )
    assert before <= uids(kube)
    kube.apply(service(**edge(2, 1, **EDIT)))
    wait_ready(kube, timeout_s=60)
    assert uids(kube).isdisjoint(before)


def test_a_surge_whose_device_a_foreign_pod_holds_falls_back(kube: KubeClient, foreign_pod: Manifest) -> None:
    """Our books say that a device is free, the scheduler says that none is: after a while the scheduler is believed."""
    kube.apply(service(**edge(1, 0)))
    wait_ready(kube)

    kube.apply(service(**edge(1, 0, **EDIT)))

    eventually(lambda: steps(kube), lambda found: found[:1] == [("Surge", 1, "Running")])
    wait_ready(kube, timeout_s=90)
    eventually(lambda: steps(kube), lambda found: found == [("OneOutOneIn", 1, "Done")])


def test_a_surge_that_may_stop_no_pod_waits_for_the_foreign_one(kube: KubeClient, foreign_pod: Manifest) -> None:
    kube.apply(service(**edge(1, 1)))
    wait_ready(kube)
    before = uids(kube)

    kube.apply(service(**edge(1, 1, **EDIT)))

    eventually(lambda: rollout(kube).get("state"), lambda state: state == "Blocked", timeout_s=60)
    assert ready_pods(kube) == 1
    assert before <= uids(kube)
    kube.delete("v1", "Pod", "foreign", "default")
    wait_ready(kube, timeout_s=60)


def test_a_broken_revision_on_a_full_cluster_is_taken_back_without_losing_the_pods_that_serve(kube: KubeClient) -> None:
    kube.apply(service(**edge(2, 1)))
    wait_ready(kube)
    kube.apply(service(**edge(2, 1, **BROKEN)))
    eventually(lambda: (len(revisions(kube)), ready_pods(kube)), lambda found: found == (2, 1))
    kept = {pod["metadata"]["uid"] for pod in pods(kube) if is_serving(pod)}
    watcher = ReplicaWatcher(kube, "chat")

    with watcher.watching():
        kube.apply(service(**edge(2, 1)))
        wait_ready(kube, timeout_s=60)

    assert min(watcher.ready) == 1
    assert kept <= uids(kube)


def is_serving(pod: Manifest) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def test_a_broken_revision_on_a_full_cluster_is_mended_in_its_own_device(kube: KubeClient) -> None:
    """The only pod is broken and promised: it must make way, or nobody could ever mend it."""
    kube.apply(service(**edge(2, 1), podTemplate={"labels": {"example.com/never-ready": "true"}}))
    eventually(lambda: len(uids(kube)), lambda count: count == 2)

    kube.apply(service(**edge(2, 1)))

    wait_ready(kube, timeout_s=60)


def test_two_rollouts_share_one_free_device_in_turns(kube: KubeClient) -> None:
    """Four slices: three in use, every pod promised. The first rollout never becomes ready, so it keeps the fourth."""
    slices = {"accelerator": {"classes": ["a100-slice"]}}
    first, second = slices | {"replicas": 2, "rollout": {"minAvailable": 2}}, slices | {"replicas": 1}
    kube.apply(service("first", **first))
    kube.apply(service("second", **second))
    wait_ready(kube, "first")
    wait_ready(kube, "second")
    untouched = uids(kube, "second")
    kube.apply(service("first", **first, **BROKEN))
    eventually(lambda: len(uids(kube, "first")), lambda count: count == 3)

    kube.apply(service("second", **second, **EDIT))

    eventually(lambda: rollout(kube, "second").get("state"), lambda state: state == "Waiting")
    assert condition(kube, "second")["reason"] == "RolloutQueued"
    assert deployment(kube, "second")["spec"]["paused"] is True
    assert uids(kube, "second") == untouched
    kube.apply(service("first", **first, **EDIT))
    wait_ready(kube, "first", timeout_s=60)
    wait_ready(kube, "second", timeout_s=60)
    assert "paused" not in deployment(kube, "second")["spec"]


@pytest.mark.own_plane
def test_a_neighbour_that_takes_the_last_device_rewrites_nothing(
    kube: KubeClient, audit: AuditLog, operator_user: str
) -> None:
    kube.apply(service(**edge(1, 1)))
    wait_ready(kube)
    audit.wait_until_quiet(operator_user)
    mark = audit.mark()

    kube.apply(service("rival", **edge(1, 1)))
    wait_ready(kube, "rival")
    audit.wait_until_quiet(operator_user)

    assert [write for write in audit.writes(mark, operator_user) if write.name.startswith("chat")] == []


def test_a_write_that_leaves_the_pods_alone_does_not_make_ready_flicker(kube: KubeClient) -> None:
    kube.apply(service(replicas=2))
    wait_ready(kube)
    since = condition(kube)["lastTransitionTime"]
    found = deployment(kube)
    time.sleep(1.1)  # the time in a condition has whole seconds

    for seconds in range(60, 70):
        kube.merge(found, {"spec": {"minReadySeconds": 0, "progressDeadlineSeconds": 3000 + seconds}})
        eventually(lambda: deployment(kube)["spec"]["progressDeadlineSeconds"], lambda value: value == 2400)

    assert condition(kube)["status"] == "True"
    assert condition(kube)["lastTransitionTime"] == since


def test_a_replica_that_fails_again_and_again_stalls_its_service(kube: KubeClient) -> None:
    kube.apply(service(replicas=1, **BROKEN))
    (pod,) = eventually(lambda: pods(kube), lambda found: len(found) == 1)
    eventually(lambda: (kube.get("v1", "Pod", pod["metadata"]["name"], "team-a") or {})["spec"].get("nodeName"), bool)
    ended = {"exitCode": 1, "reason": "Error", "message": "no such checkpoint", "finishedAt": "2026-03-01T10:00:00Z"}

    def crash(times: int) -> None:
        waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
        status = {"name": "runtime", "image": "x", "imageID": "", "ready": False, "restartCount": times}
        kube.merge(
            {**pod, "apiVersion": "v1", "kind": "Pod"},
            {"status": {"containerStatuses": [{**status, "state": waiting, "lastState": {"terminated": ended}}]}},
            subresource="status",
        )

    crash(1)
    eventually(lambda: condition(kube)["reason"], lambda reason: reason == "ReplicaFailed")
    assert condition(kube, kind="Stalled") == {}
    crash(5)

    stalled = eventually(lambda: condition(kube, kind="Stalled"), bool)
    assert stalled["reason"] == "ReplicaFailed"
    assert "no such checkpoint" in stalled["message"]
