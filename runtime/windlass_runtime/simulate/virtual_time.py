"""Run the scheduler alone on a trace, in virtual time: no thread, no sleep, no server. For tests and benchmarks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from windlass_runtime.kv.pages import PagePool
from windlass_runtime.scheduling import sequence as sequences
from windlass_runtime.scheduling.plan import StepPlan
from windlass_runtime.scheduling.scheduler import Limits, Scheduler
from windlass_runtime.simulate.profile import Profile


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace."""

    at_s: float
    tenant: str
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    deadline_s: float = math.inf
    """On the clock of `at_s`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Served:
    """What became of an arrival."""

    arrival: Arrival
    first_token_s: float
    """When, on the clock of `at_s`; infinite when the trace ended first. So are the others."""
    end_s: float
    preemptions: int

    @property
    def time_to_first_token_s(self) -> float:
        return self.first_token_s - self.arrival.at_s


class VirtualReplica:
    """A scheduler with a clock that moves by what the profile says a step takes."""

    def __init__(self, limits: Limits, profile: Profile) -> None:
        self.scheduler = Scheduler(limits, PagePool(profile.kv_pages))
        self.now_s = 0.0
        self.steps = 0
        self._profile = profile
        self._arrivals: dict[str, Arrival] = {}
        self._sequences: dict[str, sequences.Sequence] = {}
        self._first_s: dict[str, float] = {}
        self._end_s: dict[str, float] = {}

    def submit(self, arrival: Arrival) -> str:
        """Put a request in line; returns its sequence's id."""
        name = str(len(self._arrivals))
        sequence = sequences.Sequence(
            name,
            [1] * arrival.prompt_tokens,
            arrival.prompt_tokens + arrival.output_tokens,
            tenant=arrival.tenant,
            priority=arrival.priority,
            deadline_s=arrival.deadline_s,
        )
        self.scheduler.submit(sequence)
        self._arrivals[name], self._sequences[name] = arrival, sequence
        return name

    def step(self) -> StepPlan:
        """Plan and compute one step; the clock stands at its end afterwards."""
        plan = self.scheduler.plan_step()
        decoding = sum(1 for row in plan.rows if row.start and len(row.token_ids) == 1)
        self.now_s += self._profile.step_seconds(plan.token_count - decoding, decoding)
        self.steps += 1
        sampled = {row.sequence_id: 1 for row in plan.rows if row.samples}
        for name in sampled:
            self._first_s.setdefault(name, self.now_s)
        for finished in self.scheduler.apply_tokens(plan, sampled):
            self._end_s[finished.sequence.sequence_id] = self.now_s
        return plan

    def results(self) -> list[Served]:
        """In order of submission."""
        return [
            Served(
                arrival,
                self._first_s.get(name, math.inf),
                self._end_s.get(name, math.inf),
                self._sequences[name].preemptions,
            )
            for name, arrival in self._arrivals.items()
        ]


def run_trace(
    arrivals: Iterable[Arrival], limits: Limits, profile: Profile, *, until_s: float = math.inf
) -> list[Served]:
    """Serve a trace, to its end or until the clock reaches `until_s`; results in order of arrival."""
    replica = VirtualReplica(limits, profile)
    waiting = sorted(arrivals, key=lambda arrival: arrival.at_s)
    position = 0
    while (position < len(waiting) or replica.scheduler.has_work) and replica.now_s < until_s:
        if not replica.scheduler.has_work:
            replica.now_s = max(replica.now_s, waiting[position].at_s)
        while position < len(waiting) and waiting[position].at_s <= replica.now_s:
            replica.submit(waiting[position])
            position += 1
        replica.step()
    return replica.results()


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
