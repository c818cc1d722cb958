"""What an operator may see of the scheduler: names and numbers, never a token."""

from __future__ import annotations

import dataclasses
from typing import Final

from windlass_runtime.scheduling.fair_share import FairShare
from windlass_runtime.scheduling.roster import Roster, Tenant
from windlass_runtime.scheduling.sequence import Sequence

MOST_SEQUENCES: Final = 1000
"""Sequences listed at most; the counts are of all of them."""


@dataclasses.dataclass(frozen=True, slots=True)
class SequenceView:
    """One sequence."""

    sequence_id: str
    tenant: str
    state: str
    """running, parked or waiting."""
    priority: int
    prompt_tokens: int
    generated_tokens: int
    computed_tokens: int
    pages: int
    preemptions: int


@dataclasses.dataclass(frozen=True, slots=True)
class TenantView:
    """One tenant's part of the house."""

    tenant: str
    weight: float
    running: int
    waiting: int
    pages: int
    deficit: float
    """Work, in prompt tokens, that this round still grants it; negative: it has had more."""
    served: float
    """Work since its account was opened."""
    expected_output_tokens: float


@dataclasses.dataclass(frozen=True, slots=True)
class SchedulerView:
    """A moment between two steps."""

    quantum: float
    running: int
    waiting: int
    pages: int
    pages_free: int
    pages_parked: int
    """Held by preempted sequences until somebody wants them."""
    tenants: tuple[TenantView, ...]
    sequences: tuple[SequenceView, ...]


def describe(roster: Roster, shares: FairShare) -> SchedulerView:
    """The present state."""
    tenants = sorted(roster.tenants.values(), key=lambda tenant: tenant.name)
    listed = [sequence for tenant in tenants for sequence in (*tenant.running.values(), *tenant.waiting)]
    return SchedulerView(
        quantum=shares.quantum,
        running=len(roster.running),
        waiting=roster.waiting_count,
        pages=roster.pool.page_count,
        pages_free=roster.pool.free_count,
        pages_parked=sum(len(sequence.page_table) for sequence in roster.parked.values()),
        tenants=tuple(_describe_tenant(tenant, shares) for tenant in tenants),
        sequences=tuple(_describe_sequence(sequence, roster) for sequence in listed[:MOST_SEQUENCES]),
    )


def _describe_tenant(tenant: Tenant, shares: FairShare) -> TenantView:
    return TenantView(
        tenant=tenant.name,
        weight=tenant.account.weight,
        running=len(tenant.running),
        waiting=len(tenant.waiting),
        pages=tenant.pages,
        deficit=(shares.line - tenant.account.served) * tenant.account.weight,
        served=tenant.account.total,
        expected_output_tokens=tenant.forecast.tokens,
    )


def _describe_sequence(sequence: Sequence, roster: Roster) -> SequenceView:
    name = sequence.sequence_id
    return SequenceView(
        sequence_id=name,
        tenant=sequence.tenant,
        state="running" if name in roster.running else "parked" if name in roster.parked else "waiting",
        priority=sequence.priority,
        prompt_tokens=sequence.prompt_tokens,
        generated_tokens=len(sequence.tokens) - sequence.prompt_tokens,
        computed_tokens=sequence.computed,
        pages=len(sequence.page_table),
        preemptions=sequence.preemptions,
    )
