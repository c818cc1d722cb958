"""Connections towards replicas: kept open for the next request, but only a bounded number of them.

Each kept connection holds a descriptor while it idles. Without a bound, a wave of requests to one replica would leave
as many idle connections behind, and the next wave to another replica would find no descriptors left.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler

from windlass_gateway.piping import ReplicaConnection

if TYPE_CHECKING:
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

_KEEPALIVE_S = 30.0


class BoundedPool(aiohttp.TCPConnector):
    """Opens as many connections as are asked for; closes after use those beyond the first `max_kept`."""

    def __init__(self, max_kept: int) -> None:
        super().__init__(limit=0, keepalive_timeout=_KEEPALIVE_S)
        self._factory = functools.partial(cast("type[ResponseHandler]", ReplicaConnection), loop=self._loop)
        self._max_kept = max_kept
        self._kept: set[ResponseHandler] = set()

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """Return a connection, and decide whether it may idle afterwards."""
        connection = await super().connect(req, traces, timeout)
        if connection.protocol is not None:
            self._decide(connection.protocol)
        return connection

    def _decide(self, protocol: ResponseHandler) -> None:
        if protocol in self._kept:
            return
        if len(self._kept) >= self._max_kept:
            self._kept = {kept for kept in self._kept if kept.is_connected()}
        if len(self._kept) >= self._max_kept:
            protocol.force_close()
        else:
            self._kept.add(protocol)
