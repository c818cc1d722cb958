"""Decide whether a key may use a service. Pure.

No refusal tells whether a service exists: a key that nobody owns gets UNKNOWN_KEY for every path, and a known key gets
NO_SUCH_SERVICE both for another tenant's service and for one that does not exist.
"""

from __future__ import annotations

import dataclasses
import enum
import hmac
from collections.abc import Mapping
from typing import Final

from windlass_contract.endpoints import Route, RoutingTable, TenantRates, digest_key

MAX_KEY_CHARACTERS: Final = 512


class Refusal(enum.Enum):
    """Why a request is turned away."""

    NO_KEY = enum.auto()
    UNKNOWN_KEY = enum.auto()
    NO_SUCH_SERVICE = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class Directory:
    """A routing table, indexed for look-ups."""

    routes: Mapping[tuple[str, str], Route]
    digests: frozenset[str]
    """Every digest that opens some route."""
    rates: tuple[TenantRates, ...] = ()


def index_table(table: RoutingTable) -> Directory:
    """Index a routing table."""
    return Directory(
        routes={(route.namespace, route.service): route for route in table.routes},
        digests=frozenset(digest for route in table.routes for digest in route.key_digests),
        rates=table.rates,
    )


def authorize(directory: Directory, namespace: str, service: str, authorization: str) -> Route | Refusal:
    """Return the route that this Authorization header opens, or why it opens none."""
    key = parse_bearer(authorization)
    if not key:
        return Refusal.NO_KEY
    digest = digest_key(key)
    route = directory.routes.get((namespace, service))
    if route is not None and _holds(route.key_digests, digest):
        return route
    # A set look-up may stop early, but on a hash the caller cannot steer, and its outcome is what we answer anyway.
    return Refusal.NO_SUCH_SERVICE if digest in directory.digests else Refusal.UNKNOWN_KEY


def parse_bearer(authorization: str) -> str:
    """Return the key of an Authorization header, empty when it carries none that could be one."""
    scheme, _, key = authorization.partition(" ")
    key = key.strip()
    usable = scheme.lower() == "bearer" and key.isascii() and key.isprintable() and len(key) <= MAX_KEY_CHARACTERS
    return key if usable else ""


def _holds(digests: tuple[str, ...], digest: str) -> bool:
    """Compare with every digest, so that the time taken tells nothing about which one fits."""
    found = False
    for candidate in digests:
        found |= hmac.compare_digest(candidate, digest)
    return found
