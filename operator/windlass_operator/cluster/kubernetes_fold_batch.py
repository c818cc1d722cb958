"""Fold the Job of a batch and its pods into what the planner reads. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from windlass_operator.cluster.kubernetes_fold import fold_remnants, fold_workload
from windlass_operator.domain import labels
from windlass_operator.domain.snapshot import BatchRun, Workload

Json = Mapping[str, Any]


def choose_job(jobs: Sequence[Json]) -> Json | None:
    """The Job that counts: one that stays before one that leaves, then the newest."""
    return max(
        jobs,
        key=lambda job: (
            "deletionTimestamp" not in job["metadata"],
            str(job["metadata"].get("creationTimestamp", "")),
            job["metadata"]["name"],
        ),
        default=None,
    )


def fold_run(job: Json) -> BatchRun:
    """Read a Job."""
    spec, status = job["spec"], job.get("status") or {}
    conditions: Sequence[Json] = status.get("conditions") or ()
    ended: Json = next((item for item in conditions if item.get("status") == "True"), {})
    failed = str(status.get("failedIndexes") or "")
    return BatchRun(
        job=job["metadata"]["name"],
        suspended=bool(spec.get("suspend")),
        succeeded=count_indexes(str(status.get("completedIndexes") or "")),
        failed=count_indexes(failed),
        failed_shards=failed,
        outcome=str(ended.get("type", "")),
        message=str(ended.get("message", "")) if ended.get("type") == "Failed" else "",
        started=str(status.get("startTime") or ""),
        finished=str(status.get("completionTime") or ended.get("lastTransitionTime") or ""),
    )


def fold_workers(job: Json | None, pods: Sequence[Json], claims: Sequence[Json]) -> Workload | None:
    """What workers hold, folded as a Deployment of as many replicas would be. None when nothing is there."""
    if job is None:
        return fold_remnants(pods)
    spec = job["spec"]
    as_deployment = {
        "metadata": job["metadata"],
        "spec": {
            "replicas": _wanted(spec, fold_run(job)),
            "selector": {"matchLabels": {labels.COMPONENT: labels.BATCH_COMPONENT}},
            "template": spec["template"],
        },
    }
    return fold_workload(as_deployment, (), pods, None, claims)


def _wanted(spec: Json, run: BatchRun) -> int:
    """Pods that the Job's controller makes, or will."""
    if run.suspended or run.outcome:
        return 0
    left = int(spec.get("completions") or 1) - run.succeeded - run.failed
    return max(0, min(int(spec.get("parallelism", 1)), left))


def count_indexes(text: str) -> int:
    """How many indexes a Job's controller lists: `1,3-5` are four."""
    total = 0
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total
