"""Every sequence in the house, by tenant and state, with the pages it holds.

waiting   in its tenant's line, without pages
parked    in its tenant's line too, but with the full pages it had when it was preempted; others may take them
running   in no line, computing; its pages are its own

Mutable state and its invariants only; who runs, parks or gives pages is decided by `scheduler` and `room`.
"""

from __future__ import annotations

import dataclasses

from windlass_runtime.kv.pages import PagePool
from windlass_runtime.scheduling.fair_share import CACHED_TOKEN, Account, FairShare
from windlass_runtime.scheduling.forecast import OutputForecast
from windlass_runtime.scheduling.prefixes import Prefixes
from windlass_runtime.scheduling.sequence import Sequence
from windlass_runtime.scheduling.waiting_line import WaitingLine


@dataclasses.dataclass(slots=True, eq=False)
class Tenant:
    """One tenant's part of the house; exists while it has sequences."""

    name: str
    account: Account
    forecast: OutputForecast
    waiting: WaitingLine = dataclasses.field(default_factory=WaitingLine)
    """Parked sequences included."""
    running: dict[str, Sequence] = dataclasses.field(default_factory=dict)
    pages: int = 0
    """Held by running and parked sequences."""

    def last_running(self) -> Sequence:
        """The running sequence that would be the last to run."""
        return max(self.running.values(), key=lambda sequence: sequence.rank)


class Roster:
    """The house. Not thread-safe."""

    def __init__(
        self,
        pool: PagePool,
        page_tokens: int,
        shares: FairShare,
        *,
        places: int,
        prefixes: Prefixes,
        assumed_output_tokens: float,
    ) -> None:
        """places is the most sequences that may run; see `forecast` for assumed_output_tokens."""
        self.pool = pool
        self.prefixes = prefixes
        self._places = places
        self._lanes = list(range(places - 1, -1, -1))
        self.page_tokens = page_tokens
        self.shares = shares
        self.tenants: dict[str, Tenant] = {}
        self.running: dict[str, Sequence] = {}
        self.parked: dict[str, Sequence] = {}
        self._sequences: dict[str, Sequence] = {}
        self._forecasts: dict[str, OutputForecast] = {}
        self._assumed_output_tokens = assumed_output_tokens
        self._arrivals = 0

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self._sequences

    @property
    def waiting_count(self) -> int:
        """Parked sequences included."""
        return len(self._sequences) - len(self.running)

    def tenant_of(self, sequence: Sequence) -> Tenant:
        return self.tenants[sequence.tenant]

    def enter(self, sequence: Sequence) -> None:
        """Put a new sequence in its tenant's line."""
        tenant = self.tenants.get(sequence.tenant)
        if tenant is None or not len(tenant.waiting):
            present = [other.account for other in self.tenants.values()]
            if tenant is None:
                tenant = Tenant(sequence.tenant, self.shares.enter(sequence.tenant), self._forecast(sequence.tenant))
                self.tenants[sequence.tenant] = tenant
            self.shares.lift(tenant.account, present)
        sequence.arrive(self._arrivals)
        self._arrivals += 1
        self._sequences[sequence.sequence_id] = sequence
        tenant.waiting.add(sequence)

    def start(self, sequence: Sequence) -> None:
        """Out of the line; what it kept of its pages is its own again, or else it gets those that are found."""
        tenant = self.tenants[sequence.tenant]
        tenant.waiting.remove(sequence.sequence_id)
        self.parked.pop(sequence.sequence_id, None)
        sequence.lane = self._lanes.pop()
        tenant.pages += self.prefixes.begin(sequence)
        self._charge_found(tenant, sequence)
        self.running[sequence.sequence_id] = tenant.running[sequence.sequence_id] = sequence

    def park(self, sequence: Sequence) -> None:
        """Back into the line with its full pages; a page that is not full is given back and recomputed."""
        tenant = self.tenants[sequence.tenant]
        self._stop(sequence, tenant)
        sequence.preemptions += 1
        self._truncate(sequence, sequence.computed // self.page_tokens)
        if sequence.page_table:
            self.parked[sequence.sequence_id] = sequence
        tenant.waiting.add(sequence)

    def take_pages(self, sequence: Sequence, count: int) -> None:
        """Give `count` free pages to a running sequence."""
        sequence.page_table += self.pool.allocate(count, sequence.tenant)
        self.tenants[sequence.tenant].pages += count

    def strip(self, sequence: Sequence, count: int) -> None:
        """Free the last `count` pages of a parked sequence."""
        self._truncate(sequence, len(sequence.page_table) - count)
        if not sequence.page_table:
            del self.parked[sequence.sequence_id]

    def remove(self, sequence_id: str) -> Sequence | None:
        """Forget a sequence in whatever state and free its pages; None when it is not here."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return None
        tenant = self.tenants[sequence.tenant]
        if sequence_id in self.running:
            self._stop(sequence, tenant)
        self.parked.pop(sequence_id, None)
        tenant.waiting.remove(sequence_id)
        self._truncate(sequence, 0)
        self.prefixes.forget(sequence)
        if not tenant.running and not len(tenant.waiting):
            del self.tenants[tenant.name]
            self.shares.leave(tenant.name, tenant.account)
        return sequence

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)

    def check(self) -> None:
        """Assert the invariants; for tests."""
        self.pool.check()
        for tenant in self.tenants.values():
            assert tenant.running or len(tenant.waiting), f"tenant {tenant.name} has nothing here"
            held = [*tenant.running.values(), *tenant.waiting]
            assert sum(len(sequence.page_table) for sequence in held) == tenant.pages, "a tenant's pages are miscounted"
            assert not any(name in tenant.waiting for name in tenant.running), "a sequence runs and waits"
            for sequence in tenant.waiting:
                assert bool(sequence.page_table) == (sequence.sequence_id in self.parked), "pages without being parked"
                assert sequence.computed == len(sequence.page_table) * self.page_tokens, "parked with a part of a page"
        assert sum(len(tenant.running) + len(tenant.waiting) for tenant in self.tenants.values()) == len(
            self._sequences
        )
        pages = [page for sequence in self._sequences.values() for page in sequence.page_table]
        assert len(set(pages)) + self.pool.free_count == self.pool.page_count, "a page leaked"
        lanes = [sequence.lane for sequence in self.running.values()]
        assert sorted(lanes + self._lanes) == list(range(self._places)), "a lane is shared or lost"
        for sequence in self.running.values():
            for page in sequence.page_table[sequence.computed // self.page_tokens :]:
                assert pages.count(page) == 1, "two sequences hold one unfinished page"
            assert 0 <= sequence.computed < len(sequence.tokens), "a running sequence has nothing to compute"
            assert len(sequence.page_table) >= self.pages_for(sequence.computed), "computed tokens without a page"

    def _stop(self, sequence: Sequence, tenant: Tenant) -> None:
        del self.running[sequence.sequence_id], tenant.running[sequence.sequence_id]
        self._lanes.append(sequence.lane)
        sequence.lane = -1

    def _charge_found(self, tenant: Tenant, sequence: Sequence) -> None:
        """What is found takes memory but no computing; what was paid for already costs nothing."""
        found = sequence.cached_tokens - sequence.charged
        if found > 0:
            sequence.charged = sequence.cached_tokens
            tenant.account.charge(found * CACHED_TOKEN)

    def _truncate(self, sequence: Sequence, pages: int) -> None:
        freed = sequence.page_table[pages:]
        self.pool.release(freed)
        self.tenants[sequence.tenant].pages -= len(freed)
        sequence.page_table = sequence.page_table[:pages]
        sequence.computed = min(sequence.computed, pages * self.page_tokens)

    def _forecast(self, tenant: str) -> OutputForecast:
        if tenant not in self._forecasts:
            if len(self._forecasts) >= _MOST_FORECASTS:
                del self._forecasts[next(iter(self._forecasts))]
            self._forecasts[tenant] = OutputForecast(self._assumed_output_tokens)
        return self._forecasts[tenant]


_MOST_FORECASTS = 1024
"""Tenants whose habits are remembered while they are away; the oldest is forgotten first."""
