"""A work queue of keys: every key waits at most once, none runs twice at a time, and no group crowds out another.

`KeyedQueue` holds the rules and takes the time as an argument, so a table or a property test drives it with virtual
time. `AsyncKeyedQueue` adds waiting on top and nothing else.

The life of a key:   add -> waiting (once, until due) -> take -> busy -> done | retry
A key added while busy is remembered and waits again as soon as it is done. Groups of due keys take turns: a tenant that
creates a thousand services at once delays another tenant's edit by one turn, and not by a thousand.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

WHOLE_TOKEN = 1.0 - 1e-6
"""What counts as one token: refills are sums of small floats, and waiting for the last bit of one would never end."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a failing key waits: `first_s`, doubled per failure in a row up to `longest_s`, spread by `jitter`."""

    first_s: float = 0.5
    longest_s: float = 300.0
    jitter: float = 0.2
    """Largest share added on top, so that keys that failed together do not come back together."""

    def delay_s(self, failures: int, random: float) -> float:
        """Return the wait after `failures` (>= 1) failures in a row; `random` lies in [0, 1)."""
        exponent = min(failures - 1, 60)
        return min(self.first_s * 2.0**exponent, self.longest_s) * (1.0 + self.jitter * random)


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `per_s` starts per second in the long run, `burst` at once."""

    per_s: float = 100.0
    burst: int = 200


class Place(NamedTuple):
    """When a waiting key is due, and its rank among those that are due at the same time."""

    due_s: float
    rank: int


def same_group(key: Hashable) -> Hashable:  # noqa: ARG001  (the signature of a grouping)
    """Put all keys into one group: who is due longest comes first."""
    return None


class KeyedQueue(Generic[K]):
    """The rules, without waiting. Times are seconds of one monotonic clock."""

    def __init__(self, backoff: Backoff, rate: Rate, group_of: Callable[[K], Hashable] = same_group) -> None:
        self._backoff = backoff
        self._rate = rate
        self._group_of = group_of
        self._waiting: dict[K, Place] = {}  # the truth; heap and lines may hold outdated places
        self._heap: list[tuple[Place, K]] = []  # keys that are due later
        self._lines: dict[Hashable, deque[tuple[Place, K]]] = {}  # keys that are due, by group; the next turn first
        self._ranks = itertools.count()
        self._busy: set[K] = set()
        self._touched: dict[K, float] = {}  # busy keys to run again, and when
        self._failures: dict[K, int] = {}
        self._tokens = float(rate.burst)
        self._refilled_at: float | None = None

    def add(self, key: K, now_s: float, delay_s: float = 0.0) -> None:
        """Make `key` due in `delay_s`; an earlier due time that it already has stays."""
        due_s = now_s + delay_s
        if key in self._busy:
            self._touched[key] = min(due_s, self._touched.get(key, due_s))
        elif key not in self._waiting or due_s < self._waiting[key].due_s:
            place = self._waiting[key] = Place(due_s, next(self._ranks))
            heapq.heappush(self._heap, (place, key))

    def take(self, now_s: float) -> K | None:
        """Return the key whose group's turn it is, of those the one that has been due longest, and mark it busy.

        None while nothing is due or the rate is used up.
        """
        self._refill(now_s)
        if not self._line_up(now_s) or self._tokens < WHOLE_TOKEN:
            return None
        group, line = next(iter(self._lines.items()))
        _, key = line.popleft()
        del self._lines[group]
        if line:
            self._lines[group] = line  # behind the others
        del self._waiting[key]
        self._busy.add(key)
        self._tokens = max(0.0, self._tokens - 1.0)
        return key

    def done(self, key: K, now_s: float) -> None:
        """The run of `key` succeeded: its failures are forgotten, and it waits again if it was touched meanwhile."""
        self._failures.pop(key, None)
        self._release(key, now_s)

    def retry(self, key: K, now_s: float, random: float, at_least_s: float = 0.0) -> float:
        """The run of `key` failed: it waits for its backoff, or `at_least_s` where that is longer. Returns the wait.

        A touch during the run does not shorten the wait: what changed is read by the retry anyway.
        """
        self._failures[key] = self._failures.get(key, 0) + 1
        delay = max(self._backoff.delay_s(self._failures[key], random), at_least_s)
        self._touched.pop(key, None)
        self._release(key, now_s)
        self.add(key, now_s, delay)
        return delay

    def forget(self, key: K) -> None:
        """Drop what is remembered of a key whose object is gone. A busy key stays busy until done."""
        self._failures.pop(key, None)
        self._touched.pop(key, None)
        self._waiting.pop(key, None)

    def next_due_s(self, now_s: float) -> float | None:
        """Return when `take` can next succeed, in clock seconds; None when nothing waits."""
        self._refill(now_s)
        due_at = now_s if self._line_up(now_s) else self._heap[0][0].due_s if self._heap else None
        if due_at is None:
            return None
        token_at = now_s if self._tokens >= WHOLE_TOKEN else now_s + (1.0 - self._tokens) / self._rate.per_s
        return max(due_at, token_at)

    def head_age_s(self, now_s: float) -> float:
        """Return how long the longest-due key has been waiting past its due time; 0 when none is due."""
        return max(0.0, now_s - min((place.due_s for place in self._waiting.values()), default=now_s))

    @property
    def depth(self) -> int:
        """Keys that wait, due or delayed; busy keys do not count."""
        return len(self._waiting) + len(self._touched)

    @property
    def busy(self) -> frozenset[K]:
        """Keys that run now."""
        return frozenset(self._busy)

    def check(self) -> None:
        """Assert the invariants; for tests."""
        assert not self._busy & self._waiting.keys(), "a busy key waits in the main line"
        assert self._touched.keys() <= self._busy, "an idle key is marked as touched"
        later = {key for place, key in self._heap if not self._is_outdated(place, key)}
        lined_up = [key for line in self._lines.values() for place, key in line if not self._is_outdated(place, key)]
        assert later | set(lined_up) == self._waiting.keys(), "a waiting key is lost"
        assert len(lined_up) == len(set(lined_up)), "a key stands in line twice"
        assert all(self._lines.values()), "an empty line has a turn"
        assert 0.0 <= self._tokens <= self._rate.burst, "the bucket is out of range"

    def _release(self, key: K, now_s: float) -> None:
        self._busy.discard(key)
        touched = self._touched.pop(key, None)
        if touched is not None:
            self.add(key, now_s, max(0.0, touched - now_s))

    def _refill(self, now_s: float) -> None:
        if self._refilled_at is not None and now_s > self._refilled_at:
            self._tokens = min(float(self._rate.burst), self._tokens + (now_s - self._refilled_at) * self._rate.per_s)
        self._refilled_at = now_s if self._refilled_at is None else max(now_s, self._refilled_at)

    def _line_up(self, now_s: float) -> bool:
        """Move what became due into its group's line, and drop outdated entries; return whether a key is due."""
        while self._heap and (self._heap[0][0].due_s <= now_s or self._is_outdated(*self._heap[0])):
            place, key = heapq.heappop(self._heap)
            if not self._is_outdated(place, key):
                self._lines.setdefault(self._group_of(key), deque()).append((place, key))
        while self._lines:
            group, line = next(iter(self._lines.items()))
            while line and self._is_outdated(*line[0]):
                line.popleft()
            if line:
                return True
            del self._lines[group]
        return False

    def _is_outdated(self, place: Place, key: K) -> bool:
        return self._waiting.get(key) != place


class QueueClosed(Exception):
    """The queue was shut down; the worker ends."""


class AsyncKeyedQueue(Generic[K]):
    """The queue for workers of one event loop: `take` waits until a key is due."""

    def __init__(self, queue: KeyedQueue[K], clock: Callable[[], float], random: Callable[[], float]) -> None:
        self._queue = queue
        self._clock = clock
        self._random = random
        self._changed = asyncio.Event()
        self._closed = False

    def add(self, key: K, delay_s: float = 0.0) -> None:
        """Make `key` due in `delay_s` seconds. After `close` this does nothing."""
        if not self._closed:
            self._queue.add(key, self._clock(), delay_s)
            self._changed.set()

    async def take(self) -> K:
        """Wait for a due key and mark it busy; the caller must call `done` or `retry`. Raises QueueClosed."""
        while not self._closed:
            now = self._clock()
            key = self._queue.take(now)
            if key is not None:
                return key
            due = self._queue.next_due_s(now)
            await self._wait_for_change(None if due is None else max(0.001, due - now))
        raise QueueClosed

    def done(self, key: K) -> None:
        """See KeyedQueue.done."""
        self._queue.done(key, self._clock())
        self._changed.set()

    def retry(self, key: K, at_least_s: float = 0.0) -> float:
        """See KeyedQueue.retry."""
        delay = self._queue.retry(key, self._clock(), self._random(), at_least_s)
        self._changed.set()
        return delay

    def forget(self, key: K) -> None:
        """See KeyedQueue.forget."""
        self._queue.forget(key)

    def close(self) -> None:
        """End all waiting workers; busy keys may still be finished."""
        self._closed = True
        self._changed.set()

    @property
    def depth(self) -> int:
        """Keys that wait."""
        return self._queue.depth

    def head_age_s(self) -> float:
        """Seconds that the longest-due key is overdue."""
        return self._queue.head_age_s(self._clock())

    async def _wait_for_change(self, timeout_s: float | None) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return
