"""Batches on a real control plane: Indexed Jobs that own their workers, hold quota, yield it, and end.

No container runs on fake nodes, so the tests say how each pod ends; what workers do is tested as processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.kube_client import KubeClient, Manifest, RefusedError, eventually
from support.operator_process import OperatorProcess
from support.services import API, condition, service, wait_ready

Run = Callable[..., str]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator", "claims", "no_batches", "clean")]

BATCH = "batch/v1"
SPACE = "team-a"
"""Namespace of tenant `a`, which may hold six H200s."""


def batch(name: str = "nightly", **spec: Any) -> Manifest:
    """A batch of three shards on two workers with an H200 each."""
    base = {
        "model": {"uri": "hf://organisation/model"},
        "input": "pvc://batches/in.jsonl",
        "results": f"pvc://batches/{name}",
        "shards": 3,
        "parallelism": 2,
        "accelerator": {"classes": ["h200"]},
    }
    metadata = {"name": name, "namespace": SPACE}
    return {"apiVersion": API, "kind": "BatchInference", "metadata": metadata, "spec": {**base, **spec}}


@pytest.fixture(scope="module")
def claims(kube: KubeClient, fleet: None) -> Iterator[None]:
    """A bound claim for files; the scheduler starts no pod without it."""
    spec = {
        "accessModes": ["ReadWriteMany"],
        "capacity": {"storage": "1Gi"},
        "storageClassName": "",
        "hostPath": {"path": "/tmp"},
    }
    kube.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "batches"}, "spec": spec})
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "batches", "namespace": SPACE},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": "1Gi"}},
                "storageClassName": "",
                "volumeName": "batches",
            },
        }
    )
    eventually(lambda: kube.get("v1", "PersistentVolumeClaim", "batches", SPACE), is_bound, timeout_s=60)
    yield
    kube.delete("v1", "PersistentVolumeClaim", "batches", SPACE)
    kube.delete("v1", "PersistentVolume", "batches")


def is_bound(claim: Manifest | None) -> bool:
    return (claim or {}).get("status", {}).get("phase") == "Bound"


@pytest.fixture
def no_batches(kube: KubeClient) -> Iterator[None]:
    """No batch is left for the next test."""
    yield
    for found in kube.list(API, "BatchInference"):
        kube.delete(API, "BatchInference", found["metadata"]["name"], found["metadata"]["namespace"])
    eventually(lambda: kube.list(BATCH, "Job", SPACE), lambda found: not found, timeout_s=60)
    eventually(lambda: workers(kube), lambda found: not found, timeout_s=60)


def workers(kube: KubeClient, name: str = "nightly") -> list[Manifest]:
    """Pods of a batch that have not ended, leaving ones included."""
    found = kube.list("v1", "Pod", SPACE, f"windlass.dev/batch={name}")
    return [pod for pod in found if pod["status"].get("phase") not in ("Succeeded", "Failed")]


def running(kube: KubeClient, name: str = "nightly") -> list[Manifest]:
    return [pod for pod in workers(kube, name) if pod["status"].get("phase") == "Running"]


def jobs(kube: KubeClient, name: str = "nightly") -> list[Manifest]:
    return kube.list(BATCH, "Job", SPACE, f"windlass.dev/batch={name}")


def wait_job(kube: KubeClient, name: str = "nightly") -> Manifest:
    (job,) = eventually(lambda: jobs(kube, name), lambda found: len(found) == 1)
    return job


def ready(kube: KubeClient, name: str = "nightly", kind: str = "Ready") -> dict[str, Any]:
    found = kube.get(API, "BatchInference", name, SPACE) or {}
    status = found.get("status", {})
    if status.get("observedGeneration") != found.get("metadata", {}).get("generation"):
        return {}
    return next((item for item in status.get("conditions", ()) if item["type"] == kind), {})


def wait_reason(kube: KubeClient, reason: str, name: str = "nightly", kind: str = "Ready") -> dict[str, Any]:
    return eventually(lambda: ready(kube, name, kind), lambda found: found.get("reason") == reason, timeout_s=60)


def end(kube: KubeClient, pod: Manifest, exit_code: int = 0) -> None:
    """Let the process of a pod end."""
    ended = {"exitCode": exit_code, "reason": "Completed" if exit_code == 0 else "Error", "finishedAt": None}
    statuses = [{**item, "state": {"terminated": ended}} for item in pod["status"]["containerStatuses"]]
    phase = "Succeeded" if exit_code == 0 else "Failed"
    kube.merge(pod, {"status": {"phase": phase, "containerStatuses": statuses}}, subresource="status")


def index_of(pod: Manifest) -> str:
    return str(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])


def end_all(kube: KubeClient, exit_codes: dict[str, int] | None = None, name: str = "nightly") -> None:
    """Let every worker end, those of later shards too, until the Job is over."""

    def step() -> bool:
        for pod in running(kube, name):
            end(kube, pod, (exit_codes or {}).get(index_of(pod), 0))
        return any(item["type"] in ("Complete", "Failed") for job in jobs(kube, name) for item in ended(job))

    eventually(step, bool, timeout_s=60)


def ended(job: Manifest) -> list[dict[str, Any]]:
    return [item for item in job.get("status", {}).get("conditions", ()) if item["status"] == "True"]


def used(kube: KubeClient) -> int:
    """H200s that tenant `a` holds, as its status says."""
    found = kube.get(API, "Tenant", "a") or {}
    return next((item["used"] for item in found.get("status", {}).get("gpus", ()) if item["name"] == "h200"), 0)


def test_a_batch_becomes_an_indexed_job_whose_workers_hold_the_tenants_devices(kube: KubeClient) -> None:
    owner = kube.apply(batch())

    job = wait_job(kube)
    pods = eventually(lambda: running(kube), lambda found: len(found) == 2)

    spec, metadata = job["spec"], job["metadata"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 2)
    assert [item["uid"] for item in metadata["ownerReferences"]] == [owner["metadata"]["uid"]]
    assert {index_of(pod) for pod in pods} == {"0", "1"}
    limits = [pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for pod in pods]
    assert limits == ["1", "1"]
    eventually(lambda: used(kube), lambda found: found == 2)
    eventually(lambda: ready(kube), lambda found: "2 workers at work" in found.get("message", ""))


def test_a_batch_is_done_when_every_shard_is_and_gives_its_devices_back(kube: KubeClient) -> None:
    kube.apply(batch())
    wait_job(kube)

    end_all(kube)

    done = wait_reason(kube, "BatchCompleted")
    assert (done["status"], done["message"]) == (
        "True",
        "3 of 3 shards done; results in pvc://batches/nightly/completed",
    )
    status = (kube.get(API, "BatchInference", "nightly", SPACE) or {})["status"]
    assert (status["phase"], status["shardsDone"], status["workers"]) == ("Succeeded", 3, 0)
    eventually(lambda: used(kube), lambda found: found == 0)


def test_a_failed_worker_is_replaced_and_a_shard_that_fails_too_often_is_named(kube: KubeClient) -> None:
    kube.apply(batch(retriesPerShard=1, shards=2))
    wait_job(kube)
    (first,) = eventually(lambda: [pod for pod in running(kube) if index_of(pod) == "1"], bool)

    end(kube, first, 1)
    eventually(lambda: [pod for pod in running(kube) if index_of(pod) == "1"], bool, timeout_s=60)
    end_all(kube, {"1": 1})

    failed = wait_reason(kube, "BatchFailed")
    assert failed["message"].startswith("1 of 2 shards done; failed shards: 1; ")
    assert ready(kube, kind="Stalled")["status"] == "True"


def test_a_worker_that_says_that_its_input_is_at_fault_ends_the_batch_without_retries(kube: KubeClient) -> None:
    kube.apply(batch(retriesPerShard=9))
    wait_job(kube)
    pods = eventually(lambda: running(kube), lambda found: len(found) == 2)

    end(kube, pods[0], 2)

    assert "exit code 2" in wait_reason(kube, "BatchFailed")["message"]
    assert (kube.get(API, "BatchInference", "nightly", SPACE) or {})["status"]["phase"] == "Failed"


def test_a_suspended_batch_gives_its_devices_back_and_goes_on_in_the_same_job(kube: KubeClient) -> None:
    kube.apply(batch())
    job = wait_job(kube)
    eventually(lambda: running(kube), lambda found: len(found) == 2)

    kube.apply(batch(suspend=True))
    paused = wait_reason(kube, "Suspended")
    eventually(lambda: used(kube), lambda found: found == 0)
    kube.apply(batch())
    eventually(lambda: running(kube), lambda found: len(found) == 2, timeout_s=60)

    assert paused["status"] == "True"
    assert [item["metadata"]["uid"] for item in jobs(kube)] == [job["metadata"]["uid"]]


def test_a_batch_waits_until_its_tenants_quota_has_room(kube: KubeClient) -> None:
    kube.apply(service("chat", SPACE, accelerator={"classes": ["h200"]}, replicas=5, rollout={"minAvailable": 0}))
    wait_ready(kube, "chat", SPACE)

    kube.apply(batch())
    refused = wait_reason(kube, "QuotaExceeded", kind="QuotaAdmitted")
    waiting = jobs(kube)
    kube.delete(API, "InferenceService", "chat", SPACE)

    wait_job(kube)
    eventually(lambda: running(kube), lambda found: len(found) == 2, timeout_s=60)
    assert (refused["status"], waiting) == ("False", [])
    assert "needs 2 x h200" in refused["message"]


def test_the_change_that_a_refused_batch_is_told_admits_it(kube: KubeClient) -> None:
    kube.apply(service("chat", SPACE, accelerator={"classes": ["h200"]}, replicas=5, rollout={"minAvailable": 0}))
    wait_ready(kube, "chat", SPACE)
    kube.apply(batch())

    told = wait_reason(kube, "QuotaExceeded")
    kube.apply(batch(accelerator={"classes": ["h200", "a100"]}))

    assert "Add a100 to spec.accelerator.classes" in told["message"]
    pods = eventually(lambda: running(kube), lambda found: len(found) == 2, timeout_s=60)
    assert {pod["metadata"]["labels"]["windlass.dev/gpu-class"] for pod in pods} == {"a100"}


def test_a_service_of_a_higher_tier_takes_a_batchs_devices_and_it_goes_on_afterwards(kube: KubeClient) -> None:
    kube.apply(batch(shards=6, parallelism=6))
    job = wait_job(kube)
    eventually(lambda: running(kube), lambda found: len(found) == 6)

    kube.apply(service("chat", SPACE, accelerator={"classes": ["h200"]}, replicas=6, rollout={"minAvailable": 0}))
    wait_ready(kube, "chat", SPACE, timeout_s=60)
    taken = wait_reason(kube, "QuotaPreempted")
    held = wait_job(kube)["spec"]
    kube.delete(API, "InferenceService", "chat", SPACE)
    eventually(lambda: running(kube), lambda found: len(found) == 6, timeout_s=60)

    assert held["suspend"] is True
    assert "the checkpoint is kept" in taken["message"]
    assert condition(kube, "chat", namespace=SPACE) == {}
    assert [item["metadata"]["uid"] for item in jobs(kube)] == [job["metadata"]["uid"]]


def test_an_edit_that_a_job_cannot_take_makes_another_one_and_the_first_goes(kube: KubeClient) -> None:
    kube.apply(batch())
    first = wait_job(kube)

    kube.apply(batch(limits={"maxRunningRequests": 8}))
    (second,) = eventually(
        lambda: jobs(kube), lambda found: len(found) == 1 and found[0]["metadata"]["uid"] != first["metadata"]["uid"]
    )

    def owners() -> set[str]:
        return {pod["metadata"]["ownerReferences"][0]["uid"] for pod in workers(kube)}

    eventually(owners, lambda found: found == {second["metadata"]["uid"]}, timeout_s=60)
    eventually(lambda: running(kube), lambda found: len(found) == 2, timeout_s=60)


@pytest.mark.parametrize(
    "change",
    [{"input": "pvc://batches/other.jsonl"}, {"results": "pvc://batches/other"}, {"model": {"uri": "hf://a/b"}}],
    ids=lambda change: next(iter(change)),
)
def test_files_and_model_of_a_batch_cannot_be_changed(kube: KubeClient, change: dict[str, Any]) -> None:
    kube.apply(batch())

    with pytest.raises(RefusedError, match=r"expected input, results and model\.uri as they were"):
        kube.apply(batch(**change))


def test_the_job_and_its_pods_go_with_the_batch(kube: KubeClient) -> None:
    kube.apply(batch())
    wait_job(kube)
    eventually(lambda: running(kube), lambda found: len(found) == 2)

    kube.delete(API, "BatchInference", "nightly", SPACE)

    eventually(lambda: jobs(kube), lambda found: not found, timeout_s=60)
    eventually(lambda: workers(kube), lambda found: not found, timeout_s=60)
    eventually(lambda: used(kube), lambda found: found == 0)


def test_a_batch_stays_done_when_the_time_of_its_job_is_up(kube: KubeClient, operator: OperatorProcess) -> None:
    kube.apply(batch(ttlSecondsAfterFinished=1))
    wait_job(kube)
    end_all(kube)
    wait_reason(kube, "BatchCompleted")
    eventually(lambda: jobs(kube), lambda found: not found, timeout_s=60)
    eventually(
        lambda: kube.list("v1", "ConfigMap", SPACE, "windlass.dev/batch=nightly"), lambda found: not found, timeout_s=60
    )

    operator.stop()
    operator.start()
    eventually(operator.leads, bool, timeout_s=30)
    edited = kube.apply(batch(ttlSecondsAfterFinished=2))

    wait_reason(kube, "BatchCompleted")
    found = kube.get(API, "BatchInference", "nightly", SPACE) or {}
    assert found["status"]["observedGeneration"] == edited["metadata"]["generation"]
    assert (found["status"]["phase"], jobs(kube)) == ("Succeeded", [])


def test_kubectl_shows_how_far_a_batch_is(kube: KubeClient, kubectl: Run) -> None:
    kube.apply(batch())
    wait_reason(kube, "BatchRunning")

    head, row = kubectl("get", "infbatch", "-n", SPACE).splitlines()

    assert head.split() == ["NAME", "READY", "REASON", "PHASE", "DONE", "SHARDS", "WORKERS", "GPU", "AGE"]
    assert row.split()[:8] == ["nightly", "False", "BatchRunning", "Running", "0", "3", "2", "h200"]
