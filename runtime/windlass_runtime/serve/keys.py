"""Names under which handlers find what they share."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from windlass_runtime.serve.replica import Replica
from windlass_runtime.serve.replies import Usage
from windlass_runtime.serve.tenancy import Tenancy

REPLICA: Final = web.AppKey("replica", Replica)
USAGE: Final = web.RequestKey("usage", Usage)
"""Token counts of a generating request; read by the access log."""
TENANCY: Final = web.AppKey("tenancy", Tenancy)
TENANT: Final = web.RequestKey("tenant", str)
"""Whose request it is; set once it is known."""
REQUEST_ID: Final = web.RequestKey("request_id", str)
