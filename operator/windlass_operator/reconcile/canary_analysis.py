"""Measure canaries whose check is due, beside the reconcile loop: a prompt may take a minute, and no worker waits.

Holds nothing that matters: a measurement that a restart loses is made again, because what was judged is in the status.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from windlass_operator.api.v1alpha1.inference_service import Canary, InferenceService
from windlass_operator.cluster.canary_meter import Meter, Subject
from windlass_operator.domain.canary import Reading, check_is_due, find_status, interval_s, next_check_s, spec_hash
from windlass_operator.domain.canary_plan import advance_canaries
from windlass_operator.domain.snapshot import Key, Snapshot

log = logging.getLogger(__name__)

LONGEST_S: Final = 120.0
"""A meter bounds its own time; this bounds a meter with a bug."""
LOOK_AGAIN_S: Final = 1.0
"""At the earliest: times in a status are whole seconds."""


@dataclass(frozen=True, slots=True)
class _Job:
    service: Key
    canary: str
    spec_hash: str


class CanaryAnalyst:
    """One per process, used from its event loop only."""

    def __init__(self, meter: Meter, on_measured: Callable[[Key], None]) -> None:
        self._meter = meter
        self._on_measured = on_measured
        self._tasks: dict[_Job, asyncio.Task[Reading]] = {}

    def advance(
        self, key: Key, service: InferenceService, snapshot: Snapshot, now: datetime.datetime
    ) -> InferenceService:
        """Return the service with its canaries judged by what was measured, and start the measurements that are due."""
        stamp = _stamp(now)
        self._drop_outdated(key, service)
        readings = {
            canary.name: reading
            for canary in service.spec.canaries
            if (reading := self._take(_job(key, canary))) is not None
        }
        advanced = advance_canaries(service, snapshot.workloads, readings, stamp)
        for canary in advanced.spec.canaries:
            self._start_if_due(key, canary, advanced, stamp)
        return advanced

    def again_in_s(self, service: InferenceService, now: datetime.datetime) -> float | None:
        """Seconds until some canary of the service is due; None while none is awaited, or it is being measured."""
        stamp = _stamp(now)
        due = [
            next_check_s(canary, status, stamp)
            for canary in service.spec.canaries
            if (status := find_status(service.status.canaries, canary.name)) is not None
        ]
        return min((max(LOOK_AGAIN_S, wait_s) for wait_s in due if wait_s), default=None)

    def forget(self, key: Key) -> None:
        """Drop the measurements of a service."""
        for job in [job for job in self._tasks if job.service == key]:
            self._tasks.pop(job).cancel()

    async def close(self) -> None:
        """End what runs."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._meter.close()

    def _take(self, job: _Job) -> Reading | None:
        task = self._tasks.get(job)
        if task is None or not task.done():
            return None
        del self._tasks[job]
        return task.result()

    def _drop_outdated(self, key: Key, service: InferenceService) -> None:
        wanted = {_job(key, canary) for canary in service.spec.canaries}
        for job in [job for job in self._tasks if job.service == key and job not in wanted]:
            self._tasks.pop(job).cancel()

    def _start_if_due(self, key: Key, canary: Canary, service: InferenceService, now: str) -> None:
        status, job = find_status(service.status.canaries, canary.name), _job(key, canary)
        if canary.analysis is None or status is None or not status.ready_replicas or job in self._tasks:
            return
        if check_is_due(canary, status, now):
            subject = Subject(
                key,
                canary.name,
                interval_s(canary.analysis),
                service.spec.model.served_name or service.metadata.name,
                tuple(canary.analysis.prompts),
            )
            self._tasks[job] = asyncio.create_task(self._measure(subject), name=f"measure {key} {canary.name}")

    async def _measure(self, subject: Subject) -> Reading:
        try:
            async with asyncio.timeout(LONGEST_S):
                return await self._meter.read(subject)
        except TimeoutError:
            return Reading(problem=f"no measurement within {LONGEST_S:g} s")
        except Exception as exc:
            # A bug in a meter must not lose the check: no data is what it amounts to.
            log.exception("Canary not measured. service=%s canary=%s", subject.service, subject.canary)
            return Reading(problem=f"{type(exc).__name__}: {exc}"[:300])
        finally:
            # Once this task is done: whoever takes the key finds the result.
            asyncio.get_running_loop().call_soon(self._on_measured, subject.service)


def _job(key: Key, canary: Canary) -> _Job:
    return _Job(key, canary.name, spec_hash(canary))


def _stamp(now: datetime.datetime) -> str:
    return now.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
