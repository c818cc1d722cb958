"""The HTTP face of one replica: routes, request ids, error replies and the access log."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import re
import secrets
import time
import traceback
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler

from windlass_contract import endpoints
from windlass_runtime import errors
from windlass_runtime.scheduling.view import SchedulerView
from windlass_runtime.serve import bodies, completions, faults
from windlass_runtime.serve.keys import REPLICA, REQUEST_ID, TENANCY, TENANT, USAGE
from windlass_runtime.serve.replica import Phase, Replica
from windlass_runtime.serve.tenancy import Tenancy

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("windlass_runtime.access")

MAX_BODY_BYTES: Final = 16 * 2**20
"""Room for any prompt that a context of a million tokens can hold."""
_INSPECT_S: Final = 10.0
"""Longest wait for the engine to finish the step it is in."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def build_app(replica: Replica, tenancy: Tenancy) -> web.Application:
    """Everything a replica answers."""
    app = web.Application(middlewares=[_account, _translate_faults], client_max_size=MAX_BODY_BYTES)
    app[REPLICA] = replica
    app[TENANCY] = tenancy
    app.on_response_prepare.append(_echo_request_id)
    app.add_routes(
        [
            web.get("/v1/models", get_models),
            web.get("/v1/models/{model:.+}", get_model),
            web.post("/v1/chat/completions", completions.post_chat_completions),
            web.post("/v1/completions", completions.post_completions),
            web.post("/tokenize", post_tokenize),
            web.post("/detokenize", post_detokenize),
            web.get(endpoints.LIVE_PATH, get_live),
            web.get(endpoints.READY_PATH, get_ready),
            web.post(endpoints.DRAIN_PATH, post_drain),
            web.get(endpoints.METRICS_PATH, get_metrics),
            web.get(endpoints.DEBUG_SCHEDULER_PATH, get_scheduler),
        ]
    )
    return app


@web.middleware
async def _account(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id, and log one line of facts when it is over: never a prompt, never an output."""
    given = request.headers.get("x-request-id", "")
    request[REQUEST_ID] = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
    started_s, status = time.monotonic(), 499
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        _log_access(request, status, time.monotonic() - started_s)


async def _echo_request_id(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["x-request-id"] = request[REQUEST_ID]


def _log_access(request: web.Request, status: int, seconds: float) -> None:
    resource = request.match_info.route.resource
    path = resource.canonical if resource is not None else "unknown"
    usage = request.get(USAGE)
    probes = (endpoints.LIVE_PATH, endpoints.READY_PATH, endpoints.METRICS_PATH)
    level = logging.DEBUG if path in probes and status < 500 else logging.INFO
    access_logger.log(
        level,
        "request done method=%s path=%s status=%d seconds=%.3f request_id=%s tenant=%s "
        "prompt_tokens=%s completion_tokens=%s",
        request.method,
        path,
        status,
        seconds,
        request[REQUEST_ID],
        request.get(TENANT, request.app[REPLICA].spec.tenant) or "-",
        usage.prompt_tokens if usage else "-",
        usage.completion_tokens if usage else "-",
    )


@web.middleware
async def _translate_faults(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except errors.RuntimeFault as fault:
        return faults.describe(fault).to_response()
    except web.HTTPException as exc:
        reply = faults.describe_http(exc).to_response()
        if "Allow" in exc.headers:
            reply.headers["Allow"] = exc.headers["Allow"]
        return reply
    except ConnectionResetError:
        raise  # the client is gone; nobody reads a reply
    except Exception as exc:  # the outermost handler: a bug answers 500 instead of closing the connection
        # Only where, not what: an exception's text may quote the prompt.
        place = traceback.extract_tb(exc.__traceback__)[-1]
        logger.error(
            "unhandled fault type=%s at=%s:%s request_id=%s",
            type(exc).__name__, place.filename, place.lineno, request[REQUEST_ID],
        )  # fmt: skip
        return faults.Fault(500, "internal error", "server_error").to_response()


async def get_models(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [_model_card(request.app[REPLICA])]})


async def get_model(request: web.Request) -> web.Response:
    replica = request.app[REPLICA]
    replica.require_model(request.match_info["model"])
    return web.json_response(_model_card(replica))


def _model_card(replica: Replica) -> dict[str, Any]:
    engine = replica.loaded_engine
    card: dict[str, Any] = {
        "id": replica.spec.served_name,
        "object": "model",
        "created": replica.started_unix_s,
        "owned_by": "windlass",
    }
    return card if engine is None else card | {"max_model_len": engine.max_sequence_tokens}


async def post_tokenize(request: web.Request) -> web.Response:
    """Token ids of a prompt, or of messages as the chat template renders them."""
    replica = request.app[REPLICA]
    body = bodies.parse_body(await request.read(), bodies.TokenizeBody)
    replica.require_model(body.model)
    tokenizer, engine = replica.require_tokenizer(), replica.require_engine()
    if (body.prompt is None) == (body.messages is None):
        raise errors.RequestError("expected exactly one of prompt and messages", "prompt")
    if body.messages is not None:
        text = completions.render_messages(tokenizer, body)
        tokens = await completions.encode(tokenizer, text, add_special_tokens=False)
    else:
        special = True if body.add_special_tokens is None else body.add_special_tokens
        tokens = await completions.encode(tokenizer, body.prompt or "", add_special_tokens=special)
    return web.json_response({"tokens": tokens, "count": len(tokens), "max_model_len": engine.max_sequence_tokens})


async def post_detokenize(request: web.Request) -> web.Response:
    replica = request.app[REPLICA]
    body = bodies.parse_body(await request.read(), bodies.DetokenizeBody)
    replica.require_model(body.model)
    text = replica.require_tokenizer().decode(body.tokens, skip_special_tokens=False)
    return web.json_response({"prompt": text})


async def get_live(request: web.Request) -> web.Response:
    """Whether the process is worth keeping: true while loading, false once the engine is broken."""
    phase = request.app[REPLICA].phase
    return web.json_response({"status": phase}, status=503 if phase is Phase.FAILED else 200)


async def get_ready(request: web.Request) -> web.Response:
    phase = request.app[REPLICA].phase
    return web.json_response({"status": phase}, status=200 if phase is Phase.READY else 503)


async def post_drain(request: web.Request) -> web.Response:
    """Refuse new requests and return once nothing is in flight, or with 504 at the drain deadline."""
    replica = request.app[REPLICA]
    replica.begin_drain()
    quiet = await replica.wait_quiet(replica.spec.drain_timeout_s)
    return web.json_response(
        {"status": "drained" if quiet else "draining", "in_flight": replica.in_flight}, status=200 if quiet else 504
    )


async def get_metrics(request: web.Request) -> web.Response:
    return web.Response(
        body=request.app[REPLICA].metrics.render(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )


async def get_scheduler(request: web.Request) -> web.Response:
    """Who runs, waits and is owed what: names and numbers, no content. For operators; gateways do not pass it on."""
    engine = request.app[REPLICA].loaded_engine
    if engine is None:
        raise errors.NotServing("the model is still loading")
    loop = asyncio.get_running_loop()
    found: asyncio.Future[SchedulerView] = loop.create_future()

    def settle(view: SchedulerView) -> None:
        if not found.done():
            found.set_result(view)

    def answer(view: SchedulerView) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, view)

    engine.inspect(answer)
    try:
        async with asyncio.timeout(_INSPECT_S):
            view = await found
    except TimeoutError as exc:
        raise errors.NotServing(f"the engine did not finish a step within {_INSPECT_S:g} s") from exc
    return web.json_response(dataclasses.asdict(view))
