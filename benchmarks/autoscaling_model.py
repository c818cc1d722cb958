"""The HorizontalPodAutoscaler as its documentation describes it, in virtual time, over a service of simulated replicas.

Kubernetes, "Horizontal Pod Autoscaling": desired = ceil(current * value / target), no change within the tolerance,
pods without metrics count as 0 when growing and as on target when shrinking, the largest desired of all metrics wins,
scale-up and scale-down are bounded by policies over their periods and by stabilisation windows.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SYNC_S = 15.0
"""How often the controller looks; its default."""
TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of the autoscaler: what a replica reports, and the value to aim at."""

    read: Callable[[Replica], float]
    target: float


@dataclass
class Replica:
    """One pod: starts, computes `slots` requests at once, and ends once it has finished what it had."""

    number: int
    born_s: float
    slots: int
    ready: bool = False
    leaving: bool = False
    running: int = 0
    waiting: deque[float] = field(default_factory=deque)
    """Arrival times of requests that wait here."""

    @property
    def in_flight(self) -> int:
        """Requests that it computes or that wait."""
        return self.running + len(self.waiting)


@dataclass(frozen=True, slots=True)
class Service:
    """What a replica can do and how long it takes to come."""

    slots: int = 8
    startup_s: float = 120.0
    mean_request_s: float = 8.0
    slo_s: float = 2.0
    """Longest time that a request should wait for its first token."""


@dataclass
class Outcome:
    """What a run cost, and what users felt."""

    replica_s: float = 0.0
    requests: int = 0
    misses: int = 0
    waits_s: list[float] = field(default_factory=list)
    started: int = 0
    timeline: list[tuple[float, int, int]] = field(default_factory=list)
    """Time, replicas, of them ready."""


class Autoscaler:
    """One HorizontalPodAutoscaler."""

    def __init__(self, least: int, most: int, metrics: Sequence[Metric], behavior: Mapping[str, Any]) -> None:
        self._least, self._most, self._metrics = least, most, metrics
        self._up, self._down = behavior["scaleUp"], behavior["scaleDown"]
        self._recommended: deque[tuple[float, int]] = deque()
        self._changes: list[tuple[float, int]] = []

    def desired(self, replicas: Sequence[Replica], now_s: float) -> int:
        """Return the number that the controller would set."""
        current = len(replicas)
        wanted = max(self._by_metric(metric, replicas) for metric in self._metrics)
        wanted = self._stabilise(wanted, current, now_s)
        wanted = min(max(wanted, self._least), self._most)
        if wanted > current:
            wanted = min(wanted, self._limit_up(current, now_s))
        elif wanted < current:
            wanted = max(wanted, self._limit_down(current, now_s))
        if wanted != current:
            self._changes.append((now_s, wanted - current))
        return wanted

    @staticmethod
    def _by_metric(metric: Metric, replicas: Sequence[Replica]) -> int:
        values = [metric.read(replica) for replica in replicas if replica.ready]
        if not values:
            return len(replicas)
        ratio = sum(values) / len(values) / metric.target
        missing = len(replicas) - len(values)
        if missing:
            filled = values + [0.0 if ratio > 1 else metric.target] * missing
            again = sum(filled) / len(filled) / metric.target
            if abs(again - 1) <= TOLERANCE or (ratio > 1) != (again > 1):
                return len(replicas)
            return math.ceil(again * len(filled) - 1e-9)
        return len(replicas) if abs(ratio - 1) <= TOLERANCE else math.ceil(ratio * len(values) - 1e-9)

    def _stabilise(self, wanted: int, current: int, now_s: float) -> int:
        window_s = self._down["stabilizationWindowSeconds"]
        self._recommended.append((now_s, wanted))
        while self._recommended and now_s - self._recommended[0][0] > max(window_s, SYNC_S):
            self._recommended.popleft()
        if wanted < current:
            recent = [number for at_s, number in self._recommended if now_s - at_s <= window_s]
            return min(current, max([wanted, *recent]))
        return wanted

    def _changed(self, period_s: float, now_s: float, sign: int) -> int:
        return sum(abs(by) for at_s, by in self._changes if now_s - at_s < period_s and by * sign > 0)

    def _limit_up(self, current: int, now_s: float) -> int:
        limits = []
        for policy in self._up["policies"]:
            before = current - self._changed(policy["periodSeconds"], now_s, 1)
            by = policy["value"] if policy["type"] == "Pods" else math.ceil(before * policy["value"] / 100)
            limits.append(before + by)
        return max(current, *limits)

    def _limit_down(self, current: int, now_s: float) -> int:
        limits = []
        for policy in self._down["policies"]:
            before = current + self._changed(policy["periodSeconds"], now_s, -1)
            by = policy["value"] if policy["type"] == "Pods" else math.floor(before * policy["value"] / 100)
            limits.append(before - max(by, 1 if before > 1 else 0))
        return min(current, *limits)


class Simulation:
    """One service under one trace of arrivals."""

    def __init__(self, service: Service, scaler: Autoscaler, first: int, *, coldest_first: bool, seed: int) -> None:
        self._service, self._scaler, self._coldest_first = service, scaler, coldest_first
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._replicas = [Replica(next(self._numbers), 0.0, service.slots, ready=True) for _ in range(first)]
        self._leaving: list[Replica] = []
        self._held: deque[float] = deque()
        self.outcome = Outcome()
        self._billed_s = 0.0

    def run(self, arrivals: Iterator[float], until_s: float) -> Outcome:
        """Play the whole trace."""
        self._at(SYNC_S, self._sync)
        self._next_arrival(arrivals)
        while self._events and self._events[0][0] <= until_s:
            now_s, _, act = heapq.heappop(self._events)
            self._bill(now_s)
            act(now_s)
        self._bill(until_s)
        return self.outcome

    def _at(self, at_s: float, act: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), act))

    def _bill(self, now_s: float) -> None:
        self.outcome.replica_s += (len(self._replicas) + len(self._leaving)) * (now_s - self._billed_s)
        self._billed_s = now_s

    def _next_arrival(self, arrivals: Iterator[float]) -> None:
        at_s = next(arrivals, None)
        if at_s is not None:
            self._at(at_s, lambda now_s: self._take(now_s, arrivals))

    def _take(self, now_s: float, arrivals: Iterator[float]) -> None:
        self._arrive(now_s)
        self._next_arrival(arrivals)

    def _arrive(self, now_s: float) -> None:
        self.outcome.requests += 1
        ready = [replica for replica in self._replicas if replica.ready]
        if not ready:
            self._held.append(now_s)
            return
        self._assign(min(ready, key=lambda replica: (replica.in_flight, replica.number)), now_s, now_s)

    def _assign(self, replica: Replica, arrived_s: float, now_s: float) -> None:
        if replica.running < replica.slots:
            self._begin(replica, arrived_s, now_s)
        else:
            replica.waiting.append(arrived_s)

    def _begin(self, replica: Replica, arrived_s: float, now_s: float) -> None:
        replica.running += 1
        wait_s = now_s - arrived_s
        self.outcome.waits_s.append(wait_s)
        self.outcome.misses += wait_s > self._service.slo_s
        duration_s = self._random.expovariate(1 / self._service.mean_request_s)
        self._at(now_s + duration_s, lambda later_s: self._end(replica, later_s))

    def _end(self, replica: Replica, now_s: float) -> None:
        replica.running -= 1
        if replica.waiting:
            self._begin(replica, replica.waiting.popleft(), now_s)
        elif replica.leaving and replica.running == 0:
            self._leaving.remove(replica)

    def _sync(self, now_s: float) -> None:
        wanted = self._scaler.desired(self._replicas, now_s)
        while len(self._replicas) < wanted:
            self._start(now_s)
        while len(self._replicas) > wanted:
            self._stop()
        ready = sum(replica.ready for replica in self._replicas)
        self.outcome.timeline.append((now_s, len(self._replicas), ready))
        self._at(now_s + SYNC_S, self._sync)

    def _start(self, now_s: float) -> None:
        replica = Replica(next(self._numbers), now_s, self._service.slots)
        self._replicas.append(replica)
        self.outcome.started += 1
        self._at(now_s + self._service.startup_s, lambda later_s: self._become_ready(replica, later_s))

    def _become_ready(self, replica: Replica, now_s: float) -> None:
        if replica not in self._replicas:
            return
        replica.ready = True
        while self._held:
            self._assign(replica, self._held.popleft(), now_s)

    def _stop(self) -> None:
        """Pods that are not ready go first, as Kubernetes does; of the others the coldest, or any."""
        starting = [replica for replica in self._replicas if not replica.ready]
        if starting:
            victim = starting[-1]
        elif self._coldest_first:
            victim = min(self._replicas, key=lambda replica: (replica.in_flight, replica.number))
        else:
            victim = self._random.choice(self._replicas)
        self._replicas.remove(victim)
        victim.leaving = True
        if victim.in_flight:
            self._leaving.append(victim)
