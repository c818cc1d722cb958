"""Fold a batch's plan and what runs for it into its status. See `status` for what conditions mean.

`Ready` is True once every request has its answer, and while a person has suspended the batch: nothing is missing then.
"""

from __future__ import annotations

from windlass_operator.api.meta import Condition
from windlass_operator.api.v1alpha1.batch_inference import BatchInferenceStatus, BatchPhase
from windlass_operator.domain.batch_plan import BatchPlan
from windlass_operator.domain.conditions import Finding, date_conditions
from windlass_operator.domain.conditions import build_condition as _condition
from windlass_operator.domain.plan import Action
from windlass_operator.domain.snapshot import BatchRun, Workload
from windlass_operator.domain.suggestion import next_step

_MOST_DECISIONS = 16


def plan_batch_status(
    plan: BatchPlan,
    run: BatchRun | None,
    workload: Workload | None,
    previous: BatchInferenceStatus,
    now: str,
    problems: tuple[str, ...] = (),
) -> BatchInferenceStatus:
    """Status after an apply. Once the Job of a batch that is over has been removed, what was known stays."""
    if plan.over and run is None:
        return previous.model_copy(update={"observed_generation": plan.generation, "workers": 0})
    known, runs = run or BatchRun(), workload or Workload()
    finding = judge_batch(plan, known, runs)
    return BatchInferenceStatus(
        observed_generation=plan.generation,
        conditions=date_conditions(_conditions(plan, finding, problems), previous.conditions, plan.generation, now),
        phase=choose_phase(known, runs),
        job=known.job,
        shards_done=known.succeeded,
        shards_failed=known.failed,
        failed_shards=known.failed_shards[:1024],
        workers=runs.replicas,
        tenant=plan.workers.tenant,
        accelerator_class=plan.workers.gpu_class.name if plan.workers.gpu_class else runs.gpu_class,
        started=known.started or previous.started,
        finished=(known.finished or previous.finished or now) if plan.over else "",
        decisions=list(plan.decisions[:_MOST_DECISIONS]),
        last_failure=runs.last_failure or previous.last_failure,
    )


def choose_phase(run: BatchRun, runs: Workload) -> BatchPhase:
    """One word for how far a batch is."""
    if run.outcome:
        return BatchPhase.SUCCEEDED if run.outcome == "Complete" else BatchPhase.FAILED
    if runs.replicas:
        return BatchPhase.RUNNING
    return BatchPhase.SUSPENDED if run.job and run.suspended else BatchPhase.PENDING


def judge_batch(plan: BatchPlan, run: BatchRun, runs: Workload) -> Finding:
    """Compare what runs with what the plan wants."""
    progress = f"{run.succeeded} of {plan.shards} shards done"
    if run.outcome == "Complete":
        return Finding(True, "BatchCompleted", f"{progress}; results in {plan.results}/completed")
    if run.outcome:
        which = f"failed shards: {run.failed_shards}" if run.failed_shards else "the Job failed"
        words = f"{progress}; {which}; {run.message}".rstrip("; ")
        failure = f"; newest failure: {runs.last_failure.message}" if runs.last_failure else ""
        return Finding(False, "BatchFailed", f"{words}{failure}", hopeless=True)
    if plan.action is not Action.APPLY:
        return Finding(
            False, "NotAdmitted", f"{progress}; {runs.replicas} workers run on" if runs.replicas else progress
        )
    if plan.parallelism == 0:
        return _judge_suspended(plan, runs, progress)
    if runs.pending_reason:
        step = f". {next_step(plan.workers.suggestions)}" if plan.workers.suggestions else ""
        pending = runs.pending_reason.removesuffix(".") if step else runs.pending_reason
        return Finding(False, "PodsPending", f"{progress}; pending: {pending}{step}")
    if runs.replicas:
        return Finding(False, "BatchRunning", f"{progress}, {_count(runs.replicas)} at work")
    return Finding(False, "BatchStarting", f"{progress}, {_count(plan.parallelism)} about to start")


def _judge_suspended(plan: BatchPlan, runs: Workload, progress: str) -> Finding:
    if runs.replicas or runs.leaving:
        return Finding(False, "Draining", f"{progress}; {_count(runs.replicas + runs.leaving)} finishing")
    if plan.workers.refusal is not None:
        return Finding(False, "NotAdmitted", f"{progress}; nothing runs, and the checkpoint is kept")
    return Finding(True, "Suspended", f"{progress}; spec.suspend is true, and the checkpoint is kept")


def _conditions(plan: BatchPlan, finding: Finding, problems: tuple[str, ...]) -> list[Condition]:
    refusal, quota = plan.workers.refusal if not plan.over else None, plan.workers.quota
    if refusal is not None:
        summary = _condition("Ready", False, refusal.reason, f"{refusal} {finding.message}.")
        admitted = _condition("Admitted", False, refusal.reason, str(refusal))
    else:
        summary = _condition("Ready", finding.ready, finding.reason, finding.message)
        tenant = plan.workers.tenant
        words = f"within the limits of Tenant {tenant}" if tenant else "no Tenant limits this cluster"
        admitted = _condition("Admitted", True, "Admitted", words)
    if problems:
        summary = _condition("Ready", False, "ApplyRefused", "; ".join(problems))
    conditions = [summary, admitted]
    if quota is not None and not plan.over:
        conditions.append(_condition("QuotaAdmitted", quota.admitted, quota.reason, quota.message))
    if problems or finding.hopeless or (refusal is not None and not refusal.passing):
        conditions.append(_condition("Stalled", True, summary.reason, summary.message))
    elif refusal is not None or not finding.ready:
        conditions.append(_condition("Reconciling", True, summary.reason, summary.message))
    return conditions


def _count(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"
