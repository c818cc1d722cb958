"""Writes as the API server saw them: who wrote what, in order."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Write:
    """One write that the server answered. Times are the server's, in seconds of the epoch."""

    user: str
    verb: str
    resource: str
    """Such as `deployments` or `inferenceservices/status`."""
    namespace: str
    name: str
    code: int
    started_s: float
    answered_s: float
    dry_run: bool = False
    """Whether the server only said what it would do."""

    @property
    def succeeded(self) -> bool:
        """Whether the server did it."""
        return 200 <= self.code < 300

    @property
    def created(self) -> bool:
        """Whether the object was not there before."""
        return self.code == 201


class AuditLog:
    """Reads one growing audit log from a mark on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def mark(self) -> int:
        """The position of now."""
        return self._path.stat().st_size if self._path.exists() else 0

    def writes(self, since: int = 0, user: str = "") -> list[Write]:
        """Everything written since a mark, by one user or by all. What wrote nothing is left out: dry runs, and
        questions that are asked by creating a review.
        """
        written = (write for write in self._read(since) if not write.dry_run and not write.resource.endswith("reviews"))
        return [write for write in written if not user or write.user == user]

    def dry_runs(self, since: int = 0) -> list[Write]:
        """Everything that was tried without writing it since a mark."""
        return [write for write in self._read(since) if write.dry_run]

    def wait_until_quiet(self, user: str, *, quiet_s: float = 3.0, timeout_s: float = 60.0) -> None:
        """Return once a user has written nothing for a while. Raises AssertionError with what it still writes."""
        deadline = time.monotonic() + timeout_s
        while True:
            mark = self.mark()
            time.sleep(quiet_s)
            written = self.writes(mark, user)
            if not written:
                return
            assert time.monotonic() < deadline, f"{user} never came to rest: {written[:20]}"

    def _read(self, since: int) -> Iterator[Write]:
        with self._path.open("rb") as file:
            file.seek(since)
            for line in file:
                if line.endswith(b"\n"):  # the last line may be half written
                    yield parse_write(json.loads(line))


def parse_write(event: dict[str, Any]) -> Write:
    """Read one event of the audit log."""
    target = event.get("objectRef") or {}
    resource = "/".join(part for part in (target.get("resource", ""), target.get("subresource", "")) if part)
    return Write(
        user=event["user"]["username"],
        verb=event["verb"],
        resource=resource,
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=(event.get("responseStatus") or {}).get("code", 0),
        started_s=_epoch(event["requestReceivedTimestamp"]),
        answered_s=_epoch(event["stageTimestamp"]),
        dry_run="dryRun=All" in event.get("requestURI", ""),
    )


def _epoch(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()
