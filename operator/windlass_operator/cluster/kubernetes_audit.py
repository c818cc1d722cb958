"""Check the watches against lists: are the caches filled, did a watch die, was a deletion missed?

A watch can stop without an error, and a relist after a lost connection tells nothing of what was deleted meanwhile. So
every kind is listed now and then (metadata only, from the server's cache) and compared with what the watch brought.
What it missed is read and repaired; a watch that misses things twice in a row is dead, and the liveness probe says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from windlass_operator import errors
from windlass_operator.cluster.kubernetes import KubernetesCluster
from windlass_operator.cluster.kubernetes_cache import ObjectCache, is_older
from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.cluster.kubernetes_kinds import WATCHED, ApiKind, Ref, selector_of
from windlass_operator.domain.snapshot import Key

log = logging.getLogger(__name__)

LISTS_AT_ONCE: Final = 4
"""Kinds that are listed at the same time: an audit of everything must not look like a storm to the server."""


@dataclass(frozen=True, slots=True)
class AuditTimes:
    """How often and how patiently the watches are checked."""

    interval_s: float = 140.0
    """Between two audits: twice the time after which kopf reconnects a silent watch."""
    grace_s: float = 15.0
    """How long a listed object may take to arrive by the watch."""
    poll_s: float = 0.25
    """Between two looks at the cache within the grace."""


@dataclass(frozen=True, slots=True)
class Missed:
    """What a list shows and the watch did not."""

    stale: tuple[Ref, ...] = ()
    """Absent from the cache, or there in an older version."""
    gone: tuple[Ref, ...] = ()
    """In the cache but not in the list."""

    def __bool__(self) -> bool:
        return bool(self.stale or self.gone)


def find_missed(
    kind: str, listed: Sequence[Mapping[str, Any]], known_before: Mapping[Ref, str], cache: ObjectCache
) -> Missed:
    """Compare a list with the cache. `known_before`: what the cache held before the list was asked for, as uids."""
    stale, seen = [], set()
    for metadata in listed:
        ref = _ref(kind, metadata)
        seen.add(ref)
        cached = cache.get(ref)
        if cached is None:
            if not cache.was_deleted(metadata.get("uid", "")):
                stale.append(ref)
        elif cached.uid == metadata.get("uid", "") and is_older(
            cached.watched_version or "0", metadata["resourceVersion"]
        ):
            stale.append(ref)
    gone = []
    for ref, uid in known_before.items():
        cached = cache.get(ref)
        if ref not in seen and cached is not None and cached.uid == uid:
            gone.append(ref)
    return Missed(tuple(stale), tuple(gone))


class WatchAudit:
    """Audits every watched kind in every watched namespace. Run `run` as one task."""

    def __init__(
        self,
        client: KubernetesClient,
        cluster: KubernetesCluster,
        *,
        namespaces: Sequence[str],
        times: AuditTimes,
        on_change: Callable[[Key], None],
        clock: Callable[[], float],
        on_filled: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._scopes = [
            (kind, namespace) for kind in WATCHED for namespace in (namespaces if kind.namespaced else ()) or ("",)
        ]
        self._times = times
        self._on_change = on_change
        self._on_filled = on_filled
        self._clock = clock
        self._begun = asyncio.Event()
        self._relisted = asyncio.Event()
        self._listing = asyncio.Semaphore(LISTS_AT_ONCE)
        self._filled: set[str] = set()
        self._misses: dict[str, int] = {}
        self.filled = asyncio.Event()
        self._filled_at = 0.0

    @property
    def filled_for_s(self) -> float:
        """For how long the caches have been complete; 0 while they are not."""
        return self._clock() - self._filled_at if self.filled.is_set() else 0.0

    @property
    def dead_watches(self) -> tuple[str, ...]:
        """Watches that missed changes in two audits in a row."""
        return tuple(sorted(scope for scope, misses in self._misses.items() if misses >= 2))

    async def run(self) -> None:
        """Fill whenever the watches begin, audit for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_filled())
            group.create_task(self._keep_auditing())

    async def _keep_filled(self) -> None:
        while True:
            await self._begun.wait()
            self._begun.clear()
            await self._fill()

    async def _keep_auditing(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._times.interval_s):
                    await self._relisted.wait()
            await self.filled.wait()
            if self._relisted.is_set():
                self._relisted.clear()
                await self._sweep()
            else:
                await self.audit_all()

    def note_begin(self) -> None:
        """The watches begin: fill the caches, until then nobody may plan from them."""
        self.note_end()
        self._begun.set()

    def note_end(self) -> None:
        """The watches are down: what the caches hold grows old."""
        self.filled.clear()
        self._filled.clear()
        self._say_filling()

    def note_relist(self) -> None:
        """A watch began anew with a list, which tells nothing of what was deleted before: look for that now."""
        if self.filled.is_set():
            self._relisted.set()

    async def audit_all(self) -> None:
        """Audit everything; the graces of several dead watches run at once."""
        async with asyncio.TaskGroup() as group:
            audits = [group.create_task(self._audit_safely(kind, namespace)) for kind, namespace in self._scopes]
        problems = [problem for problem in (audit.result() for audit in audits) if problem]
        if problems:
            log.warning("Audit not possible. watches=%d first=%s", len(problems), problems[0])

    async def _fill(self) -> None:
        self._say_filling()
        async with asyncio.TaskGroup() as group:
            for kind, namespace in self._scopes:
                group.create_task(self._fill_one(kind, namespace))
        if len(self._filled) < len(self._scopes):
            return  # the watches ended meanwhile
        log.info("Caches filled. watches=%d", len(self._scopes))
        self._filled_at = self._clock()
        self.filled.set()
        self._on_filled()

    async def _fill_one(self, kind: ApiKind, namespace: str) -> None:
        # Listed anew soon: an object that was deleted before the watch began will never arrive by it.
        for patience_s in itertools.chain((2.0, 4.0, 8.0), itertools.repeat(self._times.grace_s)):
            try:
                before, listed = await self._list(kind, namespace)
                missed = await self._missed_after_grace(kind, listed, {}, min(patience_s, self._times.grace_s))
                if not missed:
                    await self._remove_gone(find_missed(kind.kind, listed, before, self._cluster.cache))
                    self._filled.add(_scope(kind, namespace))
                    self._say_filling()
                    return
            except errors.WindlassError as exc:
                log.warning("First listing failed. kind=%s namespace=%s error=%s", kind.kind, namespace or "*", exc)
                await asyncio.sleep(1.0)
                continue
            log.warning(
                "The watch has not brought the first listing yet. kind=%s namespace=%s", kind.kind, namespace or "*"
            )

    async def _sweep(self) -> None:
        """Remove what was deleted while no watch looked. No grace and no blame: nobody could have told."""
        for kind, namespace in self._scopes:
            try:
                before, listed = await self._list(kind, namespace)
                await self._remove_gone(find_missed(kind.kind, listed, before, self._cluster.cache))
            except errors.WindlassError as exc:
                log.warning("Sweep not possible. kind=%s namespace=%s error=%s", kind.kind, namespace or "*", exc)
                self._relisted.set()
                await asyncio.sleep(1.0)

    async def _remove_gone(self, missed: Missed) -> None:
        for ref in missed.gone:
            await self._repair(ref)

    def _say_filling(self) -> None:
        waiting = {kind.kind for kind, namespace in self._scopes if _scope(kind, namespace) not in self._filled}
        self._cluster.set_filling(tuple(sorted(waiting)))

    async def _audit_safely(self, kind: ApiKind, namespace: str) -> str:
        """Audit one kind; return why that was not possible. Says nothing about the watch: the API server's own trouble
        must not restart every operator.
        """
        try:
            await self.audit(kind, namespace)
        except errors.WindlassError as exc:
            return f"{_scope(kind, namespace)}: {exc}"
        return ""

    async def audit(self, kind: ApiKind, namespace: str) -> Missed:
        """Compare one kind with a list, repair what its watch missed and return it."""
        before, listed = await self._list(kind, namespace)
        missed = await self._missed_after_grace(kind, listed, before, self._times.grace_s)
        repaired = [ref for ref in missed.stale + missed.gone if await self._repair(ref)]
        scope = _scope(kind, namespace)
        self._misses[scope] = self._misses.get(scope, 0) + 1 if repaired else 0
        if repaired:
            log.warning("A watch missed changes. watch=%s objects=%d first=%s", scope, len(repaired), repaired[0])
        return missed

    async def _list(self, kind: ApiKind, namespace: str) -> tuple[Mapping[Ref, str], Sequence[Mapping[str, Any]]]:
        """Return the uids of what the cache holds, and after that what the server lists."""
        async with self._listing:
            objects = self._cluster.cache.all_of(kind.kind)
            before = {ref: cached.uid for ref, cached in objects.items() if not namespace or ref.namespace == namespace}
            return before, await self._client.list_metadata(kind, namespace, selector_of(kind.kind))

    async def _missed_after_grace(
        self, kind: ApiKind, listed: Sequence[Mapping[str, Any]], before: Mapping[Ref, str], grace_s: float
    ) -> Missed:
        """Return what is still missing once nothing of it has arrived for the grace.

        A slow watch is not a dead one, and listing everything once more would make it slower.
        """
        deadline = self._clock() + grace_s
        missed = find_missed(kind.kind, listed, before, self._cluster.cache)
        while missed and self._clock() < deadline:
            await asyncio.sleep(self._times.poll_s)
            stale = frozenset(missed.stale)
            listed = [metadata for metadata in listed if _ref(kind.kind, metadata) in stale]
            before = {ref: before[ref] for ref in missed.gone}
            still_missed = find_missed(kind.kind, listed, before, self._cluster.cache)
            if still_missed != missed:
                deadline = self._clock() + grace_s
            missed = still_missed
        return missed

    async def _repair(self, ref: Ref) -> bool:
        """Read one object anew; return whether the cache was really wrong (a list from a server's cache may lag)."""
        live = await self._client.get(ref)
        cached = self._cluster.cache.get(ref)
        if live is None:
            wrong = cached is not None
        else:
            version = live["metadata"].get("resourceVersion", "")
            wrong = cached is None or is_older(cached.watched_version or "0", version)
        key = self._cluster.absorb_repair(ref, live) if wrong else None
        if key is not None:
            self._on_change(key)
        return wrong


def _ref(kind: str, metadata: Mapping[str, Any]) -> Ref:
    return Ref(kind, metadata.get("namespace", ""), metadata["name"])


def _scope(kind: ApiKind, namespace: str) -> str:
    return f"{kind.plural}{'/' + namespace if namespace else ''}"
