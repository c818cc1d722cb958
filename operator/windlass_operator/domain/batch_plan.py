"""Decide everything about one BatchInference: how its workers run, how many now, and from which files."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from typing import Final

from windlass_operator.api.v1alpha1.batch_inference import (
    OVER,
    BatchInference,
    BatchInferenceSpec,
    BatchInferenceStatus,
)
from windlass_operator.domain.batch_workers import batch_key, derive_workers, is_over, translate
from windlass_operator.domain.decision import Decision, decide
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.fleet_view import FleetView
from windlass_operator.domain.oracle import advise
from windlass_operator.domain.plan import Action, ServicePlan, plan_in_view
from windlass_operator.domain.snapshot import BatchRun, Key, Snapshot

_OF_SERVICES: Final = frozenset(
    {"replicas", "autoscaler", "rollout", "disruption budget", "http route", "mesh route", "power"}
)
"""Topics of decisions that only services have."""


@dataclass(frozen=True, slots=True)
class ClaimFile:
    """A path on a persistent volume claim."""

    claim: str
    path: str

    def __str__(self) -> str:
        return f"pvc://{self.claim}/{self.path}"


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Everything about one BatchInference that is decided."""

    key: Key
    generation: int
    action: Action
    workers: ServicePlan
    """One worker, as a replica of a service would be."""
    shards: int
    parallelism: int
    """Workers at once; 0: the Job is suspended."""
    input: ClaimFile
    results: ClaimFile
    retries_per_shard: int
    attempts_per_request: int
    plan_again_at: datetime.datetime | None
    """When the same world gives another plan; for a batch that is over `removal_due_at` tells."""
    over: bool
    """Whether the batch is done or has failed, for good: nothing is made any more."""
    decisions: tuple[Decision, ...]


def plan_batch(batch: BatchInference, view: FleetView) -> BatchPlan:
    """Decide for a batch of the view's snapshot."""
    key, spec = batch_key(batch), batch.spec
    run = view.snapshot.runs.get(key)
    plan = plan_in_view(derive_workers(batch, run), view)
    suggestions = tuple(translate(one) for one in plan.suggestions)
    refusal = advise(plan.refusal, suggestions, shares_quota=plan.quota is not None)
    workers = replace(
        plan,
        key=key._replace(name=f"{key.name}-batch"),
        batch=key.name,
        suggestions=suggestions,
        refusal=refusal,
    )
    over, removed_at = is_over(batch, run), removal_due_at(batch.status, spec)
    gone = view.now is not None and removed_at is not None and view.now >= removed_at
    parallelism = plan.replicas or 0
    return BatchPlan(
        key=key,
        generation=batch.metadata.generation,
        action=plan.action if not over else Action.REMOVE if gone else Action.HOLD,
        workers=workers,
        shards=spec.shards,
        parallelism=parallelism,
        input=parse_claim(spec.input),
        results=parse_claim(spec.results),
        retries_per_shard=spec.retries_per_shard,
        attempts_per_request=spec.attempts_per_request,
        plan_again_at=None if over else plan.plan_again_at,
        over=over,
        decisions=(
            *(one for one in plan.decisions if one.topic not in _OF_SERVICES),
            _explain_workers(batch, run, parallelism, over),
        ),
    )


def plan_batches(snapshot: Snapshot, settings: FleetSettings) -> tuple[BatchPlan, ...]:
    """Decide for every batch of a snapshot, in the order of their keys."""
    view = FleetView(snapshot, settings)
    return tuple(plan_batch(snapshot.batches[key], view) for key in sorted(snapshot.batches))


def parse_claim(uri: str) -> ClaimFile:
    """Read pvc://claim/path; the schema has checked its form."""
    claim, _, path = uri.removeprefix("pvc://").partition("/")
    return ClaimFile(claim, path.rstrip("/"))


def removal_due_at(status: BatchInferenceStatus, spec: BatchInferenceSpec) -> datetime.datetime | None:
    """When the time of a batch's objects is up. Counted from what the status says, so only once it was written: a Job
    that removed itself could be gone before anybody has read how it ended.
    """
    if not status.finished or status.phase not in OVER:
        return None
    return datetime.datetime.fromisoformat(status.finished) + datetime.timedelta(
        seconds=spec.ttl_seconds_after_finished
    )


def _explain_workers(batch: BatchInference, run: BatchRun | None, parallelism: int, over: bool) -> Decision:
    spec = batch.spec
    if over:
        return decide("workers", "0", "the batch is over; it never runs again")
    if spec.suspend:
        return decide("workers", "0", "spec.suspend is true")
    ended = run.succeeded + run.failed if run is not None else 0
    left = f"{spec.shards - ended} of {spec.shards} shards left" if ended else f"{spec.shards} shards"
    return decide("workers", str(parallelism), f"spec.parallelism is {spec.parallelism}, {left}")
