"""Turn a plan and what runs into the status that users, GitOps tools and autoscalers read.

`Ready` is the one summary. `Admitted`, `WorkloadReady`, for GPUs under a quota `QuotaAdmitted` and with an autoscaler
`ScalingActive` say which part is missing. `Reconciling` and `Stalled` exist only while work is under way or only a
person can help; they are never False.

`CanaryAborted` exists while an analysis has ended a canary. It does not touch `Ready`: the stable revision serves.

`Ready` is True when the object is as its spec says and the newest revision takes requests. A suspended service, or one
with zero replicas, is therefore Ready once its pods are gone (reasons `Suspended`, `ScaledToZero`): nothing is missing,
and tools that wait for Ready do not hang. Clients find replicas through endpoints, never through this condition.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from windlass_operator.api.meta import Condition
from windlass_operator.api.v1alpha1.canary import CanaryPhase
from windlass_operator.api.v1alpha1.gpu_class import GPUClassStatus
from windlass_operator.api.v1alpha1.inference_service import Address, InferenceServiceStatus, RolloutStatus
from windlass_operator.api.v1alpha1.tenant import TenantStatus
from windlass_operator.domain.conditions import Finding
from windlass_operator.domain.conditions import build_condition as _condition
from windlass_operator.domain.conditions import date_conditions as _date
from windlass_operator.domain.labels import selector_labels
from windlass_operator.domain.plan import Action, GpuClassPlan, ServicePlan, TenantPlan
from windlass_operator.domain.rollout import HOPELESS_RESTARTS, observe_replacement
from windlass_operator.domain.rollout_steps import plan_rollout_status
from windlass_operator.domain.scaling import ScalingPlan
from windlass_operator.domain.snapshot import Workload
from windlass_operator.domain.suggestion import next_step

_MOST_DECISIONS = 16


def plan_service_status(
    plan: ServicePlan,
    workload: Workload | None,
    previous: InferenceServiceStatus,
    now: str,
    problems: tuple[str, ...] = (),
) -> InferenceServiceStatus:
    """Status after an apply.

    `workload` is None before anything runs; `problems` are the cluster's refusals; `now` is an RFC 3339 time.
    """
    runs = workload or Workload()
    finding = judge_workload(plan, runs)
    return InferenceServiceStatus(
        observed_generation=plan.generation,
        conditions=_date(_service_conditions(plan, runs, finding, problems), previous.conditions, plan.generation, now),
        replicas=runs.replicas,
        ready_replicas=runs.ready,
        updated_replicas=runs.updated,
        selector=",".join(f"{key}={value}" for key, value in selector_labels(plan.key.name).items()),
        address=Address(url=plan.address) if plan.address else None,
        tenant=plan.tenant,
        accelerator_class=_class_in_use(plan, runs),
        decisions=list(plan.decisions[:_MOST_DECISIONS]),
        rollout=_plan_rollout_status(plan, workload, previous, now),
        last_failure=runs.last_failure or previous.last_failure,
        canaries=list(plan.canary_states),
    )


def _class_in_use(plan: ServicePlan, runs: Workload) -> str:
    """Where most devices are: with alternatives in a claim, the scheduler may have taken another than the first."""
    if runs.claimed:
        return max(runs.claimed, key=lambda item: item[1])[0]
    return plan.gpu_class.name if plan.gpu_class else runs.gpu_class


def _plan_rollout_status(
    plan: ServicePlan, workload: Workload | None, previous: InferenceServiceStatus, now: str
) -> RolloutStatus | None:
    if plan.action is not Action.APPLY or workload is None:
        return previous.rollout if plan.action is Action.HOLD else None
    gpu_class, devices = (plan.gpu_class.name, plan.gpu_class.count) if plan.gpu_class else ("", 0)
    replacement = observe_replacement(workload, plan.rollout.target, gpu_class)
    replicas = workload.wanted if plan.replicas is None else plan.replicas
    return plan_rollout_status(plan.rollout, replacement, replicas, devices, previous.rollout, now)


def judge_workload(plan: ServicePlan, runs: Workload) -> Finding:
    """Compare what runs with what the plan wants."""
    if plan.action is not Action.APPLY:
        return Finding(
            False,
            "NotAdmitted",
            f"{runs.ready} replicas of an earlier revision keep serving" if runs.ready else "nothing runs",
        )
    wanted = runs.wanted if plan.replicas is None else plan.replicas
    if wanted == 0 and (plan.scaling is None or (plan.scaling.min_replicas == 0 and runs.observed)):
        return _judge_empty(plan, runs)
    required = max(1, plan.scaling.min_replicas) if plan.scaling is not None else wanted
    if runs.observed and runs.wanted >= required and runs.updated >= wanted and runs.updated_ready >= required:
        place = f" on {plan.gpu_class.name}" if plan.gpu_class else ""
        return Finding(True, "ReplicasReady", f"{_count(runs.updated_ready)} ready{place}")
    return _judge_unready(plan, runs, wanted, required)


def _judge_empty(plan: ServicePlan, runs: Workload) -> Finding:
    if runs.replicas > 0:
        return Finding(False, "Draining", f"{_count(runs.replicas)} finishing their requests")
    if plan.refusal is not None:
        return Finding(False, "NotAdmitted", "nothing runs")
    if plan.suspended:
        return Finding(True, "Suspended", "spec.suspend is true, nothing runs")
    if plan.scaling is not None:
        return Finding(True, "ScaledToZero", "nobody asks, so nothing runs; requests through the gateway wake it")
    return Finding(True, "ScaledToZero", "no replicas are wanted, nothing runs")


def _judge_unready(plan: ServicePlan, runs: Workload, wanted: int, required: int) -> Finding:
    progress = f"{runs.updated_ready} of {required} replicas of the newest revision are ready"
    older = max(0, runs.ready - runs.updated_ready)
    if older:
        progress += f", {older} of an earlier one still serve"
    failure = runs.last_failure
    if runs.pending_reason:
        pending = _with_rollout(plan, older, runs.pending_reason)
        step = f". {next_step(plan.suggestions)}" if plan.suggestions and plan.refusal is None else ""
        message = f"{progress}; pending: {pending.removesuffix('.') if step else pending}{step}"
        return Finding(False, "PodsPending", message, hopeless=runs.overdue and not runs.unplaced)
    if plan.rollout.paused:
        return Finding(False, "RolloutQueued", f"{progress}; {plan.rollout.reason}")
    if plan.rollout.blocked and older:
        return Finding(False, "RolloutWaitsForDevice", f"{progress}; {plan.rollout.reason}")
    if failure is not None and runs.updated_ready < required and runs.updated > 0:
        code = f" (exit code {failure.exit_code})" if failure.exit_code is not None else ""
        return Finding(
            False,
            "ReplicaFailed",
            f"{progress}; newest failure in {failure.pod or 'a pod'}: "
            f"{failure.reason}{code} {failure.message}".rstrip(),
            hopeless=runs.restarts >= HOPELESS_RESTARTS or runs.overdue,
        )
    if not runs.observed or runs.updated < wanted:
        return Finding(False, "RollingOut", progress)
    return Finding(False, "ReplicasNotReady", progress, hopeless=runs.overdue)


def _with_rollout(plan: ServicePlan, older: int, pending: str) -> str:
    return f"{pending}; {plan.rollout.reason}" if plan.rollout.blocked and older else pending


def _service_conditions(
    plan: ServicePlan,
    runs: Workload,
    finding: Finding,
    problems: tuple[str, ...],
) -> list[Condition]:
    conditions = [
        _summarise(plan, finding, problems),
        _admitted(plan),
        _condition(
            "WorkloadReady",
            finding.ready and not problems,
            "ApplyRefused" if problems else finding.reason,
            "; ".join(problems) or finding.message,
        ),
    ]
    if plan.quota is not None:
        conditions.append(_condition("QuotaAdmitted", plan.quota.admitted, plan.quota.reason, plan.quota.message))
    if plan.action is Action.APPLY and plan.scaling is not None:
        conditions.append(_scaling_active(plan.scaling, runs))
    if plan.action is Action.APPLY and plan.stepped_down:
        conditions.append(_condition("PrecisionReduced", True, "SteppedDown", _sentence(plan.stepped_down)))
    aborted = [state for state in plan.canary_states if state.phase is CanaryPhase.ABORTED]
    if aborted:
        words = "; ".join(f"{state.name}: {state.message}" for state in aborted)
        conditions.append(_condition("CanaryAborted", True, aborted[0].reason, words))
    summary = conditions[0]
    if problems or finding.hopeless or (plan.refusal is not None and not plan.refusal.passing):
        conditions.append(_condition("Stalled", True, summary.reason, summary.message))
    elif plan.refusal is not None or not finding.ready:
        conditions.append(_condition("Reconciling", True, summary.reason, summary.message))
    return conditions


def _scaling_active(scaling: ScalingPlan, runs: Workload) -> Condition:
    """Mirror what the autoscaler says; before it has looked nobody knows."""
    if runs.foreign_scaler:
        return _condition("ScalingActive", False, "ForeignScaler", runs.foreign_scaler)
    if runs.autoscaler_problem:
        return _condition("ScalingActive", False, "AutoscalerProblem", _with_fallback(scaling, runs.autoscaler_problem))
    bounds = f"{scaling.min_replicas} to {scaling.max_replicas} replicas"
    if not runs.autoscaler_judged:
        return _condition("ScalingActive", None, "AutoscalerStarting", f"{bounds}; the autoscaler has not looked yet")
    return _condition("ScalingActive", True, "AutoscalerActive", bounds)


def _with_fallback(scaling: ScalingPlan, problem: str) -> str:
    """What becomes of the number while the autoscaler cannot act."""
    if scaling.falls_back:
        return f"{problem}; spec.scaling.fallback keeps at least {_count(scaling.min_replicas)} meanwhile"
    if scaling.fallback is not None:
        return (
            f"{problem}; the number is held, and spec.scaling.fallback follows {scaling.fallback.after_seconds} s after"
        )
    return problem


def _summarise(plan: ServicePlan, finding: Finding, problems: tuple[str, ...]) -> Condition:
    if plan.refusal is not None:
        return _condition("Ready", False, plan.refusal.reason, f"{plan.refusal} {_sentence(finding.message)}")
    if problems:
        return _condition("Ready", False, "ApplyRefused", "; ".join(problems))
    return _condition("Ready", finding.ready, finding.reason, finding.message)


def _admitted(plan: ServicePlan) -> Condition:
    if plan.refusal is not None:
        return _condition("Admitted", False, plan.refusal.reason, str(plan.refusal))
    return _condition(
        "Admitted",
        True,
        "Admitted",
        f"within the limits of Tenant {plan.tenant}" if plan.tenant else "no Tenant limits this cluster",
    )


def plan_tenant_status(
    plan: TenantPlan,
    previous: TenantStatus,
    now: str,
    problems: tuple[str, ...] = (),
) -> TenantStatus:
    """Status after an apply; `problems` are the cluster's refusals."""
    messages = [str(problem) for problem in plan.problems] + list(problems)
    if messages:
        reason = plan.problems[0].reason if plan.problems else "ApplyRefused"
        summary = _condition("Ready", False, reason, " ".join(messages))
        conditions = [summary, _condition("Stalled", True, reason, summary.message)]
    else:
        spaces = len(plan.namespaces)
        conditions = [_condition("Ready", True, "Granted", f"{spaces} namespace{'' if spaces == 1 else 's'} set up")]
    return TenantStatus(
        observed_generation=plan.generation,
        conditions=_date(conditions, previous.conditions, plan.generation, now),
        gpus=list(plan.gpus),
        services=plan.services,
    )


def plan_gpu_class_status(plan: GpuClassPlan, previous: GPUClassStatus, now: str) -> GPUClassStatus:
    """Status of a class. A class without nodes is in order: an autoscaler may add them when pods wait."""
    if plan.nodes is None:
        condition = _condition("Ready", True, "NodesUnknown", "nodes cannot be seen from here")
    elif plan.nodes == 0:
        condition = _condition(
            "Ready", True, "NoReadyNodes", "no ready node carries this class; services prefer another, or wait"
        )
    else:
        condition = _condition(
            "Ready",
            True,
            "NodesReady",
            _count_devices(plan.gpus, plan.nodes),
        )
    return GPUClassStatus(
        observed_generation=plan.generation,
        conditions=_date([condition], previous.conditions, plan.generation, now),
        nodes=plan.nodes or 0,
        gpus=plan.gpus,
        allocated=plan.allocated,
        largest_free_block=plan.fragmentation.largest_block,
        fragmented=plan.fragmentation.lost,
    )


def _count_devices(gpus: int, nodes: int) -> str:
    ready = f"{nodes} ready {'node' if nodes == 1 else 'nodes'}"
    return f"{gpus} devices on {ready}" if gpus else f"{ready}; devices there can be claimed, and are not counted"


def status_document(status: BaseModel) -> dict[str, Any]:
    """JSON form in stable order, so that equal statuses are equal documents and need no write."""
    document: dict[str, Any] = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    if not document.get("canaries"):
        document.pop("canaries", None)  # most services have none, and a new release should not write them all
    return document


def _count(replicas: int) -> str:
    return "1 replica" if replicas == 1 else f"{replicas} replicas"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
