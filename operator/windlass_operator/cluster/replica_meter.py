"""Measure canaries by reading replicas' own counters: what one machine has in the place of a Prometheus.

Remembers where the counters stood at the last check, so a reading is what happened since then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import aiohttp

from windlass_contract.endpoints import METRICS_PATH, Replica
from windlass_operator.cluster.canary_meter import Subject
from windlass_operator.cluster.quality_probe import QualityProbe
from windlass_operator.domain.canary import Reading, RevisionReading
from windlass_operator.domain.canary_plan import canary_key
from windlass_operator.domain.counters import Growth, SeriesKey, fold_growth, parse_counters
from windlass_operator.domain.snapshot import Key

TIMEOUT_S: Final = 5.0
Counters = dict[tuple[str, SeriesKey], float]
"""Value of each series of each replica."""


class ReplicaMeter:
    """A Meter over the replicas that `replicas_of` names."""

    def __init__(self, replicas_of: Callable[[Key], tuple[Replica, ...]], probe: QualityProbe) -> None:
        self._replicas_of = replicas_of
        self._probe = probe
        self._before: dict[tuple[Key, str], Counters] = {}

    async def read(self, subject: Subject) -> Reading:
        """See Meter.read."""
        try:
            async with asyncio.timeout(TIMEOUT_S), aiohttp.ClientSession(trust_env=False) as session:
                stable = await self._read_revision(session, subject, subject.service)
                canary = await self._read_revision(session, subject, canary_key(subject.service, subject.canary))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            return Reading(problem=f"replicas not read: {type(exc).__name__}: {exc}")
        return await self._probe.complete(Reading(canary, stable), subject)

    async def close(self) -> None:
        """See Meter.close."""
        await self._probe.close()

    async def _read_revision(self, session: aiohttp.ClientSession, subject: Subject, key: Key) -> RevisionReading:
        now: Counters = {}
        for replica in self._replicas_of(key):
            async with session.get(replica.url + METRICS_PATH) as answer:
                answer.raise_for_status()
                now.update({(replica.url, name): value for name, value in parse_counters(await answer.text()).items()})
        place = key, subject.canary
        before = self._before.get(place, {})
        self._before[place] = now
        return fold_growth(_growths(before, now))


def _growths(before: Counters, now: Counters) -> Iterable[Growth]:
    for (replica, (name, labels)), value in now.items():
        known = before.get((replica, (name, labels)), 0.0)
        yield Growth(name, dict(labels), value - known if value >= known else value)
