"""What a batch's status says of its Job and pods."""

from __future__ import annotations

from typing import Any

import pytest

from support.builders import build_batch, build_snapshot, build_tenant, build_workload
from windlass_operator.api.v1alpha1.batch_inference import BatchInferenceStatus, BatchPhase
from windlass_operator.api.v1alpha1.inference_service import Failure
from windlass_operator.domain.batch_plan import plan_batches
from windlass_operator.domain.batch_status import plan_batch_status
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.snapshot import BatchRun, Workload

NOW = "2026-03-01T10:00:00Z"
CRASH = Failure(reason="Error", message="input.jsonl:3: body: expected an object", pod="nightly-0", exit_code=2)


def status_of(
    run: BatchRun | None = None, workload: Workload | None = None, *world: Any, **spec: Any
) -> BatchInferenceStatus:
    batch = build_batch(generation=2, **spec)
    snapshot = build_snapshot(
        batch,
        *world,
        runs={} if run is None else {"team-a/nightly": run},
        batch_workloads={} if workload is None else {"team-a/nightly": workload},
    )
    (plan,) = plan_batches(snapshot, FleetSettings())
    return plan_batch_status(plan, run, workload, batch.status, NOW)


def conditions(status: BatchInferenceStatus) -> dict[str, tuple[str, str]]:
    return {item.type: (item.status, item.reason) for item in status.conditions}


@pytest.mark.parametrize(
    ("run", "workload", "spec", "phase", "ready", "also"),
    [
        pytest.param(None, None, {}, "Pending", ("False", "BatchStarting"), {"Reconciling"}, id="before the job"),
        pytest.param(
            BatchRun("j", succeeded=1), build_workload(2), {}, "Running", ("False", "BatchRunning"), {"Reconciling"},
            id="at work",
        ),
        pytest.param(
            BatchRun("j", suspended=True), build_workload(0), {"suspend": True}, "Suspended", ("True", "Suspended"),
            set(), id="suspended",
        ),
        pytest.param(
            BatchRun("j", suspended=True), build_workload(0, leaving=2), {"suspend": True}, "Suspended",
            ("False", "Draining"), {"Reconciling"}, id="pods leave",
        ),
        pytest.param(
            BatchRun("j", succeeded=4, outcome="Complete"), build_workload(0), {}, "Succeeded",
            ("True", "BatchCompleted"), set(), id="done",
        ),
        pytest.param(
            BatchRun("j", succeeded=3, failed=1, failed_shards="2", outcome="Failed", message="too many"),
            build_workload(0), {}, "Failed", ("False", "BatchFailed"), {"Stalled"}, id="failed",
        ),
        pytest.param(
            BatchRun("j"), build_workload(0, replicas=2, pending_reason="0/4 nodes"), {}, "Running",
            ("False", "PodsPending"), {"Reconciling"}, id="no node has room",
        ),
    ],
)  # fmt: skip
def test_the_status_tells_how_far_a_batch_is(
    run: BatchRun | None, workload: Workload | None, spec: dict[str, Any], phase: str, ready: tuple[str, str],
    also: set[str],
) -> None:  # fmt: skip
    status = status_of(run, workload, **spec)

    found = conditions(status)
    assert (status.phase, found["Ready"]) == (BatchPhase(phase), ready)
    assert found.keys() == {"Ready", "Admitted"} | also
    assert status.observed_generation == 2


def test_a_failed_batch_names_the_shards_and_the_words_of_the_worker() -> None:
    run = BatchRun("j", failed=1, failed_shards="2", outcome="Failed", message="Job has failed indexes")

    status = status_of(run, build_workload(0, last_failure=CRASH))

    ready = status.conditions[0]
    assert ready.message == (
        "0 of 4 shards done; failed shards: 2; Job has failed indexes; "
        "newest failure: input.jsonl:3: body: expected an object"
    )
    assert (status.shards_failed, status.failed_shards, status.last_failure) == (1, "2", CRASH)


def test_a_refused_batch_says_why_and_that_its_checkpoint_is_kept() -> None:
    status = status_of(None, None, build_tenant(allowedTiers=["Standard"]))

    assert conditions(status) == {
        "Ready": ("False", "TierNotAllowed"),
        "Admitted": ("False", "TierNotAllowed"),
        "Stalled": ("True", "TierNotAllowed"),
    }
    assert status.phase is BatchPhase.PENDING


def test_what_was_known_of_a_batch_stays_when_its_job_is_removed() -> None:
    known = status_of(BatchRun("j", succeeded=4, outcome="Complete", finished=NOW), build_workload(0))

    later = status_of(status=known.model_dump(by_alias=True))

    assert later == known
