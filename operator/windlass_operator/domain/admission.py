"""Decide whether a service may run: a chain of pure checks, then its share of the tenant's GPUs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from windlass_operator.api.v1alpha1.inference_service import Accelerator, Allocation, InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.alternative_quota import AlternativeClaim, Reservation, reserve_alternatives
from windlass_operator.domain.batch_workers import BATCH_KIND, BatchWorkers
from windlass_operator.domain.class_words import describe, refuse_ranking
from windlass_operator.domain.decision import Decision, Refusal, decide
from windlass_operator.domain.elastic_precision import may_return, may_step_down
from windlass_operator.domain.fleet import Platform
from windlass_operator.domain.fleet_view import FleetView, circle_of
from windlass_operator.domain.gpu_class import Candidate, Ranking, rank_classes, within
from windlass_operator.domain.model_source import check_volume, parse_source
from windlass_operator.domain.preemption import allowance, told
from windlass_operator.domain.priority import check_tier
from windlass_operator.domain.quantity import parse_bytes
from windlass_operator.domain.quota import Grant, Request, Terms
from windlass_operator.domain.quota_report import QuotaVerdict, explain_grant, judge_grant, refuse_grant
from windlass_operator.domain.rollout_turns import claim_of
from windlass_operator.domain.scaling import ReplicaRange, check_scaling, replica_range
from windlass_operator.domain.sharing import share_cohort
from windlass_operator.domain.snapshot import Key, Workload
from windlass_operator.domain.tenancy import check_tenancy

SERVICE_KIND: Final = "InferenceService"
_NOTHING_ASIDE: Final = Reservation()
_SERVICE_NAME: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether, where and how often a service may run."""

    refusal: Refusal | None
    replicas: int
    """Replicas it may grow to."""
    candidate: Candidate | None = None
    """The class it runs on; None on CPUs."""
    grant: Grant | None = None
    """Its share of the tenant's GPUs; None where no quota applies."""
    quota: QuotaVerdict | None = None
    """What the quota says about it; None where none applies."""
    limited: bool = False
    """True: it runs, with fewer replicas than it asks for."""
    decisions: tuple[Decision, ...] = ()


def key_of(service: InferenceService) -> Key:
    """Identity of a service; one read from a file without a namespace lives in `default`. Workers go by their batch."""
    kind = BATCH_KIND if isinstance(service, BatchWorkers) else SERVICE_KIND
    return Key(kind, service.metadata.namespace or "default", service.metadata.name)


def check_service(service: InferenceService, view: FleetView) -> Refusal | None:
    """Run every check that needs no look at other services, and return the first refusal."""
    return next((refusal for refusal in _checks(service, view) if refusal is not None), None)


def _checks(service: InferenceService, view: FleetView) -> Iterator[Refusal | None]:
    namespace = key_of(service).namespace
    tenant = view.tenant_of(namespace)
    yield _check_name(service.metadata.name)
    if view.snapshot.tenants:
        yield check_tenancy(namespace, tenant, view.settings)
    yield check_tier(service.spec.tier, tenant)
    yield check_scaling(service.spec)
    source = parse_source(service.spec.model.uri, view.settings.platform)
    yield source if isinstance(source, Refusal) else check_volume(source, view.snapshot.capabilities)
    yield _check_memory(service)


def _check_name(name: str) -> Refusal | None:
    if all(_SERVICE_NAME.fullmatch(part) for part in name.split("/", 1)):
        return None
    return Refusal(
        "InvalidName",
        "metadata.name: expected at most 63 lower-case letters, digits and '-', starting with a letter, "
        f"because a Service gets this name; found {name}",
        "Create the service anew under such a name",
    )


def _check_memory(service: InferenceService) -> Refusal | None:
    cache, memory = service.spec.cache.memory, service.spec.pod_template.resources.memory
    if (
        service.spec.accelerator is not None
        or cache is None
        or memory is None
        or parse_bytes(cache) < parse_bytes(memory)
    ):
        return None
    return Refusal(
        "CacheTooLarge",
        f"spec.cache.memory {cache} leaves nothing of spec.podTemplate.resources.memory {memory} for the model",
        "Lower spec.cache.memory or raise spec.podTemplate.resources.memory",
    )


def admit(service: InferenceService, view: FleetView) -> Admission:
    """Decide for one service, with all others that share its GPUs in view."""
    wanted = replica_range(service.spec, view.settings.platform)
    refusal = check_service(service, view)
    if refusal is not None:
        return Admission(refusal, 0, grant=_grant_of_refused(service, view))
    if service.spec.accelerator is None:
        return _admit_on_cpu(wanted, "spec.accelerator is not set")
    ranking = _rank(service, view)
    if not ranking.candidates:
        return Admission(refuse_ranking(ranking), 0, grant=_grant_of_refused(service, view))
    if view.settings.platform is Platform.LOCAL and not any(candidate.nodes for candidate in ranking.candidates):
        reason = "this machine carries no GPU of the listed classes, so replicas compute on its CPU"
        return _admit_on_cpu(wanted, reason)
    key = key_of(service)
    tenant = view.tenant_of(key.namespace)
    if tenant is not None and key in _reservation(tenant, view).refusals:
        return Admission(_reservation(tenant, view).refusals[key], 0, grant=_grant_of_refused(service, view))
    if tenant is None:
        best = ranking.candidates[0]
        return Admission(None, wanted.most, best, decisions=(_explain_choice(best, ranking, service, view),))
    return _admit_within_quota(ranking, _grants(tenant, view)[key], service, view)


def _grant_of_refused(service: InferenceService, view: FleetView) -> Grant | None:
    """Its share of the quota as long as its pods hold devices."""
    key = key_of(service)
    tenant = view.tenant_of(key.namespace)
    return _grants(tenant, view).get(key) if tenant is not None and view.workload_of(key).devices_to_come else None


def _admit_on_cpu(wanted: ReplicaRange, reason: str) -> Admission:
    return Admission(None, wanted.most, decisions=(decide("accelerator", "CPU", reason),))


def _rank(service: InferenceService, view: FleetView) -> Ranking:
    key = key_of(service)
    ranking = rank_classes(
        service.spec,
        view.snapshot.gpu_classes,
        view.supply,
        view.workload_of(key),
        least=replica_range(service.spec, view.settings.platform).least,
        may_return=may_return(service.status, view.now),
        may_leave=may_step_down(service.status, view.now),
    )
    tenant = view.tenant_of(key.namespace)
    return ranking if tenant is None else within(ranking, {gpu.name for gpu in tenant.spec.quota.gpus})


def _reservation(tenant: Tenant, view: FleetView) -> Reservation:
    name = tenant.metadata.name
    if name not in view.claiming:
        return _NOTHING_ASIDE
    if name not in view.reservations:
        nominal = {gpu.name: gpu.nominal for gpu in tenant.spec.quota.gpus}
        services = view.services_of(tenant).items()
        claims = [claim for key, service in services if (claim := _alternatives(key, service, view)) is not None]
        view.reservations[name] = reserve_alternatives(claims, nominal, name)
    return view.reservations[name]


def _alternatives(key: Key, service: InferenceService, view: FleetView) -> AlternativeClaim | None:
    accelerator = service.spec.accelerator
    if accelerator is None or accelerator.allocation is not Allocation.RESOURCE_CLAIM:
        return None
    if service.metadata.deletion_timestamp or check_service(service, view) is not None:
        return None
    classes = tuple(one.name for candidate in _rank(service, view).candidates for one in candidate.claimed[1:])
    if not classes:
        return None
    most = replica_range(service.spec, view.settings.platform).most
    return AlternativeClaim(key, service.metadata.creation_timestamp, classes, most * accelerator.count)


def _admit_within_quota(ranking: Ranking, grant: Grant, service: InferenceService, view: FleetView) -> Admission:
    key = key_of(service)
    tenant, workload = view.tenant_of(key.namespace), view.workload_of(key)
    assert tenant is not None
    others = tuple(candidate.name for candidate in ranking.candidates if candidate.name != grant.gpu_class)
    cause = grant.cause or (workload.takings[-1].cause if workload.takings else None)
    refusal = refuse_grant(grant, tenant, others, cause)
    verdict = judge_grant(grant, tenant, refusal)
    stopped = grant.replicas == 0 and grant.least > 0
    if stopped and not grant.taken and not workload.takings:
        return Admission(refusal, 0, grant=grant, quota=verdict)
    chosen = next(candidate for candidate in ranking.candidates if candidate.name == grant.gpu_class)
    return Admission(
        refusal=refusal,
        replicas=grant.replicas,
        candidate=chosen,
        grant=grant,
        quota=verdict,
        limited=grant.short,
        decisions=(_explain_choice(chosen, ranking, service, view), explain_grant(grant, tenant)),
    )


def _grants(tenant: Tenant, view: FleetView) -> Mapping[Key, Grant]:
    circle = circle_of(tenant)
    if circle not in view.grants:
        members = view.members(circle)
        requests = [request for member in members for request in _requests(member, view)]
        grants = view.grants[circle] = share_cohort([_terms(member, view) for member in members], requests)
        if grants.waits_for_budget:
            view.waits_for_budget.add(circle)
    return view.grants[circle]


def _terms(tenant: Tenant, view: FleetView) -> Terms:
    spec, aside = tenant.spec, _reservation(tenant, view).devices
    classes = view.quotas[tenant.metadata.name]
    if aside:
        classes = {name: replace(terms, nominal=terms.nominal - aside.get(name, 0)) for name, terms in classes.items()}
    return Terms(
        tenant.metadata.name,
        classes,
        spec.cohort,
        spec.weight,
        _allowance(tenant, view),
    )


def _allowance(tenant: Tenant, view: FleetView) -> int | None:
    budget = tenant.spec.preemption.max_replicas_per_hour
    if budget is None:
        return None
    takings = (taking for key in view.services_of(tenant) for taking in view.workload_of(key).takings)
    return allowance(budget, takings, view.now_s)


def _requests(tenant: Tenant, view: FleetView) -> list[Request]:
    """One request per GPU service of the tenant that passes its own checks, and one for what others still hold."""
    found = [_hold(key, runs, tenant) for key, runs in view.remnants_of(tenant).items() if runs.devices]
    for key, service in view.services_of(tenant).items():
        if key not in view.requests:
            view.requests[key] = _request(key, service, tenant, view)
        request = view.requests[key]
        if request is not None:
            found.append(request)
    return found


def _hold(key: Key, workload: Workload, tenant: Tenant) -> Request:
    """What runs without a service: pods on their way out, or a Deployment whose service cannot be read and stays."""
    return Request(
        key=key,
        created="",
        classes=(workload.gpu_class,),
        least=0,
        most=0,
        devices_per_replica=max(1, workload.devices) if workload.wanted else 1,
        held_class=workload.gpu_class,
        held_devices=workload.devices,
        tenant=tenant.metadata.name,
        fixed=workload.wanted > 0,
    )


def _promised(workload: Workload, accelerator: Accelerator | None) -> int:
    """Devices of pods that its rollout may start. While it moves to another class, what it keeps there covers them."""
    return 0 if accelerator is None or workload.devices_left_behind else claim_of(workload) * accelerator.count


def _request(key: Key, service: InferenceService, tenant: Tenant, view: FleetView) -> Request | None:
    workload, accelerator = view.workload_of(key), service.spec.accelerator
    if accelerator is None and not workload.devices_to_come:
        return None
    held = Request(
        key=key,
        created=service.metadata.creation_timestamp,
        classes=(workload.gpu_class,),
        least=0,
        most=0,
        devices_per_replica=max(1, workload.devices_to_come),
        held_class=workload.gpu_class,
        held_devices=workload.devices_to_come,
        promised_devices=_promised(workload, accelerator),
        tenant=tenant.metadata.name,
        tier=service.spec.tier,
        floor=1,
        fixed=True,
    )
    usable = accelerator is not None and check_service(service, view) is None
    usable = usable and key not in _reservation(tenant, view).refusals
    candidates = _rank(service, view).candidates if usable else ()
    if accelerator is None or not candidates:
        return held if workload.devices_to_come else None
    wanted = replica_range(service.spec, view.settings.platform)
    leaving = bool(service.metadata.deletion_timestamp)
    return replace(
        held,
        classes=tuple(candidate.name for candidate in candidates),
        devices_per_replica=accelerator.count,
        least=0 if leaving else wanted.least,
        most=0 if leaving else wanted.most,
        demand=min(wanted.most, workload.wanted + 1) if workload.wants_more and not leaving else 0,
        floor=min(service.spec.rollout.min_available, wanted.least),
        told=told(workload.wanted, workload.takings, view.now_s),
        fixed=False,
    )


def _explain_choice(chosen: Candidate, ranking: Ranking, service: InferenceService, view: FleetView) -> Decision:
    workload = view.workload_of(key_of(service))
    reasons = [describe(chosen, view.supply, workload)]
    passed_over = ranking.candidates.index(chosen)
    for position, candidate in enumerate(ranking.candidates):
        if position < passed_over:
            reasons.append(f"not {candidate.name}: the tenant's quota has no room")
        elif position > passed_over and (candidate.nodes == 0 or candidate.format.step < chosen.format.step):
            reasons.append(f"not {candidate.name}: {describe(candidate, view.supply, workload)}")
    reasons += [f"not {skipped.name}: {skipped.reason}" for skipped in ranking.skipped]
    return decide("accelerator", chosen.name, "; ".join(reasons))
