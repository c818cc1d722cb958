"""Check the watches against lists: are the caches filled, did a watch die, was a deletion missed?

A watch can stop without an error, and a relist after a lost connection tells nothing of what was deleted meanwhile. So
every kind is listed now and then (metadata only, from the server's cache) and compared with what the watch brought.
What it missed is read and repaired; a watch that misses things twice in a row is dead, and the liveness probe says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from windlass_operator import errors
from windlass_operator.cluster.kubernetes import KubernetesCluster
from windlass_operator.cluster.kubernetes_cache import ObjectCache, is_older
from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.cluster.kubernetes_kinds import WATCHED, ApiKind, Ref, selector_of
from windlass_operator.domain.snapshot import Key

log = logging.getLogger(__name__)


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
        ref = Ref(kind, metadata.get("namespace", ""), metadata["name"])
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
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._scopes = [
            (kind, namespace) for kind in WATCHED for namespace in (namespaces if kind.namespaced else ()) or ("",)
        ]
        self._times = times
        self._on_change = on_change
        self._clock = clock
        self._filled: set[str] = set()
        self._misses: dict[str, int] = {}
        self.filled = asyncio.Event()

    @property
    def dead_watches(self) -> tuple[str, ...]:
        """Watches that missed changes in two audits in a row."""
        return tuple(sorted(scope for scope, misses in self._misses.items() if misses >= 2))

    async def run(self) -> None:
        """Fill first, then audit for ever."""
        await self._fill()
        while True:
            await asyncio.sleep(self._times.interval_s)
            for kind, namespace in self._scopes:
                await self._audit_safely(kind, namespace)

    async def _fill(self) -> None:
        self._say_filling()
        async with asyncio.TaskGroup() as group:
            for kind, namespace in self._scopes:
                group.create_task(self._fill_one(kind, namespace))
        log.info("Caches filled. watches=%d", len(self._scopes))
        self.filled.set()

    async def _fill_one(self, kind: ApiKind, namespace: str) -> None:
        while True:
            try:
                listed = await self._client.list_metadata(kind, namespace, selector_of(kind.kind))
            except errors.WindlassError as exc:
                log.warning("First listing failed. kind=%s namespace=%s error=%s", kind.kind, namespace or "*", exc)
                await asyncio.sleep(1.0)
                continue
            if not await self._missed_after_grace(kind, listed, {}):
                self._filled.add(_scope(kind, namespace))
                self._say_filling()
                return
            log.warning(
                "The watch has not brought the first listing yet. kind=%s namespace=%s", kind.kind, namespace or "*"
            )

    def _say_filling(self) -> None:
        waiting = {kind.kind for kind, namespace in self._scopes if _scope(kind, namespace) not in self._filled}
        self._cluster.set_filling(tuple(sorted(waiting)))

    async def _audit_safely(self, kind: ApiKind, namespace: str) -> None:
        try:
            await self.audit(kind, namespace)
        except errors.WindlassError as exc:
            # Says nothing about the watch; the API server's own trouble must not restart every operator.
            log.warning("Audit not possible. kind=%s namespace=%s error=%s", kind.kind, namespace or "*", exc)

    async def audit(self, kind: ApiKind, namespace: str) -> Missed:
        """Compare one kind with a list, repair what its watch missed and return it."""
        objects = self._cluster.cache.all_of(kind.kind)
        before = {ref: cached.uid for ref, cached in objects.items() if not namespace or ref.namespace == namespace}
        listed = await self._client.list_metadata(kind, namespace, selector_of(kind.kind))
        missed = await self._missed_after_grace(kind, listed, before)
        repaired = [ref for ref in missed.stale + missed.gone if await self._repair(ref)]
        scope = _scope(kind, namespace)
        self._misses[scope] = self._misses.get(scope, 0) + 1 if repaired else 0
        if repaired:
            log.warning("A watch missed changes. watch=%s objects=%d first=%s", scope, len(repaired), repaired[0])
        return missed

    async def _missed_after_grace(
        self, kind: ApiKind, listed: Sequence[Mapping[str, Any]], before: Mapping[Ref, str]
    ) -> Missed:
        deadline = self._clock() + self._times.grace_s
        while True:
            missed = find_missed(kind.kind, listed, before, self._cluster.cache)
            if not missed or self._clock() >= deadline:
                return missed
            await asyncio.sleep(self._times.poll_s)

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


def _scope(kind: ApiKind, namespace: str) -> str:
    return f"{kind.plural}{'/' + namespace if namespace else ''}"
