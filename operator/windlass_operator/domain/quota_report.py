"""Put a share of the quota into words: refusals, their next steps, and the condition `QuotaAdmitted`.

Other tenants of a cohort appear as "a lender of cohort X" only. Figures of others appear in refusals alone: elsewhere
they would rewrite a status whenever a neighbour scales.
"""

from __future__ import annotations

from dataclasses import dataclass

from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.decision import Decision, Refusal, decide
from windlass_operator.domain.quota import Grant, TakingCause, Wait


@dataclass(frozen=True, slots=True)
class QuotaVerdict:
    """What `QuotaAdmitted` says."""

    admitted: bool
    reason: str
    message: str


def judge_grant(grant: Grant, tenant: Tenant, refusal: Refusal | None) -> QuotaVerdict:
    """Say whether the quota gives a service what it needs. `refusal`: what `refuse_grant` said."""
    if refusal is not None:
        return QuotaVerdict(False, refusal.reason, f"{_count(grant)}; {_terms(grant, tenant)}")
    if grant.borrowed:
        borrowed = f"{grant.borrowed} x {grant.gpu_class} borrowed from cohort {grant.cohort}"
        message = f"{_count(grant)}; {borrowed}, until a lender wants its own back"
        return QuotaVerdict(True, "Borrowing", message)
    message = f"{_count(grant)}; Tenant {tenant.metadata.name}: nominal {grant.nominal}"
    return QuotaVerdict(True, "WithinNominal", message)


def refuse_grant(grant: Grant, tenant: Tenant, others: tuple[str, ...], cause: TakingCause | None) -> Refusal | None:
    """Say why a service has less than it needs; None when it has it.

    `others`: further classes that were tried. `cause`: for whom replicas were taken from it, if any were.
    """
    if not grant.short:
        return None
    if grant.wait is not Wait.ROOM:
        return _await(grant, tenant)
    if cause is not None:
        return _tell_taking(grant, tenant, cause)
    if grant.replicas == 0:
        return _refuse(grant, tenant, others)
    return Refusal("QuotaLimited", f"{_runs(grant)}, {_use(grant, tenant)} besides{_lendable(grant)}", ask(tenant))


def explain_grant(grant: Grant, tenant: Tenant) -> Decision:
    """Say what was reserved."""
    devices = f"{grant.replicas * grant.devices_per_replica} x {grant.gpu_class}"
    name = tenant.metadata.name
    if not grant.cohort:
        return decide("quota", devices, f"reserved of the {grant.nominal} that Tenant {name} may hold")
    limit = "without limit" if grant.borrowing_limit is None else f"up to {grant.borrowing_limit}"
    return decide(
        "quota",
        devices,
        f"reserved; Tenant {name} has {grant.nominal} of its own and may borrow {limit} from cohort {grant.cohort}",
    )


def ask(tenant: Tenant) -> str:
    """What helps when nothing smaller is known."""
    name = tenant.metadata.name
    return (
        f"Lower replicas here or in another service of {name}, "
        f"or ask the platform team to raise spec.quota.gpus of Tenant {name}"
    )


def _refuse(grant: Grant, tenant: Tenant, others: tuple[str, ...]) -> Refusal:
    message = f"needs {_needed(grant)}, {_use(grant, tenant)}{_lendable(grant)}"
    if others:
        message += f"; no room in {', '.join(others)} either"
    return Refusal("QuotaExceeded", message, ask(tenant))


def _await(grant: Grant, tenant: Tenant) -> Refusal:
    """Devices are on their way: from borrowers, from a lower tier, or from pods that finish anyway."""
    head = f"needs {_needed(grant)}" if grant.replicas == 0 else _runs(grant)
    message = f"{head}; devices that Tenant {tenant.metadata.name} is due are held by pods that are being stopped"
    if grant.wait is Wait.RETURN:
        return Refusal("QuotaReturning", message, "Wait until those pods have finished their requests", passing=True)
    return Refusal(
        "QuotaReturning",
        f"{message}, as fast as preemption budgets allow",
        "Wait, or ask the platform team to raise spec.preemption.maxReplicasPerHour of borrowers of cohort "
        f"{grant.cohort}",
        passing=True,
    )


def _tell_taking(grant: Grant, tenant: Tenant, cause: TakingCause) -> Refusal:
    name = tenant.metadata.name
    if cause is TakingCause.TIER:
        return Refusal(
            "QuotaPreempted",
            f"{_runs(grant)}; a service of a higher tier in Tenant {name} needs the rest",
            f"It grows again when that service shrinks; to keep both, ask the platform team to raise spec.quota.gpus "
            f"of Tenant {name}",
        )
    taker = "a lender" if cause is TakingCause.LENDER else "a tenant that borrows less"
    return Refusal(
        "QuotaReclaimed",
        f"{_runs(grant)}; {taker} of cohort {grant.cohort} needs the borrowed rest",
        f"It grows again when cohort {grant.cohort} has idle devices; to have more that nobody takes back, ask the "
        f"platform team to raise spec.quota.gpus of Tenant {name}",
    )


def _needed(grant: Grant) -> str:
    return f"{grant.least * grant.devices_per_replica} x {grant.gpu_class}"


def _count(grant: Grant) -> str:
    return f"needs {_needed(grant)}, has {min(grant.replicas, grant.least) * grant.devices_per_replica}"


def _runs(grant: Grant) -> str:
    return f"runs {grant.replicas} of {grant.least} replicas on {grant.gpu_class}"


def _use(grant: Grant, tenant: Tenant) -> str:
    return f"{tenant.metadata.name} uses {grant.used} of {grant.nominal}"


def _lendable(grant: Grant) -> str:
    if not grant.cohort:
        return ""
    limit = "" if grant.borrowing_limit is None else f", its borrowing limit is {grant.borrowing_limit}"
    return f"{limit}, cohort {grant.cohort} can lend {grant.lendable}"


def _terms(grant: Grant, tenant: Tenant) -> str:
    text = f"Tenant {tenant.metadata.name}: nominal {grant.nominal}, {grant.used} used by its other services"
    if not grant.cohort:
        return text
    borrowed = max(0, grant.used - grant.nominal)
    limit = "no borrowing limit" if grant.borrowing_limit is None else f"borrowing limit {grant.borrowing_limit}"
    return f"{text}, {borrowed} borrowed, {limit}; cohort {grant.cohort} can lend {grant.lendable}"
