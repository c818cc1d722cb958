"""Kubernetes Events for people who `kubectl describe`: best effort, deduplicated, never in the way of a reconcile."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from windlass_operator import errors
from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.cluster.kubernetes_kinds import EVENT

log = logging.getLogger(__name__)

REPEAT_AFTER_S: Final = 600.0
"""The same words about the same object are posted once in this time."""
REMEMBERED: Final = 2048
BACKLOG: Final = 256
"""Events waiting to be posted; more are dropped, the status holds the truth anyway."""
PAUSE_S: Final = 0.05
"""Between two posts: at most 20 per second."""
ABNORMAL: Final = frozenset({"Stalled", "Degraded", "CanaryAborted"})
"""Condition types that are bad while True."""


@dataclass(frozen=True, slots=True)
class Note:
    """One thing worth an Event."""

    warning: bool
    reason: str
    message: str


def notes_of_status(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Note]:
    """Yield what a status change means to people: conditions that turned, changed choices, a pod's new failure."""
    before = {
        condition["type"]: (condition.get("status"), condition.get("reason"))
        for condition in stored.get("conditions") or ()
    }
    for condition in wanted.get("conditions") or ():
        now = (condition.get("status"), condition.get("reason"))
        if before.get(condition["type"]) != now:
            yield Note(
                _is_bad(condition), str(condition.get("reason") or condition["type"]), str(condition.get("message", ""))
            )
    chosen = {decision["topic"]: decision["choice"] for decision in stored.get("decisions") or ()}
    for decision in wanted.get("decisions") or ():
        if chosen.get(decision["topic"]) not in (None, decision["choice"]):
            yield Note(False, "Decided", f"{decision['topic']}: {decision['choice']} ({decision['reason']})")
    yield from _notes_of_canaries(stored, wanted)
    failure = wanted.get("lastFailure")
    if failure and failure != stored.get("lastFailure"):
        yield Note(
            True,
            str(failure.get("reason", "Failed")),
            f"pod {failure.get('pod', '')}: {failure.get('message', '')}".strip(),
        )


def _notes_of_canaries(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Note]:
    """A canary that got into another phase; the reason of one that failed outlives its status in this way."""
    before = {canary["name"]: canary.get("phase") for canary in stored.get("canaries") or ()}
    for canary in wanted.get("canaries") or ():
        phase = canary.get("phase")
        if before.get(canary["name"]) != phase:
            text = f"canary {canary['name']} is {phase}: {canary.get('message', '')}"
            yield Note(phase == "Aborted", f"Canary{phase}", text)


def _is_bad(condition: Mapping[str, Any]) -> bool:
    if condition["type"] in ABNORMAL:
        return condition.get("status") == "True"
    return condition.get("status") == "False" and condition["type"] not in ("Ready", "Reconciling")


class EventRecorder:
    """Posts notes in the background. Run `run` as one task."""

    def __init__(
        self,
        client: KubernetesClient,
        *,
        component: str,
        instance: str,
        clock: Callable[[], float],
        wall_clock: Callable[[], datetime.datetime],
        may_post: Callable[[], bool] = lambda: True,
    ) -> None:
        self._client = client
        self._component, self._instance = component, instance
        self._clock, self._wall_clock = clock, wall_clock
        self._may_post = may_post
        self._posted: OrderedDict[str, float] = OrderedDict()
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(BACKLOG)

    def post(self, regarding: Mapping[str, Any], note: Note) -> bool:
        """Queue one Event about an object; return whether it was new and there was room."""
        digest = hashlib.sha256(
            "\0".join((regarding["metadata"].get("uid", ""), note.reason, note.message)).encode()
        ).hexdigest()[:16]
        now = self._clock()
        last = self._posted.get(digest)
        if (last is not None and now - last < REPEAT_AFTER_S) or self._waiting.full():
            return False
        self._posted[digest] = now
        self._posted.move_to_end(digest)
        if len(self._posted) > REMEMBERED:
            self._posted.popitem(last=False)
        self._waiting.put_nowait(self._render(regarding, note, digest))
        return True

    async def run(self) -> None:
        """Post for ever; what the server refuses is logged and dropped, and so is what waits when we stop leading."""
        while True:
            event = await self._waiting.get()
            if not self._may_post():
                continue
            try:
                await self._client.create(EVENT, event["metadata"]["namespace"], event)
            except errors.WindlassError as exc:
                log.debug("Event not posted. event=%s error=%s", event["metadata"]["name"], exc)
            await asyncio.sleep(PAUSE_S)

    def _render(self, regarding: Mapping[str, Any], note: Note, digest: str) -> dict[str, Any]:
        metadata, now = regarding["metadata"], self._wall_clock().astimezone(datetime.UTC)
        namespace = metadata.get("namespace") or "default"
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"name": f"{metadata['name'][:200]}.{digest}.{int(now.timestamp()):x}", "namespace": namespace},
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": self._component,
            "reportingInstance": self._instance[:128],
            "action": "Reconcile",
            "reason": note.reason[:128],
            "type": "Warning" if note.warning else "Normal",
            "note": note.message[:1000],
            "regarding": {
                "apiVersion": regarding["apiVersion"],
                "kind": regarding["kind"],
                "name": metadata["name"],
                "namespace": metadata.get("namespace", ""),
                "uid": metadata.get("uid", ""),
            },
        }
