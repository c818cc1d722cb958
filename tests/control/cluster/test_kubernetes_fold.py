from __future__ import annotations

import pytest

from windlass_operator.cluster.kubernetes_fold import (
    add_queue_words,
    fold_node,
    fold_remnants,
    fold_workload,
    key_of_owner,
    words_of_queue,
)
from windlass_operator.cluster.kubernetes_kinds import OWNER
from windlass_operator.cluster.kubernetes_trim import trim
from windlass_operator.domain import labels
from windlass_operator.domain.snapshot import Key, Revision, Workload

SELECTOR = {labels.INSTANCE: "chat", labels.COMPONENT: "runtime"}


def build_deployment(replicas=2, generation=3, observed=3, conditions=(), gpus=0):
    resources = (
        {"limits": {"nvidia.com/gpu": str(gpus)}, "requests": {"nvidia.com/gpu": str(gpus), "cpu": "1"}} if gpus else {}
    )
    return {
        "kind": "Deployment",
        "metadata": {
            "name": "chat",
            "generation": generation,
            "annotations": {"deployment.kubernetes.io/revision": "2"},
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": SELECTOR},
            "template": {
                "metadata": {"labels": {labels.GPU_CLASS: "h200"} if gpus else {}},
                "spec": {"containers": [{"name": "runtime", "resources": resources}]},
            },
        },
        "status": {"observedGeneration": observed, "conditions": list(conditions)},
    }


def build_replica_set(revision="2", template_hash="new", available=1):
    return {
        "kind": "ReplicaSet",
        "metadata": {
            "labels": {**SELECTOR, "pod-template-hash": template_hash},
            "annotations": {"deployment.kubernetes.io/revision": revision},
        },
        "status": {"availableReplicas": available},
    }


def build_pod(name="chat-1", template_hash="new", ready=True, phase="Running", deleting=False, gpus=0, **status):
    metadata = {"name": name, "namespace": "ns", "labels": {**SELECTOR, "pod-template-hash": template_hash}}
    if deleting:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    resources = {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}, *status.pop("conditions", ())]
    return {
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [{"name": "runtime", "resources": resources}]},
        "status": {"phase": phase, "conditions": conditions, **status},
    }


def test_pods_of_the_newest_revision_are_told_from_older_ones():
    pods = [build_pod("a"), build_pod("b", ready=False), build_pod("c", template_hash="old")]

    workload = fold_workload(build_deployment(3), [build_replica_set(), build_replica_set("1", "old", 1)], pods)

    assert (workload.replicas, workload.ready, workload.updated, workload.updated_ready) == (3, 2, 2, 1)


def test_a_deployment_without_pods_has_only_a_wish():
    assert fold_workload(build_deployment(2)) == Workload(wanted=2, observed=True)


def test_finished_pods_count_nothing_and_leaving_ones_only_their_devices():
    pods = [build_pod("a", gpus=1), build_pod("b", phase="Failed", gpus=1), build_pod("c", deleting=True, gpus=1)]

    workload = fold_workload(build_deployment(1, gpus=1), [build_replica_set()], pods)

    assert (workload.replicas, workload.devices, workload.gpu_class) == (1, 2, "h200")


def test_pods_whose_deployment_is_gone_hold_their_devices_until_they_are():
    pods = [build_pod("a", gpus=1), build_pod("b", deleting=True, gpus=2), build_pod("c", phase="Failed", gpus=4)]
    for pod in pods:
        pod["metadata"]["labels"][labels.GPU_CLASS] = "h200"

    assert fold_remnants(pods) == Workload(gpu_class="h200", devices=3)


@pytest.mark.parametrize("pods", [[], [build_pod()], [build_pod(gpus=1)]], ids=["none", "on CPUs", "of no class"])
def test_pods_whose_deployment_is_gone_hold_nothing_without_a_class(pods):
    assert fold_remnants(pods) is None


def test_pods_that_a_quota_keeps_from_existing_still_wait_for_their_devices():
    assert fold_workload(build_deployment(4, gpus=2)).devices == 8


def test_a_template_that_no_controller_has_seen_is_not_observed():
    assert not fold_workload(build_deployment(generation=4, observed=3)).observed


def with_template(manifest, template):
    manifest["metadata"].setdefault("annotations", {})[labels.TEMPLATE] = template
    return manifest


@pytest.mark.parametrize(
    ("deployment", "replica_set", "observed"),
    [
        pytest.param("a", "a", True, id="a write that leaves the template alone spoils no figure"),
        pytest.param("b", "a", False, id="the figures are of the template before"),
        pytest.param("a", "", False, id="nothing tells, so the generation counts"),
    ],
)
def test_figures_are_of_the_template_that_their_replica_set_carries(deployment, replica_set, observed):
    """The generation alone makes Ready flicker with every annotation and every change of the strategy."""
    written = with_template(build_deployment(generation=4, observed=3), deployment)
    sets = [with_template(build_replica_set(), replica_set) if replica_set else build_replica_set()]

    assert fold_workload(written, sets).observed == observed


def test_a_paused_deployment_that_is_observed_still_has_the_figures_of_the_template_before():
    paused = with_template(build_deployment(), "b")
    paused["spec"]["paused"] = True

    workload = fold_workload(paused, [with_template(build_replica_set(), "a")], [build_pod()])

    assert (workload.paused, workload.observed, workload.template) == (True, False, "b")


def test_pods_are_counted_by_template():
    sets = [with_template(build_replica_set(), "b"), with_template(build_replica_set("1", "old"), "a")]
    pods = [build_pod("x"), build_pod("y", "old"), build_pod("z", "old", ready=False), build_pod("l", deleting=True)]

    workload = fold_workload(with_template(build_deployment(2), "b"), sets, pods)

    assert workload.revisions == (Revision("a", 2, 1), Revision("b", 1, 1, newest=True))
    assert workload.leaving == 1


def test_pods_without_a_place_are_counted_apart_from_pods_that_cannot_start():
    nowhere = build_pod("x", ready=False, conditions=[UNSCHEDULABLE])
    no_image = build_pod("y", ready=False, containerStatuses=[{"state": {"waiting": {"reason": "ImagePullBackOff"}}}])

    assert fold_workload(build_deployment(), [], [nowhere, no_image]).unplaced == 1
    assert fold_workload(build_deployment(conditions=[QUOTA])).unplaced == 1


def test_a_moving_service_holds_devices_of_two_classes():
    old = build_pod("x", "old", gpus=1)
    old["metadata"]["labels"][labels.GPU_CLASS] = "a100"

    workload = fold_workload(build_deployment(2, gpus=1), [build_replica_set()], [old, build_pod("y", gpus=1)])

    assert (workload.gpu_class, workload.devices) == ("h200", 1)
    assert workload.devices_left_behind == (("a100", 1),)


def test_restarts_count_while_the_new_pod_is_not_ready():
    crashing = build_pod("x", ready=False, containerStatuses=[{"restartCount": 6}])
    calm = build_pod("y", containerStatuses=[{"restartCount": 9}])

    workload = fold_workload(build_deployment(), [build_replica_set()], [crashing, calm])

    assert workload.restarts == 6


def test_a_container_that_waits_because_it_failed_is_told_as_a_failure():
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "message": "no such checkpoint"}}
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}}
    failed = build_pod("x", ready=False, containerStatuses=[{"state": waiting, "lastState": ended}])
    ended_well = build_pod("y", ready=False, containerStatuses=[{"state": waiting}])

    assert fold_workload(build_deployment(), [build_replica_set()], [failed]).pending_reason == ""
    assert "back-off" in fold_workload(build_deployment(), [build_replica_set()], [ended_well]).pending_reason


def test_the_strategy_in_force_is_read():
    deployment = build_deployment()
    deployment["spec"]["strategy"] = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}

    assert fold_workload(deployment).max_surge == 1


def test_a_controller_that_gave_up_is_told():
    gave_up = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}

    assert fold_workload(build_deployment(conditions=[gave_up])).overdue


def test_pods_of_other_services_are_ignored():
    stranger = build_pod("x")
    stranger["metadata"]["labels"][labels.INSTANCE] = "other"

    assert fold_workload(build_deployment(), [], [stranger]).replicas == 0


QUOTA = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota: gpus"}
UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available",
}


@pytest.mark.parametrize(
    ("conditions", "pods", "expected"),
    [
        pytest.param([QUOTA], [], "exceeded quota: gpus", id="a quota"),
        pytest.param(
            [], [build_pod(ready=False, conditions=[UNSCHEDULABLE])], "0/3 nodes are available", id="the scheduler"
        ),
        pytest.param(
            [QUOTA], [build_pod(conditions=[UNSCHEDULABLE])], "exceeded quota: gpus", id="the quota comes first"
        ),
        pytest.param(
            [],
            [
                build_pod(
                    ready=False,
                    containerStatuses=[
                        {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
                    ],
                )
            ],
            "ImagePullBackOff: no such image",
            id="an image",
        ),
        pytest.param(
            [],
            [build_pod(ready=False, containerStatuses=[{"state": {"waiting": {"reason": "ContainerCreating"}}}])],
            "",
            id="a normal start",
        ),
        pytest.param([], [build_pod()], "", id="nothing pends"),
    ],
)
def test_what_keeps_pods_from_starting_is_told_in_the_words_of_who_refuses(conditions, pods, expected):
    assert fold_workload(build_deployment(conditions=conditions), [], pods).pending_reason == expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        pytest.param(
            {"type": "ScalingActive", "status": "False", "reason": "FailedGetPodsMetric", "message": "no metrics"},
            "FailedGetPodsMetric: no metrics",
            id="no metrics",
        ),
        pytest.param(
            {"type": "AbleToScale", "status": "False", "reason": "FailedGetScale", "message": "m"},
            "FailedGetScale: m",
            id="no target",
        ),
        pytest.param(
            {"type": "ScalingActive", "status": "False", "reason": "ScalingDisabled", "message": "zero"},
            "",
            id="scaled to zero on purpose",
        ),
        pytest.param({"type": "ScalingActive", "status": "True", "reason": "ok"}, "", id="in order"),
    ],
)
def test_an_autoscaler_that_cannot_act_says_why(condition, expected):
    assert (
        fold_workload(build_deployment(), autoscaler={"status": {"conditions": [condition]}}).autoscaler_problem
        == expected
    )


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        pytest.param("TooManyReplicas", True, id="held down by its maximum"),
        pytest.param("TooFewReplicas", False, id="held up by its minimum"),
    ],
)
def test_an_autoscaler_at_its_maximum_wants_more(reason, expected):
    limited = {"type": "ScalingLimited", "status": "True", "reason": reason}

    assert fold_workload(build_deployment(), autoscaler={"status": {"conditions": [limited]}}).wants_more is expected


def test_the_newest_failure_of_a_replica_is_kept_with_its_end():
    def ended(code, time, reason="Error"):
        return {
            "terminated": {"exitCode": code, "reason": reason, "finishedAt": time, "message": "x" * 3000 + "last words"}
        }

    pods = [
        build_pod("a", containerStatuses=[{"lastState": ended(1, "2026-01-01T00:00:01Z")}]),
        build_pod("b", containerStatuses=[{"lastState": ended(137, "2026-01-01T00:00:09Z", "OOMKilled")}]),
        build_pod("c", containerStatuses=[{"state": ended(0, "2026-01-01T00:00:59Z")}]),
    ]

    failure = fold_workload(build_deployment(), [], pods).last_failure

    assert (failure.reason, failure.pod, failure.exit_code, failure.time) == (
        "OOMKilled",
        "b",
        137,
        "2026-01-01T00:00:09Z",
    )
    assert failure.message.endswith("last words")
    assert len(failure.message) == 2048


@pytest.mark.parametrize(
    ("ready", "unschedulable", "expected"),
    [
        pytest.param("True", None, (True, True), id="in order"),
        pytest.param("False", None, (False, True), id="not ready"),
        pytest.param("Unknown", None, (False, True), id="silent"),
        pytest.param("True", True, (True, False), id="cordoned"),
    ],
)
def test_a_node_tells_whether_pods_can_land_on_it(ready, unschedulable, expected):
    node = fold_node(
        {
            "metadata": {"name": "n", "labels": {"gpu": "h200"}},
            "spec": {"unschedulable": unschedulable},
            "status": {
                "allocatable": {"cpu": "8", "nvidia.com/gpu": "8"},
                "conditions": [{"type": "Ready", "status": ready}],
            },
        }
    )

    assert (node.ready, node.schedulable) == expected
    assert dict(node.allocatable) == {"nvidia.com/gpu": 8}


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        pytest.param(
            {"kind": "Tenant", "metadata": {"name": "t"}}, Key("Tenant", "", "t"), id="an object of ours is its own"
        ),
        pytest.param(
            {"kind": "Role", "metadata": {"name": "r", "namespace": "ns", "annotations": {OWNER: "Tenant//t"}}},
            Key("Tenant", "", "t"),
            id="a child names its owner",
        ),
        pytest.param(build_pod(), Key("InferenceService", "ns", "chat"), id="a pod belongs to its service"),
        pytest.param({"kind": "Pod", "metadata": {"name": "p", "namespace": "ns"}}, None, id="a stranger"),
        pytest.param(
            {"kind": "Role", "metadata": {"name": "r", "annotations": {OWNER: "garbage"}}},
            None,
            id="an unreadable annotation",
        ),
    ],
)
def test_every_object_concerns_one_key(manifest, expected):
    assert key_of_owner(manifest) == expected


def test_pods_that_have_a_node_hold_their_devices_until_they_are_gone():
    scheduled = {"conditions": [{"type": "PodScheduled", "status": "True"}]}
    waiting = {"conditions": [{"type": "PodScheduled", "status": "False"}]}
    pods = [
        build_pod("a", **scheduled),
        build_pod("b", ready=False, **scheduled),
        build_pod("c", deleting=True, **scheduled),
        build_pod("d", ready=False, **waiting),
        build_pod("e", phase="Failed", **scheduled),
    ]

    assert fold_workload(build_deployment(4), [build_replica_set()], pods).placed == 3


def build_claim(*requests):
    results = [{"request": request, "device": f"gpu-{index}"} for index, request in enumerate(requests)]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": "chat-1-gpu", "namespace": "ns", "labels": SELECTOR},
        "status": {"allocation": {"devices": {"results": results}}} if results else {},
    }


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        pytest.param([build_claim()], (), id="not allocated yet"),
        pytest.param([build_claim("gpu")], (("h200", 1),), id="one class: the request has no alternatives"),
        pytest.param(
            [build_claim("gpu/h200"), build_claim("gpu/a100", "gpu/a100")],
            (("a100", 2), ("h200", 1)),
            id="alternatives: the answer names which",
        ),
    ],
)
def test_claims_tell_which_class_the_scheduler_took(claims, expected):
    workload = fold_workload(build_deployment(1, gpus=1), claims=[trim(claim) for claim in claims])

    assert workload.claimed == expected


def test_a_pod_that_claims_devices_counts_as_many_as_its_label_says():
    pod = build_pod("a")
    pod["metadata"]["labels"][labels.DEVICES] = "2"

    assert fold_workload(build_deployment(1), [build_replica_set()], [pod]).devices == 2


def build_queued_deployment():
    deployment = build_deployment()
    deployment["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpu"}
    return deployment


def build_queued_pod(name="x", *, gated=True):
    reason = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "gates"}
    pod = build_pod(name, ready=not gated, conditions=[reason] if gated else ())
    pod["metadata"]["labels"]["kueue.x-k8s.io/managed"] = "true"
    return pod


def test_pods_that_kueue_holds_and_pods_that_it_does_not_know_are_told_apart():
    pods = [build_queued_pod("x"), build_queued_pod("y", gated=False), build_pod("z")]

    runs = fold_workload(build_queued_deployment(), [build_replica_set()], pods)

    assert (runs.queue, runs.gated, runs.unqueued) == ("gpu", 1, 1)
    assert fold_workload(build_deployment(), [build_replica_set()], pods).unqueued == 0


def test_a_pod_that_somebody_else_gates_is_none_of_kueues():
    pod = build_queued_pod()
    del pod["metadata"]["labels"]["kueue.x-k8s.io/managed"]

    assert fold_workload(build_queued_deployment(), [build_replica_set()], [pod]).gated == 0


def test_kueues_words_stand_in_the_place_of_the_schedulers():
    runs = fold_workload(build_queued_deployment(), [], [build_queued_pod()])

    assert add_queue_words(runs, "no quota").pending_reason == "waits in LocalQueue gpu of Kueue: no quota"
    assert add_queue_words(runs, "") is runs


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        pytest.param([], "", id="not looked at yet"),
        pytest.param([{"type": "QuotaReserved", "status": "False", "message": "no quota"}], "no quota", id="no quota"),
        pytest.param(
            [{"type": "QuotaReserved", "status": "True"}, {"type": "Admitted", "status": "False", "reason": "Checks"}],
            "Checks",
            id="checks are not done",
        ),
        pytest.param([{"type": "QuotaReserved", "status": "True"}], "", id="admitted"),
    ],
)
def test_a_workload_of_kueue_says_what_it_waits_for(conditions, expected):
    assert words_of_queue({"status": {"conditions": conditions}}) == expected
