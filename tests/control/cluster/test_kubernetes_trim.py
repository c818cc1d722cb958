from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_operator.cluster.kubernetes_fold import fold_workload
from windlass_operator.cluster.kubernetes_kinds import CHILDREN, OWNER
from windlass_operator.cluster.kubernetes_trim import POOL_SIZE, Pool, trim


def build_manifest(kind, name="chat", **body):
    metadata = {
        "name": name,
        "namespace": "ns",
        "uid": "u",
        "resourceVersion": "1",
        "managedFields": [{"manager": "m"}],
    }
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata | body.pop("metadata", {}), **body}


def test_a_node_shrinks_to_what_plans_read():
    node = build_manifest(
        "Node",
        metadata={"labels": {"a": "b"}, "annotations": {"big": "x" * 1000}},
        status={
            "allocatable": {"cpu": "64", "nvidia.com/gpu": "8"},
            "images": ["many"],
            "conditions": [
                {"type": "Ready", "status": "True", "lastHeartbeatTime": "now"},
                {"type": "DiskPressure", "status": "False"},
            ],
        },
    )

    assert trim(node)["status"] == {
        "allocatable": {"nvidia.com/gpu": "8"},
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    assert trim(node)["metadata"].keys() == {"name", "namespace", "uid", "resourceVersion", "labels"}


READY = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
LABELS = {"app.kubernetes.io/instance": "chat", "pod-template-hash": "h1"}
DEPLOYMENT = build_manifest(
    "Deployment",
    metadata={"generation": 2, "annotations": {"deployment.kubernetes.io/revision": "1"}},
    spec={
        "replicas": 2,
        "selector": {"matchLabels": {"app.kubernetes.io/instance": "chat"}},
        "template": {
            "metadata": {"labels": {"windlass.dev/gpu-class": "h200"}},
            "spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
        },
    },
    status={
        "observedGeneration": 2,
        "replicas": 2,
        "conditions": [
            {"type": "ReplicaFailure", "status": "True", "reason": "R", "message": "exceeded quota"},
            {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"},
        ],
    },
)
REPLICA_SET = build_manifest(
    "ReplicaSet",
    metadata={
        "labels": LABELS,
        "annotations": {"deployment.kubernetes.io/revision": "1", "windlass.dev/template": "a", "other": "x"},
    },
    spec={"replicas": 2, "template": {"spec": {}}},
    status={"availableReplicas": 1, "fullyLabeledReplicas": 2},
)
POD = build_manifest(
    "Pod",
    metadata={"labels": LABELS, "ownerReferences": [{"uid": "rs"}]},
    spec={"nodeName": "n", "containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
    status={
        "phase": "Running",
        "podIP": "10.0.0.1",
        "conditions": [READY, {"type": "PodScheduled", "status": "False", "message": "no node"}],
        "containerStatuses": [
            {
                "name": "c",
                "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-01-01"}},
            }
        ],
    },
)
AUTOSCALER = build_manifest(
    "HorizontalPodAutoscaler",
    spec={"maxReplicas": 3},
    status={
        "currentReplicas": 1,
        "conditions": [{"type": "ScalingActive", "status": "False", "reason": "NoMetrics", "message": "none"}],
    },
)


def test_what_is_kept_folds_to_the_same_workload_as_the_whole_objects():
    """Whoever reads one more field of an object must keep it."""
    whole = fold_workload(DEPLOYMENT, [REPLICA_SET], [POD], AUTOSCALER)

    assert fold_workload(trim(DEPLOYMENT), [trim(REPLICA_SET)], [trim(POD)], trim(AUTOSCALER)) == whole
    assert whole.pending_reason
    assert whole.autoscaler_problem
    assert whole.last_failure
    assert (whole.overdue, whole.unplaced, whole.revisions[0].template) == (True, 2, "a")
    assert (whole.ready, whole.updated_ready, whole.devices, whole.gpu_class) == (1, 1, 2, "h200")


@pytest.mark.parametrize("kind", [kind.kind for kind in CHILDREN])
def test_of_a_child_everything_is_kept_that_an_apply_may_have_written(kind):
    body = {"spec": {"a": 1}, "data": {"b": "c"}, "rules": [1]}

    kept = trim(build_manifest(kind, metadata={"annotations": {OWNER: "x"}, "ownerReferences": [{"uid": "o"}]}, **body))

    assert {key: kept[key] for key in body} == body
    assert kept["metadata"]["annotations"] == {OWNER: "x"}
    assert kept["metadata"]["ownerReferences"] == [{"uid": "o"}]


def test_the_copy_that_kubectl_keeps_of_an_object_is_dropped():
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": "{...}", "mine": "kept"}

    assert trim(build_manifest("InferenceService", metadata={"annotations": annotations}))["metadata"][
        "annotations"
    ] == {"mine": "kept"}


def test_trimming_leaves_the_original_as_it_was():
    before = copy.deepcopy(POD)

    trim(POD)

    assert before == POD


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.sampled_from(["", "a", "b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=20,
)


@given(st.lists(json_values, max_size=6))
def test_a_pool_returns_equal_values_of_the_same_types(values):
    pool = Pool()

    shared = [pool.share({"spec": copy.deepcopy(value)})["spec"] for value in values]

    assert [repr(value) for value in shared] == [repr(value) for value in values]


def test_equal_parts_of_different_objects_are_stored_once():
    pool = Pool()
    one, two = (pool.share({"spec": {"name": name, "probe": {"port": [8080]}}})["spec"] for name in ("one", "two"))

    assert one["probe"] is two["probe"]
    assert one is not two


def test_a_new_version_keeps_the_parts_of_the_earlier_one():
    pool = Pool()
    earlier = pool.share({"spec": {"a": [1]}, "status": {"b": 1}})

    later = pool.share({"spec": {"a": [1]}, "status": {"b": 2}}, earlier)

    assert later == {"spec": {"a": [1]}, "status": {"b": 2}}
    assert later["spec"] is earlier["spec"]


def test_one_and_true_are_not_taken_for_each_other():
    pool = Pool()

    assert repr([pool.share({"spec": {"a": value}})["spec"]["a"] for value in (1, True, 1.0)]) == "[1, True, 1.0]"


def test_a_pool_does_not_grow_for_ever():
    pool = Pool()

    for number in range(POOL_SIZE * 2):
        pool.share({"spec": {"a": number}})

    assert len(pool._parts) <= POOL_SIZE + 1
