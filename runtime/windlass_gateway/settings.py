"""Every knob of one gateway process. Built once in `main`, handed down frozen."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """Limits and timeouts. Times are seconds, sizes are bytes."""

    max_connections: int = 10_000
    """Client connections held at once; one more is answered 503 and closed before its request is read."""
    running_share: float = 0.95
    """Part of max_connections whose requests are answered at once; others wait, and tenants get places that free by
    their weights. Below 1, so that whoever has all places cannot keep others from asking.
    """
    queue_timeout_s: float = 30.0
    """Longest wait for a place."""
    max_idle_upstream: int = 256
    """Connections to replicas that may wait for their next request; the others end with theirs."""
    max_body_bytes: int = 8 * 2**20
    """Largest request body, after decompression; a larger one is answered 413."""
    max_buffered_bytes: int = 256 * 2**20
    """Request bodies held at once over all connections; a tenant may hold as much of it as it leaves free.

    A body is held until a replica has answered it, so that it can be retried.
    """
    gateways: int = 1
    """Gateways that requests are spread over. They do not talk to each other: each grants its equal part of every
    tenant's limits.
    """
    head_timeout_s: float = 15.0
    """Time a new connection has to send its first request head."""
    body_timeout_s: float = 30.0
    """Time a client has to send its whole request body."""
    keepalive_s: float = 75.0
    """Idle time after which a client connection is closed. Above the 60 s that load balancers commonly use."""
    connect_timeout_s: float = 2.0
    """Time to open a connection to one replica."""
    attempt_window_s: float = 10.0
    """No further replica is tried once this much time has gone by."""
    max_busy_retries: int = 3
    """Replicas tried after the first one answered 429 or 503.

    Bounded, so that a full fleet is not asked over and over.
    """
    client_stall_s: float = 120.0
    """Time one piece of an answer may wait for a client that does not read."""
    drain_timeout_s: float = 60.0
    """Time to finish running requests after SIGTERM."""
    poll_s: float = 0.1
    """Interval at which the routing table file is looked at."""
    tenant_key: bytes = b""
    """Shared with replicas, which then believe us whose a request is; empty: we do not say."""
    separate_probes: bool = False
    """Whether health and metrics have a port of their own: metrics name tenants, which clients must not see."""

    @property
    def running_places(self) -> int:
        """Requests answered at once."""
        return max(1, int(self.max_connections * self.running_share))
