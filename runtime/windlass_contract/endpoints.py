"""Ports, paths and the routing table: how the gateway, probes and scrapers reach replicas.

The routing table is a JSON file that a control-plane shell rewrites atomically (write aside, then rename) and the
gateway watches. Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Final

RUNTIME_PORT: Final = 8000
LIVE_PATH: Final = "/health/live"
READY_PATH: Final = "/health/ready"
METRICS_PATH: Final = "/metrics"
DRAIN_PATH: Final = "/health/drain"
"""POST marks a replica not ready and returns once nothing is in flight; the preStop hook calls it."""


class RoutingTableError(ValueError):
    """The text is no routing table; the reader keeps the table it has."""


@dataclasses.dataclass(frozen=True, slots=True)
class Replica:
    """One address that can serve."""

    name: str
    url: str
    """`http://host:port`, no trailing slash."""


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """One InferenceService as the gateway sees it."""

    namespace: str
    service: str
    tenant: str
    key_digests: tuple[str, ...]
    """SHA-256 hex digests of the keys that may use this route; empty means that nobody may."""
    replicas: tuple[Replica, ...]
    """Ready replicas only; empty answers 503 with Retry-After."""
    request_timeout_s: float = 600.0
    """Longest time between two bytes from the replica, in seconds."""


@dataclasses.dataclass(frozen=True, slots=True)
class RoutingTable:
    """Everything a gateway knows of the fleet."""

    routes: tuple[Route, ...] = ()

    def to_json(self) -> str:
        """Render with sorted keys, so that equal tables have equal bytes."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RoutingTable:
        """Parse. Raises RoutingTableError."""
        try:
            return cls(tuple(_parse_route(route) for route in json.loads(text)["routes"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise RoutingTableError(f"routing table: {type(exc).__name__}: {exc}") from exc


def _parse_route(data: dict[str, object]) -> Route:
    known = {field.name for field in dataclasses.fields(Route)}
    values: dict[str, object] = {key: value for key, value in data.items() if key in known}
    values["key_digests"] = tuple(data["key_digests"])  # type: ignore[arg-type]
    values["replicas"] = tuple(Replica(name=item["name"], url=item["url"]) for item in data["replicas"])  # type: ignore[attr-defined]
    return Route(**values)  # type: ignore[arg-type]


def digest_key(key: str) -> str:
    """SHA-256 hex digest of an API key. Keys are random and long, so a plain digest is safe to store."""
    return hashlib.sha256(key.encode()).hexdigest()
