"""The gateway's own answers, in the shape OpenAI clients parse: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from windlass_gateway import rate_headers
from windlass_gateway.header_rules import REQUEST_ID
from windlass_gateway.limits import Limit, OverLimit


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """What the gateway says instead of a replica's answer."""

    status: int
    kind: str
    code: str
    message: str
    retry_after_s: int = 0
    """Sent as Retry-After when above 0."""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Further headers."""

    def body(self) -> dict[str, object]:
        """Return the JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": None, "code": self.code}}

    def sse_event(self) -> bytes:
        """Return the same as one server-sent event, for a stream that has begun."""
        return b"data: " + json.dumps(self.body()).encode() + b"\n\n"


class Refused(Exception):
    """A request ends here, with this answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


NO_KEY: Final = Problem(
    401, "authentication_error", "missing_api_key", "send `Authorization: Bearer KEY` with a key of your tenant"
)
UNKNOWN_KEY: Final = Problem(401, "authentication_error", "invalid_api_key", "this key belongs to no tenant")
NO_SUCH_SERVICE: Final = Problem(
    404,
    "invalid_request_error",
    "service_not_found",
    "no such service, or not one of your tenant's: check /{namespace}/{service}/v1",
)
NO_SUCH_CANARY: Final = Problem(
    404, "invalid_request_error", "canary_not_found", "this service has no canary of the name in X-Windlass-Canary"
)
NO_SUCH_PATH: Final = Problem(404, "invalid_request_error", "path_not_found", "expected /{namespace}/{service}/v1/...")
METHOD_NOT_ALLOWED: Final = Problem(405, "invalid_request_error", "method_not_allowed", "expected GET or POST")
BODY_TIMEOUT: Final = Problem(
    408, "invalid_request_error", "request_timeout", "the request body did not arrive in time"
)
NO_REPLICAS: Final = Problem(
    503, "service_unavailable", "no_ready_replica", "no replica of this service is ready", retry_after_s=5
)
UNREACHABLE: Final = Problem(
    503,
    "service_unavailable",
    "replicas_unreachable",
    "no replica of this service takes connections now",
    retry_after_s=2,
)
OVERLOADED: Final = Problem(
    503, "service_unavailable", "gateway_overloaded", "the gateway holds too many requests", retry_after_s=1
)
REPLICA_FAILED: Final = Problem(
    502, "server_error", "replica_failed", "the replica ended the connection before it answered"
)
REPLICA_SILENT: Final = Problem(
    504, "server_error", "replica_timeout", "the replica sent nothing within the time limit of this service"
)
STREAM_BROKEN: Final = Problem(
    502, "server_error", "stream_interrupted", "the replica ended before the answer was complete"
)
MALFORMED: Final = Problem(400, "invalid_request_error", "malformed_request", "this is no well-formed HTTP/1.1 request")
INTERNAL: Final = Problem(500, "server_error", "internal_error", "the gateway failed; its log has the request id")


def held_too_long(hold_s: float) -> Problem:
    """Answer for a request that waited in vain for a sleeping service."""
    message = f"this service was asleep, and no replica was ready within {hold_s:g} s"
    return Problem(503, "service_unavailable", "wake_timeout", message, retry_after_s=10)


def too_many_held(limit: int) -> Problem:
    """Answer for one request too many at a sleeping service."""
    message = f"this service is asleep and being woken; {limit} requests wait for it already"
    return Problem(503, "service_unavailable", "wake_queue_full", message, retry_after_s=10)


def queued_too_long(wait_s: float) -> Problem:
    """Answer for a request that found no place in a full gateway."""
    message = f"the gateway is full, and your tenant's part of it was in use for {wait_s:g} s"
    return Problem(503, "service_unavailable", "gateway_queue_timeout", message, retry_after_s=2)


def unsafe_target(reason: str) -> Problem:
    """Answer for a request target that could be read in two ways."""
    return Problem(400, "invalid_request_error", "invalid_path", reason)


def body_too_large(limit_bytes: int) -> Problem:
    """Answer for a body over the limit."""
    return Problem(413, "invalid_request_error", "request_too_large", f"expected a body of at most {limit_bytes} bytes")


def over_limit(whose: str, found: OverLimit) -> Problem:
    """Answer to a request beyond a limit: 429 as OpenAI's clients know it."""
    what = {
        Limit.REQUESTS: f"{found.allowed} requests per minute",
        Limit.TOKENS: f"{found.allowed} tokens per minute",
        Limit.CONCURRENCY: f"{found.allowed} requests at once",
    }[found.limit]
    kind = "tokens" if found.limit is Limit.TOKENS else "requests"
    limit = f"{whose} may use {what} ({found.limit})"
    headers = rate_headers.render_readings(found.readings)
    if math.isinf(found.retry_after_s):
        message = f"{limit}; this request alone needs about {found.asked}: shorten it"
        return Problem(429, kind, "rate_limit_exceeded", message, headers=headers | rate_headers.NEVER_RETRY)
    wait_s = max(1, math.ceil(found.retry_after_s))
    message = f"{limit}; try again in {wait_s} s"
    headers |= rate_headers.render_wait(found.retry_after_s)
    return Problem(429, kind, "rate_limit_exceeded", message, wait_s, headers)


def render_problem(problem: Problem, request_id: str) -> web.Response:
    """Build the HTTP answer."""
    headers = {**problem.headers, **({REQUEST_ID: request_id} if request_id else {})}
    if problem.retry_after_s:
        headers["Retry-After"] = str(problem.retry_after_s)
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.json_response(problem.body(), status=problem.status, headers=headers)
