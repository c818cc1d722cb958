"""Leader election by a Lease: one operator writes, the others keep warm caches and wait.

`decide_lease` holds the rule and no clock. It trusts no other machine's clock either: a foreign lease counts as expired
once it has not changed for its whole duration as seen from here. `LeaderElector` is the loop around it; `Leadership` is
what writers ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import enum
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

from windlass_operator import errors
from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.cluster.kubernetes_kinds import LEASE

log = logging.getLogger(__name__)

EXPIRY_MARGIN_S: Final = 0.05
"""How much later than its end a standby looks at a silent leader's lease."""


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What is stored in the cluster."""

    holder: str = ""
    """Identity of the leader; empty after a graceful release."""
    duration_s: int = 15
    renew_time: str = ""
    acquire_time: str = ""
    transitions: int = 0
    resource_version: str = ""


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """The three times of an election; `retry < renew < duration` keeps two leaders from ever writing at once."""

    duration_s: float = 15.0
    """How long others wait for a silent leader."""
    renew_s: float = 10.0
    """A leader that could not renew for this long stops writing; the rest of the duration is the safety margin."""
    retry_s: float = 2.0
    """Time between two looks at the lease."""


class LeaseAction(enum.Enum):
    """What a candidate does now."""

    CREATE = "create"
    ACQUIRE = "acquire"
    RENEW = "renew"
    WAIT = "wait"


def decide_lease(record: LeaseRecord | None, me: str, unchanged_s: float) -> LeaseAction:
    """Decide from the stored record and for how long it has been seen unchanged from here."""
    if record is None:
        return LeaseAction.CREATE
    if record.holder == me:
        return LeaseAction.RENEW
    if not record.holder or unchanged_s > record.duration_s:
        return LeaseAction.ACQUIRE
    return LeaseAction.WAIT


def next_record(record: LeaseRecord | None, me: str, now: str, duration_s: float) -> LeaseRecord:
    """Return the record with which `me` holds the lease."""
    renewing = record is not None and record.holder == me
    return LeaseRecord(
        holder=me,
        duration_s=int(duration_s),
        renew_time=now,
        acquire_time=record.acquire_time if record is not None and renewing else now,
        transitions=0 if record is None else record.transitions + (0 if renewing else 1),
        resource_version="" if record is None else record.resource_version,
    )


class Leadership:
    """Whether this process may write, by the clock: permission ends by itself when nobody extends it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until = float("-inf")
        self._since = float("inf")
        self._changed = asyncio.Condition()
        self._writes: set[asyncio.Timeout] = set()

    @property
    def held(self) -> bool:
        """Whether writing is allowed at this moment."""
        return self._clock() < self._until

    @property
    def held_for_s(self) -> float:
        """For how long writing has been allowed without a gap; 0 while it is not."""
        return self._clock() - self._since if self.held else 0.0

    def require(self) -> None:
        """Raise RetryLater unless writing is allowed."""
        if not self.held:
            raise errors.RetryLater("this operator does not hold the lease", after_s=1.0)

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Surround exactly one write. Raises RetryLater unless writing is allowed, and when it ends before the answer
        came: a request that hangs in the network must not arrive under the next leader.
        """
        self.require()
        limit = asyncio.timeout(self._until - self._clock())
        try:
            async with limit:
                self._writes.add(limit)
                yield
        except TimeoutError as exc:
            raise errors.RetryLater("the lease ended while a write waited for its answer", after_s=1.0) from exc
        finally:
            self._writes.discard(limit)

    async def extend(self, until: float) -> None:
        """Allow writing until a time of the clock."""
        async with self._changed:
            if not self.held:
                self._since = self._clock()
            self._end_at(until)
            self._changed.notify_all()

    async def drop(self) -> None:
        """Forbid writing at once."""
        self._end_at(float("-inf"))
        async with self._changed:
            self._changed.notify_all()

    def _end_at(self, until: float) -> None:
        self._until = until
        end = asyncio.get_running_loop().time() + until - self._clock()
        for write in self._writes:
            if not write.expired():
                write.reschedule(end)

    async def wait(self) -> None:
        """Return once writing is allowed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.held)


class LeaderElector:
    """Keeps one Lease. Run it as one task; cancel it to give the lease back."""

    def __init__(
        self,
        client: KubernetesClient,
        leadership: Leadership,
        *,
        namespace: str,
        name: str,
        identity: str,
        times: LeaseTimes,
        clock: Callable[[], float],
        wall_clock: Callable[[], datetime.datetime],
        on_taken: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._leadership = leadership
        self._on_taken = on_taken
        self._namespace, self._name, self._me = namespace, name, identity
        self._times = times
        self._clock, self._wall_clock = clock, wall_clock
        self._seen: LeaseRecord | None = None
        self._seen_at = clock()
        self._led = False

    async def run(self) -> None:
        """Try for ever; on cancellation release the lease so that the next leader need not wait."""
        try:
            while True:
                await self._attempt()
                await asyncio.sleep(self._pause_s())
        finally:
            await self._release()

    def _pause_s(self) -> float:
        """Until the next look; at a silent leader's lease exactly when it ends, a takeover should not wait longer."""
        if self._seen is None or self._seen.holder in ("", self._me):
            return self._times.retry_s
        left = self._seen.duration_s - (self._clock() - self._seen_at)
        return min(self._times.retry_s, max(left + EXPIRY_MARGIN_S, EXPIRY_MARGIN_S))

    async def _attempt(self) -> None:
        try:
            async with asyncio.timeout(self._times.renew_s):
                await self._step()
        except (errors.WindlassError, TimeoutError) as exc:
            log.warning(
                "Lease could not be renewed. lease=%s/%s error=%s", self._namespace, self._name, str(exc) or "timeout"
            )
        led, self._led = self._led, self._leadership.held
        if led and not self._led:
            log.error("Leadership lost; writing stopped. lease=%s/%s", self._namespace, self._name)

    async def _step(self) -> None:
        started = self._clock()
        record = parse_lease(await self._client.get_at(LEASE.path(self._namespace, self._name)))
        if record != self._seen:
            self._seen, self._seen_at = record, started
        action = decide_lease(record, self._me, started - self._seen_at)
        if action is LeaseAction.WAIT:
            if self._leadership.held:
                await self._leadership.drop()
            return
        await self._hold(record, action, started)

    async def _hold(self, record: LeaseRecord | None, action: LeaseAction, started: float) -> None:
        wanted = next_record(record, self._me, _rfc3339(self._wall_clock()), self._times.duration_s)
        try:
            stored = await self._write(wanted, action)
        except errors.ApplyConflict:
            return  # somebody was faster; the next look tells who
        self._seen, self._seen_at = stored, started
        taken = not self._leadership.held
        # Counted from before the request: the server may have stored it at any time since.
        await self._leadership.extend(started + self._times.renew_s)
        if taken:
            log.info("Leadership taken. lease=%s/%s identity=%s", self._namespace, self._name, self._me)
            self._on_taken()

    async def _write(self, wanted: LeaseRecord, action: LeaseAction) -> LeaseRecord | None:
        manifest = render_lease(wanted, self._namespace, self._name)
        if action is LeaseAction.CREATE:
            return parse_lease(await self._client.create(LEASE, self._namespace, manifest))
        return parse_lease(await self._client.replace(LEASE, manifest))

    async def _release(self) -> None:
        held, record = self._leadership.held, self._seen
        await self._leadership.drop()
        if not held or record is None or record.holder != self._me:
            return
        try:
            async with asyncio.timeout(2.0):
                released = LeaseRecord(
                    "",
                    1,
                    _rfc3339(self._wall_clock()),
                    record.acquire_time,
                    record.transitions,
                    record.resource_version,
                )
                await self._client.replace(LEASE, render_lease(released, self._namespace, self._name))
        except (errors.WindlassError, TimeoutError) as exc:
            log.warning("Lease not released; the next leader waits for its end. error=%s", str(exc) or "timeout")


def parse_lease(manifest: dict[str, Any] | None) -> LeaseRecord | None:
    """Read a Lease object; None when there is none."""
    if manifest is None:
        return None
    spec = manifest.get("spec") or {}
    return LeaseRecord(
        holder=spec.get("holderIdentity") or "",
        duration_s=spec.get("leaseDurationSeconds") or 15,
        renew_time=spec.get("renewTime") or "",
        acquire_time=spec.get("acquireTime") or "",
        transitions=spec.get("leaseTransitions") or 0,
        resource_version=manifest["metadata"].get("resourceVersion", ""),
    )


def render_lease(record: LeaseRecord, namespace: str, name: str) -> dict[str, Any]:
    """Return the Lease object of a record; its resourceVersion guards a replace."""
    metadata = {"name": name, "namespace": namespace}
    if record.resource_version:
        metadata["resourceVersion"] = record.resource_version
    spec = {
        "holderIdentity": record.holder,
        "leaseDurationSeconds": record.duration_s,
        "renewTime": record.renew_time,
        "acquireTime": record.acquire_time,
        "leaseTransitions": record.transitions,
    }
    return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": spec}


def _rfc3339(time: datetime.datetime) -> str:
    return time.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
