"""Which headers cross the gateway.

Requests pass an allow list, so that no client header can pose as the gateway's own word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from windlass_contract.endpoints import REPORT_USAGE_HEADER, TENANT_HEADER, TENANT_PROOF_HEADER, prove_tenant

REQUEST_ID: Final = "X-Request-Id"
SESSION: Final = "X-Windlass-Session"
"""Requests with the same value are answered by the same revision of a service, as long as weights stay."""
CANARY: Final = "X-Windlass-Canary"
"""Asks for a canary by name, also for one without a share of the traffic. Answers carry it where a canary answered."""

_TO_REPLICA: Final = ("Accept", "Content-Type", "User-Agent", "Traceparent", "Tracestate")
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_REPLACED: Final = frozenset({"content-length", "date", "server", CANARY.lower()})
"""Set anew on our side: length and date by the HTTP layer, the canary by us."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


def choose_request_id(offered: str | None, fresh: str) -> str:
    """Keep the client's request id when it is plain, else take `fresh`."""
    return offered if offered and _REQUEST_ID.fullmatch(offered) else fresh


def headers_to_replica(
    headers: Mapping[str, str], request_id: str, *, tenant: str = "", tenant_key: bytes = b""
) -> dict[str, str]:
    """Return what a replica gets to see.

    Authorization, cookies, Host and every tenant or forwarding header stay behind. With a key that replicas share, our
    own word of whose request it is goes along, proven.
    """
    passed = {name: headers[name] for name in _TO_REPLICA if name in headers}
    own = {REQUEST_ID: request_id, REPORT_USAGE_HEADER: "true"}
    if tenant_key and tenant:
        own |= {TENANT_HEADER: tenant, TENANT_PROOF_HEADER: prove_tenant(tenant_key, tenant)}
    return {**passed, **own}


def headers_to_client(headers: Iterable[tuple[str, str]], own: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what the client gets to see: everything end to end, and our own headers in place of the replica's."""
    pairs = list(headers)
    named = {
        token.strip().lower() for name, value in pairs if name.lower() == "connection" for token in value.split(",")
    }
    dropped = _HOP_BY_HOP | _REPLACED | named | {name.lower() for name in own}
    return [*((name, value) for name, value in pairs if name.lower() not in dropped), *own.items()]
