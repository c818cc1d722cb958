"""Decide whether a service may run: a chain of pure checks, then its share of the tenant's GPUs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.decision import Decision, Refusal, decide
from windlass_operator.domain.fleet import Platform
from windlass_operator.domain.fleet_view import FleetView
from windlass_operator.domain.gpu_class import Candidate, Ranking, describe, rank_classes, refuse_ranking
from windlass_operator.domain.model_source import check_volume, parse_source
from windlass_operator.domain.priority import check_tier
from windlass_operator.domain.quantity import parse_bytes
from windlass_operator.domain.quota import Grant, Request, share_quota
from windlass_operator.domain.scaling import ReplicaRange, check_scaling, replica_range
from windlass_operator.domain.snapshot import Key
from windlass_operator.domain.tenancy import check_tenancy

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
    if _SERVICE_NAME.fullmatch(name):
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
    """Decide for one service, with all others of its tenant in view."""
    wanted = replica_range(service.spec, view.settings.platform)
    refusal = check_service(service, view)
    if refusal is not None:
        return Admission(refusal, 0)
    if service.spec.accelerator is None:
        return _admit_on_cpu(wanted, "spec.accelerator is not set")
    ranking = _rank(service, view)
    if not ranking.candidates:
        return Admission(refuse_ranking(ranking), 0)
    if view.settings.platform is Platform.LOCAL and not any(candidate.nodes for candidate in ranking.candidates):
        reason = "this machine carries no GPU of the listed classes, so replicas compute on its CPU"
        return _admit_on_cpu(wanted, reason)
    tenant = view.tenant_of(key_of(service).namespace)
    if tenant is None:
        best = ranking.candidates[0]
        return Admission(None, wanted.most, best, decisions=(_explain_choice(best, ranking, service, view),))
    return _admit_within_quota(ranking, _grants(tenant, view)[key_of(service)], service, view)


def _admit_on_cpu(wanted: ReplicaRange, reason: str) -> Admission:
    return Admission(None, wanted.most, decisions=(decide("accelerator", "CPU", reason),))


def _rank(service: InferenceService, view: FleetView) -> Ranking:
    return rank_classes(service.spec, view.snapshot.gpu_classes, view.supply, view.workload_of(key_of(service)))


def _admit_within_quota(ranking: Ranking, grant: Grant, service: InferenceService, view: FleetView) -> Admission:
    tenant = view.tenant_of(key_of(service).namespace)
    assert tenant is not None
    if grant.replicas == 0 and grant.least > 0:
        return Admission(_refuse_quota(ranking, grant, tenant), 0)
    chosen = next(candidate for candidate in ranking.candidates if candidate.name == grant.gpu_class)
    return Admission(
        refusal=_limit(grant, tenant) if grant.short else None,
        replicas=grant.replicas,
        candidate=chosen,
        grant=grant,
        limited=grant.short,
        decisions=(_explain_choice(chosen, ranking, service, view), _explain_grant(grant, tenant)),
    )


def _grants(tenant: Tenant, view: FleetView) -> Mapping[Key, Grant]:
    name = tenant.metadata.name
    if name not in view.grants:
        nominal = {gpu.name: gpu.nominal for gpu in tenant.spec.quota.gpus}
        view.grants[name] = share_quota(_requests(tenant, view), nominal)
    return view.grants[name]


def _requests(tenant: Tenant, view: FleetView) -> list[Request]:
    """One request per GPU service of the tenant that passes its own checks, and one for what others still hold."""
    requests = (_request(key, service, view) for key, service in view.services_of(tenant).items())
    return [request for request in requests if request is not None]


def _request(key: Key, service: InferenceService, view: FleetView) -> Request | None:
    workload, accelerator = view.workload_of(key), service.spec.accelerator
    if accelerator is None and not workload.devices:
        return None
    held = Request(
        key=key,
        created=service.metadata.creation_timestamp,
        classes=(workload.gpu_class,),
        least=0,
        most=0,
        held_class=workload.gpu_class,
        held_devices=workload.devices,
    )
    usable = accelerator is not None and check_service(service, view) is None
    candidates = _rank(service, view).candidates if usable else ()
    if accelerator is None or not candidates:
        return held if workload.devices else None
    wanted = replica_range(service.spec, view.settings.platform)
    leaving = bool(service.metadata.deletion_timestamp)
    return replace(
        held,
        classes=tuple(candidate.name for candidate in candidates),
        devices_per_replica=accelerator.count,
        least=0 if leaving else wanted.least,
        most=0 if leaving else wanted.most,
    )


def _refuse_quota(ranking: Ranking, grant: Grant, tenant: Tenant) -> Refusal:
    name = tenant.metadata.name
    others = [candidate.name for candidate in ranking.candidates if candidate.name != grant.gpu_class]
    message = f"needs {grant.least * grant.devices_per_replica} x {grant.gpu_class}, {_use(grant, name)}"
    if others:
        message += f"; no room in {', '.join(others)} either"
    return Refusal("QuotaExceeded", message, _ask_for_quota(name))


def _limit(grant: Grant, tenant: Tenant) -> Refusal:
    name = tenant.metadata.name
    message = f"runs {grant.replicas} of {grant.least} replicas on {grant.gpu_class}, {_use(grant, name)} besides"
    return Refusal("QuotaLimited", message, _ask_for_quota(name))


def _ask_for_quota(tenant: str) -> str:
    return (
        f"Lower replicas here or in another service of {tenant}, "
        f"or ask the platform team to raise spec.quota.gpus of Tenant {tenant}"
    )


def _use(grant: Grant, tenant: str) -> str:
    return f"{tenant} uses {grant.used} of {grant.nominal}"


def _explain_choice(chosen: Candidate, ranking: Ranking, service: InferenceService, view: FleetView) -> Decision:
    workload = view.workload_of(key_of(service))
    reasons = [describe(chosen, view.supply, workload)]
    passed_over = ranking.candidates.index(chosen)
    for position, candidate in enumerate(ranking.candidates):
        if position < passed_over:
            reasons.append(f"not {candidate.name}: the tenant's quota has no room")
        elif position > passed_over and candidate.nodes == 0:
            reasons.append(f"not {candidate.name}: {describe(candidate, view.supply, workload)}")
    reasons += [f"not {skipped.name}: {skipped.reason}" for skipped in ranking.skipped]
    return decide("accelerator", chosen.name, "; ".join(reasons))


def _explain_grant(grant: Grant, tenant: Tenant) -> Decision:
    # Figures of other services stay out: they would rewrite this service's status whenever a neighbour scales.
    devices = f"{grant.replicas * grant.devices_per_replica} x {grant.gpu_class}"
    return decide("quota", devices, f"reserved of the {grant.nominal} that Tenant {tenant.metadata.name} may hold")
