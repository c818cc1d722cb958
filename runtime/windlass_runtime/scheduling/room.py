"""Who gives up pages or a place when somebody else is to have them.

A preempted sequence keeps its full pages until they are really wanted, so giving up a place costs next to nothing, and
giving up pages costs the recomputation of those alone. Between tenants, the one that holds most by its weight gives;
within a tenant, the sequence that would be the last to run. A tenant never takes from one that holds less than it would
hold itself afterwards, and a running sequence gives its pages to a newcomer of another tenant once in its life, so
nobody is pushed to and fro.
"""

from __future__ import annotations

import math

from windlass_runtime.scheduling.roster import Roster, Tenant
from windlass_runtime.scheduling.sequence import Sequence


class Room:
    """Decides over a roster's pages and places, and carries it out there."""

    def __init__(self, roster: Roster, max_running: int) -> None:
        self._roster = roster
        self.max_running = max_running
        self._promised: int | None = None
        """Pages that running sequences will probably still ask for; kept from a plan's first admission to its end."""

    def begin_plan(self) -> None:
        """Forget what was foreseen for the last step."""
        self._promised = None

    def grow(self, sequence: Sequence, tokens: int) -> tuple[bool, list[Sequence]]:
        """Give a running sequence the pages for its first `tokens` tokens.

        Returns whether it got them, and who was parked for it; when it is the one to give way itself, it is among them.
        """
        roster, preempted = self._roster, []
        lacking = roster.pages_for(tokens) - len(sequence.page_table)
        while lacking > roster.pool.free_count:
            if roster.parked:
                self._strip_last(lacking - roster.pool.free_count)
                continue
            holder = max((tenant for tenant in roster.tenants.values() if tenant.running), key=_pages_by_weight)
            victim = holder.last_running()
            self._park(victim)
            preempted.append(victim)
            if victim is sequence:
                return False, preempted
        if lacking > 0:
            before = 0 if self._promised is None else self._growth(sequence)
            roster.take_pages(sequence, lacking)
            if self._promised is not None:
                self._promised += self._growth(sequence) - before
        return True, preempted

    def admit(self, candidate: Sequence) -> list[Sequence] | None:
        """Start the first of a line if a place and the pages it will probably need can be had; None when they cannot.

        Returns who was parked for it.
        """
        roster = self._roster
        tenant = roster.tenant_of(candidate)
        aside: list[Sequence] = []
        if len(roster.running) >= self.max_running:
            victim = self._who_steps_aside(tenant, candidate)
            if victim is None:
                return None
            aside.append(victim)
        wanted = self._pages_wanted(candidate, aside)
        free = roster.pool.free_count
        if wanted > free and wanted > free + self._obtainable(tenant, candidate, wanted):
            if len(roster.running) > len(aside):
                return None
            wanted = 0  # alone, it may have every page there is when it comes to need it
        for victim in aside:
            self._park(victim)
        parked = [*aside, *self._collect(tenant, candidate, wanted)]
        roster.start(candidate)
        assert self._promised is not None
        self._promised += self._growth(candidate)
        return parked

    def _park(self, victim: Sequence) -> None:
        if self._promised is not None:
            self._promised -= self._growth(victim)
        self._roster.park(victim)

    def _who_steps_aside(self, tenant: Tenant, candidate: Sequence) -> Sequence | None:
        """Whose place the candidate may have: a less urgent one of its own tenant, or one of who has most places."""
        if tenant.running:
            own = tenant.last_running()
            if own.priority > candidate.priority:
                return own
        others = [other for other in self._roster.tenants.values() if other is not tenant and other.running]
        if not others:
            return None
        most = max(others, key=lambda other: len(other.running) / other.account.weight)
        left = (len(most.running) - 1) / most.account.weight
        return most.last_running() if left >= (len(tenant.running) + 1) / tenant.account.weight else None

    def _pages_wanted(self, candidate: Sequence, aside: list[Sequence]) -> int:
        """Free pages that there must be so that neither the candidate nor who runs is likely to be preempted soon."""
        if self._promised is None:
            self._promised = sum(map(self._growth, self._roster.running.values()))
        return self._promised - sum(map(self._growth, aside)) + self._growth(candidate)

    def _growth(self, sequence: Sequence) -> int:
        """Pages that a sequence will probably still ask for."""
        roster = self._roster
        likely = sequence.prompt_tokens + math.ceil(roster.tenants[sequence.tenant].forecast.tokens)
        least = len(sequence.tokens) + roster.page_tokens  # room to cross the next border, whatever the forecast says
        tokens = max(len(sequence.tokens) + 1, min(sequence.max_tokens, max(likely, least)))
        return max(0, roster.pages_for(tokens) - len(sequence.page_table))

    def _obtainable(self, tenant: Tenant, candidate: Sequence, wanted: int) -> int:
        """Pages that `_collect` would find."""
        total = sum(len(other.page_table) for other in self._own_behind(tenant, candidate))
        total += sum(len(other.page_table) for other in _less_urgent(tenant, candidate))
        for other in self._roster.tenants.values():
            if other is not tenant:
                offered = sum(len(giver.page_table) for giver in _givers(other))
                total += max(0, min(offered, self._above_level(other, tenant, wanted)))
        return total

    def _collect(self, tenant: Tenant, candidate: Sequence, wanted: int) -> list[Sequence]:
        """Free pages until `wanted` are free, as far as fairness lets; returns who was parked for it."""
        roster, preempted = self._roster, []
        while (lacking := wanted - roster.pool.free_count) > 0:
            if givers := self._own_behind(tenant, candidate) or _less_urgent(tenant, candidate):
                spare = lacking
            else:
                others = [other for other in roster.tenants.values() if other is not tenant and _givers(other)]
                most = max(others, key=_pages_by_weight, default=None)
                if most is None or (spare := self._above_level(most, tenant, wanted)) <= 0:
                    break
                givers = _givers(most)
            giver = max(givers, key=lambda other: other.rank)
            if giver.sequence_id in roster.running:
                giver.gave_way = True
                self._park(giver)
                preempted.append(giver)
            else:
                roster.strip(giver, min(lacking, spare, len(giver.page_table)))
        return preempted

    @staticmethod
    def _own_behind(tenant: Tenant, candidate: Sequence) -> list[Sequence]:
        """Parked sequences of the same tenant; the candidate is the first of their line."""
        return [other for other in tenant.waiting if other.page_table and other is not candidate]

    def _above_level(self, other: Tenant, tenant: Tenant, wanted: int) -> int:
        """How many pages `other` holds beyond what `tenant` would hold by its weight with `wanted` more."""
        level = (tenant.pages + wanted) / tenant.account.weight * other.account.weight
        return math.ceil(other.pages - level)

    def _strip_last(self, count: int) -> None:
        """Free up to `count` pages of a parked sequence: of who holds most, the last to run."""
        roster = self._roster
        last = max(
            roster.parked.values(), key=lambda sequence: (_pages_by_weight(roster.tenant_of(sequence)), sequence.rank)
        )
        roster.strip(last, min(count, len(last.page_table)))


def _less_urgent(tenant: Tenant, candidate: Sequence) -> list[Sequence]:
    return [other for other in tenant.running.values() if other.priority > candidate.priority]


def _givers(tenant: Tenant) -> list[Sequence]:
    """Sequences whose pages another tenant's newcomer may have: parked ones, else running ones that never gave way."""
    return [other for other in tenant.waiting if other.page_table] or [
        other for other in tenant.running.values() if not other.gave_way
    ]


def _pages_by_weight(tenant: Tenant) -> float:
    return tenant.pages / tenant.account.weight
