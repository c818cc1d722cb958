"""Decide whether a service may run: a chain of pure checks, then its share of the tenant's GPUs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.decision import Decision, Refusal, decide
from windlass_operator.domain.fleet import FleetSettings, Platform
from windlass_operator.domain.gpu_class import Candidate, Ranking, rank_classes, refuse_ranking
from windlass_operator.domain.model_source import parse_source
from windlass_operator.domain.priority import check_tier
from windlass_operator.domain.quantity import parse_bytes
from windlass_operator.domain.quota import Grant, Request, share_quota
from windlass_operator.domain.scaling import check_scaling, replica_range
from windlass_operator.domain.snapshot import Key, Snapshot, Workload
from windlass_operator.domain.tenancy import check_tenancy, tenant_of

SERVICE_KIND: Final = "InferenceService"
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
    limited: bool = False
    """True: it runs, with fewer replicas than it asks for."""
    decisions: tuple[Decision, ...] = ()


def key_of(service: InferenceService) -> Key:
    """Identity of a service; one read from a file without a namespace lives in `default`."""
    return Key(SERVICE_KIND, service.metadata.namespace or "default", service.metadata.name)


def check_service(service: InferenceService, snapshot: Snapshot, settings: FleetSettings) -> Refusal | None:
    """Run every check that needs no look at other services, and return the first refusal."""
    return next((refusal for refusal in _checks(service, snapshot, settings) if refusal is not None), None)


def _checks(service: InferenceService, snapshot: Snapshot, settings: FleetSettings) -> Iterator[Refusal | None]:
    namespace = key_of(service).namespace
    yield _check_name(service.metadata.name)
    yield check_tenancy(namespace, snapshot.tenants, settings)
    yield check_tier(service.spec.tier, tenant_of(namespace, snapshot.tenants))
    yield check_scaling(service.spec)
    source = parse_source(service.spec.model.uri, settings.platform)
    yield source if isinstance(source, Refusal) else None
    yield _check_memory(service)


def _check_name(name: str) -> Refusal | None:
    if _SERVICE_NAME.fullmatch(name):
        return None
    return Refusal(
        "InvalidName",
        f"metadata.name: expected at most 63 lower-case letters, digits and '-', starting with a letter, "
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


def admit(service: InferenceService, snapshot: Snapshot, settings: FleetSettings) -> Admission:
    """Decide for one service, with all others of its tenant in view."""
    wanted = replica_range(service.spec, settings.platform)
    refusal = check_service(service, snapshot, settings)
    if refusal is not None:
        return Admission(refusal, 0)
    if service.spec.accelerator is None:
        return Admission(None, wanted.most, decisions=(decide("accelerator", "CPU", "spec.accelerator is not set"),))
    ranking = _rank(service, snapshot)
    if not ranking.candidates:
        return Admission(refuse_ranking(ranking), 0)
    if settings.platform is Platform.LOCAL and not any(candidate.nodes for candidate in ranking.candidates):
        return Admission(
            None,
            wanted.most,
            decisions=(
                decide(
                    "accelerator",
                    "CPU",
                    "this machine carries no GPU of the listed classes, so replicas compute on its CPU",
                ),
            ),
        )
    tenant = tenant_of(key_of(service).namespace, snapshot.tenants)
    if tenant is None:
        best = ranking.candidates[0]
        return Admission(None, wanted.most, best, decisions=(_explain_choice(best, ranking, ()),))
    grants = share_quota(_requests(service, tenant, snapshot, settings), _nominal(tenant))
    return _admit_within_quota(ranking, grants[key_of(service)], tenant)


def _rank(service: InferenceService, snapshot: Snapshot) -> Ranking:
    return rank_classes(service.spec, snapshot, snapshot.workloads.get(key_of(service), Workload()))


def _admit_within_quota(ranking: Ranking, grant: Grant, tenant: Tenant) -> Admission:
    by_name = {candidate.name: candidate for candidate in ranking.candidates}
    if grant.replicas == 0 and grant.least > 0:
        return Admission(_refuse_quota(ranking, grant, tenant), 0)
    chosen = by_name[grant.gpu_class]
    passed_over = tuple(candidate.name for candidate in ranking.candidates[: ranking.candidates.index(chosen)])
    return Admission(
        _limit(grant, tenant) if grant.short else None,
        grant.replicas,
        chosen,
        grant,
        grant.short,
        (_explain_choice(chosen, ranking, passed_over), _explain_grant(grant, tenant)),
    )


def _requests(service: InferenceService, tenant: Tenant, snapshot: Snapshot, settings: FleetSettings) -> list[Request]:
    """One request per GPU service of the tenant that passes its own checks, and one for what refused ones still hold."""
    services = {key_of(other): other for other in snapshot.services.values()} | {key_of(service): service}
    requests = []
    for key, other in services.items():
        if tenant_of(key.namespace, snapshot.tenants) != tenant:
            continue
        request = _request(key, other, snapshot, settings)
        if request is not None:
            requests.append(request)
    return requests


def _request(key: Key, service: InferenceService, snapshot: Snapshot, settings: FleetSettings) -> Request | None:
    workload = snapshot.workloads.get(key, Workload())
    held = Request(
        key,
        service.metadata.creation_timestamp,
        (workload.gpu_class,),
        0,
        0,
        held_class=workload.gpu_class,
        held_devices=workload.devices,
    )
    usable = service.spec.accelerator is not None and check_service(service, snapshot, settings) is None
    candidates = _rank(service, snapshot).candidates if usable else ()
    if service.spec.accelerator is None or not candidates:
        return held if workload.devices else None
    wanted = replica_range(service.spec, settings.platform)
    going = bool(service.metadata.deletion_timestamp)
    return replace(
        held,
        classes=tuple(candidate.name for candidate in candidates),
        devices_per_replica=service.spec.accelerator.count,
        least=0 if going else wanted.least,
        most=0 if going else wanted.most,
    )


def _nominal(tenant: Tenant) -> dict[str, int]:
    return {gpu.name: gpu.nominal for gpu in tenant.spec.quota.gpus}


def _refuse_quota(ranking: Ranking, grant: Grant, tenant: Tenant) -> Refusal:
    name, others = (
        tenant.metadata.name,
        [candidate.name for candidate in ranking.candidates if candidate.name != grant.gpu_class],
    )
    message = f"needs {grant.least * grant.devices_per_replica} x {grant.gpu_class}, {_use(grant, name)}"
    if others:
        message += f"; no room in {', '.join(others)} either"
    return Refusal(
        "QuotaExceeded",
        message,
        f"Lower replicas here or in another service of {name}, or ask the platform team to raise quota.gpus of Tenant {name}",
    )


def _limit(grant: Grant, tenant: Tenant) -> Refusal:
    name = tenant.metadata.name
    return Refusal(
        "QuotaLimited",
        f"runs {grant.replicas} of {grant.least} replicas on {grant.gpu_class}, {_use(grant, name)} besides",
        f"Lower replicas here or in another service of {name}, or ask the platform team to raise quota.gpus of Tenant {name}",
    )


def _use(grant: Grant, tenant: str) -> str:
    return f"{tenant} uses {grant.used} of {grant.nominal}"


def _explain_choice(chosen: Candidate, ranking: Ranking, without_quota: tuple[str, ...]) -> Decision:
    reasons = [chosen.reason]
    for candidate in ranking.candidates:
        if candidate.name in without_quota:
            reasons.append(f"not {candidate.name}: the tenant's quota has no room")
        elif candidate.nodes == 0 and candidate.name != chosen.name:
            reasons.append(f"not {candidate.name}: {candidate.reason}")
    reasons += [f"not {skipped.name}: {skipped.reason}" for skipped in ranking.skipped]
    return decide("accelerator", chosen.name, "; ".join(reasons))


def _explain_grant(grant: Grant, tenant: Tenant) -> Decision:
    name = tenant.metadata.name
    # Figures of other services stay out: they would rewrite this service's status whenever a neighbour scales.
    return decide(
        "quota", f"{grant.replicas * grant.devices_per_replica} x {grant.gpu_class}", f"reserved of the {grant.nominal} that Tenant {name} may hold"
    )
