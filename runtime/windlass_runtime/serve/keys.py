"""Names under which handlers find what they share."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from windlass_runtime.serve.replica import Replica
from windlass_runtime.serve.replies import Usage

REPLICA: Final = web.AppKey("replica", Replica)
USAGE: Final = web.RequestKey("usage", Usage)
"""Token counts of a generating request; read by the access log."""
REQUEST_ID: Final = web.RequestKey("request_id", str)
