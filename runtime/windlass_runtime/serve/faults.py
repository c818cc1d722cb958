"""Faults as HTTP replies in the shape that OpenAI clients turn into their own exceptions."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

from aiohttp import web

from windlass_runtime import errors


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """One error reply."""

    status: int
    message: str
    type: str
    parameter: str | None = None
    code: str | None = None
    retry_after_s: float | None = None

    def to_body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.parameter, "code": self.code}}

    def to_response(self) -> web.Response:
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        return web.json_response(self.to_body(), status=self.status, headers=headers)


_INVALID: Final = "invalid_request_error"
_SERVER: Final = "server_error"


class UnknownModel(errors.RequestError):
    """The request names a model that this replica does not serve (HTTP 404)."""


class UntrustedTenant(errors.RuntimeFault):
    """The request names a tenant without the gateway's proof (HTTP 403)."""


def describe(fault: errors.RuntimeFault) -> Fault:
    """The reply to a fault that this package raised on purpose."""
    message = str(fault)
    match fault:
        case UnknownModel():
            return Fault(404, message, _INVALID, "model", "model_not_found")
        case errors.PromptTooLong():
            return Fault(400, message, _INVALID, fault.parameter or None, "context_length_exceeded")
        case errors.RequestError():
            return Fault(400, message, _INVALID, fault.parameter or None)
        case UntrustedTenant():
            return Fault(403, message, _INVALID, code="untrusted_tenant")
        case errors.DeadlineMissed():
            return Fault(504, message, _SERVER, code="deadline_missed")
        case errors.QueueFull():
            return Fault(429, message, "rate_limit_error", code="queue_full", retry_after_s=fault.retry_after_s)
        case errors.Draining():
            return Fault(503, message, _SERVER, code="draining", retry_after_s=1)
        case errors.NotServing():
            return Fault(503, message, _SERVER, code="not_serving", retry_after_s=1)
        case _:
            return Fault(500, message, _SERVER, code="step_failed")


def describe_http(exc: web.HTTPException) -> Fault:
    """The reply to what aiohttp itself refuses: unknown paths, wrong methods, bodies that are too large."""
    kind = _INVALID if exc.status < 500 else _SERVER
    return Fault(exc.status, exc.reason, kind, code={404: "not_found", 413: "body_too_large"}.get(exc.status))
