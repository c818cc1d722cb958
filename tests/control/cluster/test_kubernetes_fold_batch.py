"""A Job and its pods as the planner reads them."""

from __future__ import annotations

from typing import Any

import pytest

from windlass_operator.cluster.kubernetes_fold import key_of_owner
from windlass_operator.cluster.kubernetes_fold_batch import choose_job, count_indexes, fold_run, fold_workers
from windlass_operator.cluster.kubernetes_trim import trim
from windlass_operator.domain.snapshot import BatchRun, Key

LABELS = {
    "app.kubernetes.io/instance": "batch.nightly",
    "app.kubernetes.io/component": "batch",
    "windlass.dev/gpu-class": "h200",
}
GPU = {"resources": {"requests": {"nvidia.com/gpu": "1"}, "limits": {"nvidia.com/gpu": "1"}}}


def build_job(name: str = "nightly-a", status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    template = {"metadata": {"labels": LABELS}, "spec": {"containers": [GPU]}}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": "team-a", "labels": LABELS, "annotations": {}},
        "spec": {"completions": 4, "parallelism": 2, "suspend": False, "template": template, **spec},
        "status": status or {},
    }
    return trim(job)  # what the cache keeps must be enough


def build_pod(phase: str = "Running", **metadata: Any) -> dict[str, Any]:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "nightly-a-0-x", "namespace": "team-a", "labels": LABELS, **metadata},
        "spec": {"containers": [GPU]},
        "status": {"phase": phase},
    }
    return trim(pod)


@pytest.mark.parametrize(
    ("text", "expected"), [("", 0), ("3", 1), ("0-3", 4), ("1,3-5,7", 5)], ids=["none", "one", "a range", "a mixture"]
)
def test_indexes_are_counted(text: str, expected: int) -> None:
    assert count_indexes(text) == expected


def test_a_job_tells_how_far_the_batch_is() -> None:
    status = {
        "startTime": "2026-01-01T00:00:00Z",
        "completionTime": "2026-01-02T00:00:00Z",
        "completedIndexes": "0,2-3",
        "failedIndexes": "1",
        "conditions": [
            {"type": "FailureTarget", "status": "True", "message": "early"},
            {"type": "Failed", "status": "True", "message": "Job has failed indexes"},
        ],
    }

    assert fold_run(build_job(status=status)) == BatchRun(
        "nightly-a", False, 3, 1, "1", "Failed", "Job has failed indexes", "2026-01-01T00:00:00Z",
        "2026-01-02T00:00:00Z",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("job", "pods", "devices"),
    [
        pytest.param(build_job(), [], 2, id="pods to come hold devices already"),
        pytest.param(build_job(suspend=True), [], 0, id="a suspended job holds none"),
        pytest.param(
            build_job(suspend=True), [build_pod(deletionTimestamp="now")], 1, id="pods that leave hold theirs"
        ),
        pytest.param(build_job(status={"completedIndexes": "0-2"}), [], 1, id="no more than shards left"),
        pytest.param(build_job(), [build_pod("Succeeded"), build_pod()], 2, id="finished pods hold none"),
        pytest.param(
            build_job(status={"conditions": [{"type": "Complete", "status": "True"}]}), [], 0, id="a finished job"
        ),
        pytest.param(None, [build_pod()], 1, id="pods of a job that is gone"),
    ],
)
def test_workers_hold_devices(job: dict[str, Any] | None, pods: list[dict[str, Any]], devices: int) -> None:
    workload = fold_workers(job, pods, ())

    assert workload is not None
    assert (workload.gpu_class, workload.devices) == ("h200", devices)


def test_nothing_is_folded_of_nothing() -> None:
    assert fold_workers(None, [], ()) is None


def test_the_job_that_counts_is_the_newest_that_stays() -> None:
    def job(name: str, created: str, **metadata: Any) -> dict[str, Any]:
        return {"metadata": {"name": name, "creationTimestamp": created, **metadata}}

    jobs = [job("old", "2026-01-01"), job("new", "2026-01-02"), job("leaving", "2026-01-03", deletionTimestamp="now")]

    assert choose_job(jobs) == jobs[1]
    assert choose_job([]) is None


def test_a_workers_pod_concerns_its_batch_and_a_replicas_its_service() -> None:
    replica = build_pod(labels={"app.kubernetes.io/instance": "nightly"})

    assert key_of_owner(build_pod()) == Key("BatchInference", "team-a", "nightly")
    assert key_of_owner(replica) == Key("InferenceService", "team-a", "nightly")
