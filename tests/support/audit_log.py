"""Writes as the API server saw them: who wrote what, in order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Write:
    """One write that the server answered."""

    user: str
    verb: str
    resource: str
    """Such as `deployments` or `inferenceservices/status`."""
    namespace: str
    name: str
    code: int
    time: str
    """When the server took it, RFC 3339 with microseconds."""
    agent: str = ""


class AuditLog:
    """Reads one growing audit log from a mark on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def mark(self) -> int:
        """The position of now."""
        return self._path.stat().st_size if self._path.exists() else 0

    def writes(self, since: int = 0, user: str = "") -> list[Write]:
        """Everything written since a mark, by one user or by all."""
        return [write for write in self._read(since) if not user or write.user == user]

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
        time=event["requestReceivedTimestamp"],
        agent=event.get("userAgent", ""),
    )
