"""Decide everything about one object from its spec and a snapshot: the `plan` of observe, plan, render, apply, report.

A plan carries its reasons as data. Shells carry out `action`, renderers turn the rest into objects, `status` reports.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace

from windlass_contract.endpoints import RUNTIME_PORT
from windlass_contract.launch_spec import CacheReuse, Device, LaunchSpec, Precision, SparseActivation
from windlass_operator.api.v1alpha1.canary import CanaryStatus
from windlass_operator.api.v1alpha1.inference_service import CacheReuse as CacheReuseField
from windlass_operator.api.v1alpha1.inference_service import InferenceService, PodTemplate, SparsityMode
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.admission import Admission, admit, key_of
from windlass_operator.domain.canary_plan import (
    canary_of,
    derive_canaries,
    explain_canaries,
    object_name,
    service_key,
    with_refusal,
)
from windlass_operator.domain.decision import Decision, Refusal, decide
from windlass_operator.domain.device_claim import explain_alternatives
from windlass_operator.domain.elastic_precision import find_quality_problem, return_due_at
from windlass_operator.domain.fleet import FleetSettings, Platform
from windlass_operator.domain.fleet_plan import (
    GpuClassPlan,
    TenantPlan,
    plan_gpu_class,
    plan_tenant,
    plan_tenant_in_view,
)
from windlass_operator.domain.fleet_view import FleetView, circle_of
from windlass_operator.domain.gpu_class import GpuChoice, choose
from windlass_operator.domain.labels import batch_selector, canary_selector, selector_labels
from windlass_operator.domain.model_fit import cache_within_share, explain_fit, judge_fit, stored_bits
from windlass_operator.domain.model_source import ModelSource, SourceKind, explain_source, parse_source
from windlass_operator.domain.oracle import SERVICES_AT_MOST, advise, suggest, suggest_for_pods
from windlass_operator.domain.pod_overlay import guard_overlay
from windlass_operator.domain.power import explain_power
from windlass_operator.domain.precision import choose_precision
from windlass_operator.domain.preemption import is_recent
from windlass_operator.domain.priority import explain_priority, priority_class_of
from windlass_operator.domain.quantity import parse_bytes
from windlass_operator.domain.queueing import judge_queue, plan_queue
from windlass_operator.domain.quota_report import QuotaVerdict
from windlass_operator.domain.rollout import RolloutPlan, explain_disruptions, explain_rollout
from windlass_operator.domain.rollout_plan import RolloutClues, hold_floor, plan_replacement
from windlass_operator.domain.scaling import (
    ScalingPlan,
    explain_replicas,
    explain_scaler,
    fallback_due_at,
    metrics_lost_since,
    plan_scaling,
)
from windlass_operator.domain.schedule import describe_bounds, next_change
from windlass_operator.domain.snapshot import Key, Snapshot, Taking, Workload
from windlass_operator.domain.suggestion import Suggestion
from windlass_operator.domain.tenancy import explain_tenancy, owned_namespaces
from windlass_operator.domain.traffic import NO_TRAFFIC, TrafficPlan, explain_traffic, plan_traffic

__all__ = [
    "Action",
    "GpuClassPlan",
    "ServicePlan",
    "TenantPlan",
    "plan_gpu_class",
    "plan_in_view",
    "plan_service",
    "plan_services",
    "plan_tenant",
    "plan_tenant_in_view",
]


_MOST_TAKINGS = 63


class Action(enum.StrEnum):
    """What a shell does with a plan."""

    APPLY = "Apply"
    """Make the children equal to what the plan renders."""
    HOLD = "Hold"
    """Leave the children as they are, do not call apply: a refusal must not stop what already runs."""
    REMOVE = "Remove"
    """Apply an empty set of children."""


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """Everything about one InferenceService that is decided."""

    key: Key
    generation: int
    tenant: str
    """Name of the owning Tenant; empty in a cluster without tenants."""
    neighbours: tuple[str, ...]
    """Namespaces whose pods may call the service: the tenant's, or its own alone."""
    action: Action
    launch: LaunchSpec
    source: ModelSource
    gpu_class: GpuChoice | None
    """None: the service runs on CPUs."""
    replicas: int | None
    """None while an autoscaler owns the number. Set although one is planned where it has to be woken from zero."""
    scaling: ScalingPlan | None
    priority_class: str
    rollout: RolloutPlan
    pod: PodTemplate
    """The user's overlay without what it must not touch."""
    drain_timeout_s: int
    suspended: bool
    decisions: tuple[Decision, ...]
    refusal: Refusal | None = None
    """Why the service does not run as its spec says; with action Apply it runs with fewer replicas."""
    quota: QuotaVerdict | None = None
    """What the tenant's quota says; None where none applies."""
    suggestions: tuple[Suggestion, ...] = ()
    """The smallest changes that would let the service run as asked, each proven; empty where it does, or none is known.
    """
    takes_quota: bool = False
    """True: it takes more of the GPUs that its tenant shares than its pods hold now."""
    takings: tuple[Taking, ...] = ()
    """What quota decisions took from the service, with what this plan takes."""
    address: str = ""
    """Base URL of the OpenAI-compatible API inside the cluster; empty on one machine, where the gateway knows it."""
    plan_again_at: datetime.datetime | None = None
    """When the same world gives another plan: a schedule begins or ends, a fallback comes due, or a budget allows more.
    """
    stepped_down: str = ""
    """Why it runs in a smaller number format than its preset; empty while it does not."""
    canaries: tuple[ServicePlan, ...] = ()
    """Plans of its canaries, with keys that their objects are called by."""
    canary_states: tuple[CanaryStatus, ...] = ()
    """How far its canaries are, in the order of the spec."""
    traffic: TrafficPlan = NO_TRAFFIC
    """What is written for routers beside our own gateway."""
    queue: str = ""
    """LocalQueue of Kueue that its pods wait in; empty: none."""
    probed: bool = False
    """Whether the operator asks its replicas prompts, to compare canaries with the stable revision."""
    canary: str = ""
    """Name of the canary that this is a plan of; empty for the stable revision."""
    instance: str = ""
    """Name of the service that this is a canary of; empty for the stable revision."""
    batch: str = ""
    """Name of the batch whose workers this is a plan of; empty for a service."""

    @property
    def service(self) -> str:
        """Name of the InferenceService."""
        return self.instance or self.key.name

    @property
    def selector(self) -> dict[str, str]:
        """Labels that tell the pods of this revision from all others in the namespace."""
        if self.batch:
            return batch_selector(self.batch)
        return canary_selector(self.instance, self.canary) if self.canary else selector_labels(self.key.name)

    @property
    def runnable(self) -> bool:
        """Whether the plan has objects to apply."""
        return self.action is Action.APPLY


def plan_service(service: InferenceService, snapshot: Snapshot, settings: FleetSettings) -> ServicePlan:
    """Decide how one service runs. Never raises for what a user wrote: that becomes the plan's refusal."""
    key = key_of(service)
    if snapshot.services.get(key) is not service:
        snapshot = replace(snapshot, services={**snapshot.services, key: service})
    return plan_in_view(service, FleetView(snapshot, settings))


def plan_services(snapshot: Snapshot, settings: FleetSettings) -> tuple[ServicePlan, ...]:
    """Decide for every service of a snapshot, in the order of their keys."""
    view = FleetView(snapshot, settings)
    return tuple(plan_in_view(snapshot.services[key], view) for key in sorted(snapshot.services))


def plan_in_view(
    service: InferenceService,
    view: FleetView,
    clues: RolloutClues = RolloutClues(),  # noqa: B008 - frozen
) -> ServicePlan:
    """Decide for a service of the view's snapshot; many services share the view's look-ups."""
    key, settings = key_of(service), view.settings
    observed, service = service, view.snapshot.services.get(key, service)
    spec, workload = service.spec, view.workload_of(key)
    verdict = admit(service, view)
    source = parse_source(spec.model.uri, settings.platform)
    scaling = _plan_scaling(service, verdict, view)
    replicas = _current_replicas(verdict, scaling, workload)
    rollout = plan_replacement(service, verdict, replicas, view, clues)
    scaling = hold_floor(scaling, rollout)
    precision, precision_decision = _choose_precision(service, verdict)
    pod, pod_decisions = guard_overlay(spec.pod_template)
    decisions = [explain_tenancy(key.namespace, view.claims), *verdict.decisions]
    if _carried_out(verdict) and isinstance(source, ModelSource):
        decisions += [
            explain_source(source),
            *_explain_claim(verdict),
            precision_decision,
            *_explain_fit(service, verdict, precision),
            explain_replicas(spec, scaling, verdict.replicas, settings.platform, _hours(observed, view)),
            *(
                [explain_scaler(settings, view.snapshot.capabilities)]
                if scaling and view.snapshot.capabilities.known
                else []
            ),
            explain_priority(spec.tier),
            *_explain_power(service, verdict),
            explain_rollout(rollout),
            explain_disruptions(replicas, rollout),
            *pod_decisions,
            *explain_canaries(spec.canaries, observed.status.canaries),
        ]
    tenant = view.tenant_of(key.namespace)
    canaries = _plan_canaries(observed, view) if _carried_out(verdict) else ()
    states = _judge_refusals(observed.status.canaries, canaries)
    capabilities = view.snapshot.capabilities
    traffic = plan_traffic(key.name, states, settings, capabilities) if not canary_of(key) else NO_TRAFFIC
    if not canary_of(key):
        decisions += explain_traffic(traffic, settings, capabilities)
    queue = plan_queue(service, tenant, view.snapshot.workloads.get(key), capabilities)
    if queue.decision is not None and _carried_out(verdict):
        decisions.append(queue.decision)
    suggestions = _suggest(service, verdict, view)
    return ServicePlan(
        key=key,
        generation=service.metadata.generation,
        tenant=tenant.metadata.name if tenant else "",
        neighbours=(key.namespace,) if tenant is None else _namespaces(tenant, view),
        action=_choose_action(service, verdict, workload),
        launch=_plan_launch(service, verdict, source, precision, tenant),
        source=source if isinstance(source, ModelSource) else ModelSource(SourceKind.FILE, ""),
        gpu_class=_gpu_choice(verdict),
        replicas=_owned_replicas(verdict, scaling, view.snapshot.workloads.get(key)),
        scaling=scaling,
        priority_class=priority_class_of(spec.tier),
        rollout=rollout,
        pod=pod,
        drain_timeout_s=spec.drain.timeout_seconds,
        suspended=spec.suspend,
        decisions=tuple(decisions),
        refusal=advise(verdict.refusal, suggestions, shares_quota=verdict.quota is not None),
        suggestions=suggestions,
        quota=judge_queue(queue.name, workload, verdict.quota),
        takes_quota=_takes_quota(verdict, scaling, workload) or any(canary.takes_quota for canary in canaries),
        takings=_record_takings(verdict, workload, view.now_s),
        address=_address(key, settings),
        plan_again_at=_plan_again_at(observed, view),
        stepped_down=precision_decision.reason if verdict.candidate and verdict.candidate.format.step else "",
        canaries=canaries,
        canary_states=states,
        traffic=traffic,
        queue=queue.name,
        probed=any(canary.analysis is not None and canary.analysis.prompts for canary in spec.canaries),
    )


def _plan_scaling(service: InferenceService, verdict: Admission, view: FleetView) -> ScalingPlan | None:
    since = metrics_lost_since(service.status)
    lost_s = None if since is None or view.now is None else (view.now - since).total_seconds()
    return plan_scaling(
        service.spec,
        verdict.replicas,
        view.settings,
        view.snapshot.capabilities,
        startup_s=view.workload_of(key_of(service)).startup_s,
        metrics_lost_s=lost_s,
    )


def _hours(service: InferenceService, view: FleetView) -> str:
    return "" if service.spec.scaling is None else describe_bounds(service.spec.scaling, view.now)


def _takes_quota(verdict: Admission, scaling: ScalingPlan | None, workload: Workload) -> bool:
    grant = verdict.grant
    if grant is None or not _carried_out(verdict):
        return False
    replicas = grant.replicas if scaling is None else scaling.min_replicas
    return grant.gpu_class != workload.gpu_class or replicas * grant.devices_per_replica > workload.devices_to_come


def _suggest(service: InferenceService, verdict: Admission, view: FleetView) -> tuple[Suggestion, ...]:
    tenant = view.tenant_of(key_of(service).namespace)
    sharers = view.grants.get(circle_of(tenant), {}) if tenant is not None else {}
    if len(sharers) > SERVICES_AT_MOST:
        return ()
    key = key_of(service)
    if key not in view.suggestions:
        view.suggestions[key] = suggest(service, verdict, view) or suggest_for_pods(service, verdict, view)
    return view.suggestions[key]


def _plan_again_at(service: InferenceService, view: FleetView) -> datetime.datetime | None:
    scaling, now, tenant = service.spec.scaling, view.now, view.tenant_of(key_of(service).namespace)
    due = return_due_at(service.status)
    moments: list[datetime.datetime | None] = [due if due is not None and now is not None and due > now else None]
    if now is not None and scaling is not None:
        moments += [next_change(scaling, now), fallback_due_at(scaling, service.status, now)]
    if service.spec.accelerator is not None and tenant is not None and circle_of(tenant) in view.waits_for_budget:
        moments.append(view.budgets_change_at)
    return min((moment for moment in moments if moment is not None), default=None)


def _plan_canaries(service: InferenceService, view: FleetView) -> tuple[ServicePlan, ...]:
    """Plan each canary as a service of its own, then name it as its objects are called."""
    plans = (plan_in_view(derived, view) for derived in derive_canaries(service))
    probes = {item.name: item.analysis is not None and bool(item.analysis.prompts) for item in service.spec.canaries}
    return tuple(replace(_name_canary(plan), probed=probes[canary_of(plan.key)]) for plan in plans)


def _judge_refusals(states: Iterable[CanaryStatus], plans: Iterable[ServicePlan]) -> tuple[CanaryStatus, ...]:
    refusals = {plan.canary: plan.refusal for plan in plans if plan.action is not Action.APPLY}
    return tuple(with_refusal(state, refusals.get(state.name)) for state in states)


def _name_canary(plan: ServicePlan) -> ServicePlan:
    service, canary = service_key(plan.key).name, canary_of(plan.key)
    key = plan.key._replace(name=object_name(service, canary))
    launch = replace(plan.launch, service=service)
    # Children that a canary may not have are removed: nothing is lost, its stable revision answers.
    action = Action.APPLY if plan.action is Action.APPLY else Action.REMOVE
    return replace(plan, key=key, launch=launch, canary=canary, instance=service, action=action)


def _namespaces(tenant: Tenant, view: FleetView) -> tuple[str, ...]:
    return owned_namespaces(tenant, view.owners, view.settings)


def _carried_out(verdict: Admission) -> bool:
    return verdict.refusal is None or verdict.limited


def _choose_action(service: InferenceService, verdict: Admission, workload: Workload) -> Action:
    if _carried_out(verdict):
        return Action.APPLY
    runs = workload.replicas > 0 or workload.wanted > 0
    reclaimed = verdict.grant is not None and verdict.grant.cause is not None
    # Suspending must stop a service, also one that would be refused; and what others are due must come back.
    return Action.HOLD if runs and not service.spec.suspend and not reclaimed else Action.REMOVE


def _record_takings(verdict: Admission, workload: Workload, now_s: float) -> tuple[Taking, ...]:
    """Add what is taken now. What is too old to count goes only when something is added: time alone writes nothing."""
    grant = verdict.grant
    if grant is None or not grant.taken or grant.cause is None:
        return workload.takings
    recent = tuple(taking for taking in workload.takings if is_recent(taking, now_s))
    return (*recent[-_MOST_TAKINGS:], Taking(int(now_s), grant.taken, grant.replicas, grant.cause))


def _gpu_choice(verdict: Admission) -> GpuChoice | None:
    return None if verdict.candidate is None else choose(verdict.candidate)


def _explain_claim(verdict: Admission) -> list[Decision]:
    if verdict.candidate is None or not verdict.candidate.claimed:
        return []
    return [explain_alternatives(choose(verdict.candidate).alternatives)]


def _explain_fit(service: InferenceService, verdict: Admission, precision: Precision) -> list[Decision]:
    fit = None if verdict.candidate is None else judge_fit(service.spec, precision, verdict.candidate.spec)
    return [] if fit is None else [explain_fit(fit)]


def _owned_replicas(verdict: Admission, scaling: ScalingPlan | None, workload: Workload | None) -> int | None:
    """The number we write. Autoscalers sleep at zero replicas, so one that takes over from there gets its minimum."""
    if scaling is None:
        return verdict.replicas
    asleep = workload is not None and workload.wanted == 0
    return scaling.min_replicas if asleep and scaling.min_replicas > 0 else None


def _current_replicas(verdict: Admission, scaling: ScalingPlan | None, workload: Workload) -> int:
    """Replicas as a rollout finds them: an autoscaler's choice where one decides."""
    return verdict.replicas if scaling is None else max(scaling.min_replicas, workload.wanted)


def _explain_power(service: InferenceService, verdict: Admission) -> tuple[Decision, ...]:
    if verdict.candidate is None:
        return ()
    return explain_power(service.spec.power_profile, service.spec.tier, verdict.candidate.spec.power)


def _choose_precision(service: InferenceService, verdict: Admission) -> tuple[Precision, Decision]:
    spec = service.spec.precision
    if verdict.candidate is None:
        return choose_precision(spec.preset, None)
    chosen, decision = choose_precision(verdict.candidate.format.preset, verdict.candidate.spec)
    reason = decision.reason
    if verdict.candidate.format.step:
        name = verdict.candidate.name
        reason = f"stepped down from {spec.preset.value} by spec.precision.alternatives: {name} holds it"
    problems = [problem for item in spec.alternatives if (problem := find_quality_problem(item))]
    return chosen, decide("precision", chosen.value, "; not ".join([reason, *problems]))


def _plan_launch(
    service: InferenceService,
    verdict: Admission,
    source: ModelSource | Refusal,
    precision: Precision,
    tenant: Tenant | None,
) -> LaunchSpec:
    spec, key = service.spec, key_of(service)
    device = Device.CPU if verdict.candidate is None else Device.CUDA
    sparsity = spec.sparsity.mode if device is Device.CPU else SparsityMode.OFF  # a canary may try a GPU
    return LaunchSpec(
        model_uri=source.launch_uri if isinstance(source, ModelSource) else spec.model.uri,
        served_name=spec.model.served_name or key.name,
        namespace=key.namespace,
        service=key.name,
        tenant=tenant.metadata.name if tenant else "",
        device=device,
        device_count=1 if verdict.candidate is None else verdict.candidate.count,
        precision=precision,
        sparse_activation=SparseActivation(sparsity.value),
        cache_bytes=_cache_bytes(service, verdict, precision),
        cache_bits=stored_bits(spec),
        cache_reuse=CacheReuse.PREFIX if spec.cache.reuse is CacheReuseField.PREFIX else CacheReuse.NONE,
        max_sequence_tokens=spec.limits.max_sequence_tokens or 0,
        max_running_requests=spec.limits.max_running_requests,
        max_queued_requests=spec.limits.max_queued_requests,
        drain_timeout_s=float(spec.drain.timeout_seconds),
        port=RUNTIME_PORT,
    )


def _cache_bytes(service: InferenceService, verdict: Admission, precision: Precision) -> int:
    if verdict.candidate is not None and verdict.candidate.spec.sharing is not None:
        return cache_within_share(service.spec, precision, verdict.candidate.spec)
    return 0 if service.spec.cache.memory is None else parse_bytes(service.spec.cache.memory)


def _address(key: Key, settings: FleetSettings) -> str:
    if settings.platform is Platform.LOCAL:
        return ""
    name = object_name(service_key(key).name, canary_of(key)) if canary_of(key) else key.name
    return f"http://{name}.{key.namespace}.svc.{settings.cluster_domain}:{RUNTIME_PORT}/v1"
