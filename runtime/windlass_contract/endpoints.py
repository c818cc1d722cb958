"""Ports, paths and the routing table: how the gateway, probes and scrapers reach replicas.

On one machine the routing table is a JSON file that a control-plane shell rewrites atomically (write aside, then
rename) and the gateway watches. In a cluster it is a Secret, packed, and names Services in the place of replicas: the
gateway follows their endpoints itself. Standard library only.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import hmac
import json
import zlib
from typing import Any, Final

RUNTIME_PORT: Final = 8000
LIVE_PATH: Final = "/health/live"
READY_PATH: Final = "/health/ready"
METRICS_PATH: Final = "/metrics"
DRAIN_PATH: Final = "/health/drain"
"""POST marks a replica not ready and returns once nothing is in flight; the preStop hook calls it."""
DEBUG_SCHEDULER_PATH: Final = "/debug/scheduler"
"""GET tells who runs and waits in a replica, without content; gateways do not pass it on."""
REPORT_USAGE_HEADER: Final = "X-Windlass-Report-Usage"
"""Asks a replica to end a stream with a comment (which clients skip) that holds its usage: `: {"usage": {...}}`."""

TENANT_HEADER: Final = "X-Windlass-Tenant"
"""Whose request it is, said by the gateway; a replica believes it with a proof only."""
TENANT_PROOF_HEADER: Final = "X-Windlass-Tenant-Proof"
"""`prove_tenant` of TENANT_HEADER with the key that gateways and replicas share."""

PORT_NAME: Final = "http"
"""Name of RUNTIME_PORT in pods, Services and their endpoints."""
ROUTES_KEY: Final = "routes.json.gz"
"""Key of the packed routing table in its Secret."""


class RoutingTableError(ValueError):
    """The text is no routing table; the reader keeps the table it has."""


@dataclasses.dataclass(frozen=True, slots=True)
class Replica:
    """One address that can serve."""

    name: str
    url: str
    """`http://host:port`, no trailing slash."""


@dataclasses.dataclass(frozen=True, slots=True)
class Canary:
    """Another revision of a service on trial, with a share of its traffic."""

    name: str
    weight: int
    """Percent of the route's requests; 0: only those that ask for it by name. The rest is the stable revision's."""
    replicas: tuple[Replica, ...] = ()
    """Ready replicas only; without one the stable revision answers in its place."""
    endpoints: str = ""
    """Kubernetes Service whose ready endpoints are the replicas; empty: `replicas` lists them."""


@dataclasses.dataclass(frozen=True, slots=True)
class TenantRates:
    """How much a tenant, or one of its services, may be asked for through all gateways; None: as much as it likes."""

    tenant: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Tokens of prompts and of answers together."""
    concurrent_requests: int | None = None
    burst_s: float = 60.0
    """Seconds' worth of each rate that a tenant which was quiet for as long may use at once."""


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
    canaries: tuple[Canary, ...] = ()
    """Revisions on trial; their weights add up to 100 at most."""
    endpoints: str = ""
    """Kubernetes Service whose ready endpoints are the replicas; empty: `replicas` lists them."""
    hold_s: float = 0.0
    """Longest time that a request may wait for a first replica, in seconds; 0: answered 503 at once."""
    max_held: int = 0
    """Requests that may wait so in one gateway."""
    weight: int = 1
    """How large a part of a full gateway its tenant is due, against other tenants."""
    rates: TenantRates | None = None
    """Limits of this service, beside those of its tenant."""


@dataclasses.dataclass(frozen=True, slots=True)
class RoutingTable:
    """Everything a gateway knows of the fleet."""

    routes: tuple[Route, ...] = ()
    rates: tuple[TenantRates, ...] = ()
    """Tenants that have limits; a table without this part limits nobody."""

    def to_json(self) -> str:
        """Render with sorted keys, so that equal tables have equal bytes."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"

    def pack(self) -> bytes:
        """Render compressed; equal tables have equal bytes. A Secret holds 1 MiB."""
        text = json.dumps(dataclasses.asdict(self), separators=(",", ":"), sort_keys=True)
        return gzip.compress(text.encode(), mtime=0)

    @classmethod
    def unpack(cls, data: bytes) -> RoutingTable:
        """Parse what `pack` returned. Raises RoutingTableError."""
        try:
            text = gzip.decompress(data).decode()
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as exc:
            raise RoutingTableError(f"routing table: {type(exc).__name__}: {exc}") from exc
        return cls.from_json(text)

    @classmethod
    def from_json(cls, text: str) -> RoutingTable:
        """Parse. Raises RoutingTableError."""
        try:
            data = json.loads(text)
            return cls(
                tuple(_parse_route(route) for route in data["routes"]),
                tuple(_parse_rates(rates) for rates in data.get("rates", ())),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise RoutingTableError(f"routing table: {type(exc).__name__}: {exc}") from exc


def _parse_route(data: dict[str, Any]) -> Route:
    values = _known(Route, data)
    values["key_digests"] = tuple(data["key_digests"])
    values["replicas"] = _parse_replicas(data["replicas"])
    values["canaries"] = tuple(_parse_canary(item) for item in data.get("canaries", ()))
    values["rates"] = _parse_rates(data["rates"]) if data.get("rates") is not None else None
    return Route(**values)


def _parse_canary(data: dict[str, Any]) -> Canary:
    return Canary(**{**_known(Canary, data), "replicas": _parse_replicas(data.get("replicas", ()))})


def _parse_replicas(items: Any) -> tuple[Replica, ...]:
    return tuple(Replica(name=item["name"], url=item["url"]) for item in items)


def _known(kind: type, data: dict[str, Any]) -> dict[str, Any]:
    """Leave out keys of newer writers."""
    return {field.name: data[field.name] for field in dataclasses.fields(kind) if field.name in data}


def _parse_rates(data: dict[str, Any]) -> TenantRates:
    rates = TenantRates(**_known(TenantRates, data))
    numbers: tuple[object, ...] = (
        *(rates.requests_per_minute, rates.tokens_per_minute, rates.concurrent_requests),
        rates.burst_s,
    )
    for number in numbers:
        if number is not None and not (isinstance(number, int | float) and 0 < number < float("inf")):
            raise ValueError(f"rates of {rates.tenant}: expected numbers above 0, found {number!r}")
    return rates


def prove_tenant(key: bytes, tenant: str) -> str:
    """HMAC-SHA256 in hex: who sends it knows the shared key. It holds for this tenant for as long as the key does."""
    return hmac.new(key, b"windlass-tenant\0" + tenant.encode(), hashlib.sha256).hexdigest()


def digest_key(key: str) -> str:
    """SHA-256 hex digest of an API key. Keys are random and long, so a plain digest is safe to store."""
    return hashlib.sha256(key.encode()).hexdigest()
