"""Pass an answer on to the client, piece by piece as it arrives, and make a broken one visible."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Mapping

import aiohttp
from aiohttp import web

from windlass_gateway import answers
from windlass_gateway.header_rules import REQUEST_ID, headers_to_client
from windlass_gateway.meter import TokenMeter
from windlass_gateway.piping import Pipe, ReplicaConnection
from windlass_gateway.upstream import BusyAnswer, Reply

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Delivery:
    """What became of an answer."""

    response: web.StreamResponse
    status: int
    """What to count: the status sent, or the failure that came after it."""


async def relay(
    request: web.BaseRequest, reply: Reply, own_headers: Mapping[str, str], meter: TokenMeter, stall_s: float
) -> Delivery:
    """Stream the reply to the client. A break on the replica's side ends the stream visibly; one on ours raises
    ConnectionError.
    """
    upstream = reply.response
    if upstream.content.is_eof():
        return _pass_on_whole(reply, own_headers, meter)
    response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
    response.headers.extend(headers_to_client(upstream.headers.items(), own_headers))
    response.content_length = upstream.content_length
    await response.prepare(request)
    if not isinstance(request.transport, asyncio.Transport):
        raise ConnectionResetError("the client left before its answer began")
    pipe = Pipe(request.transport, meter)
    connection = _connection_to_pipe(upstream, response)
    try:
        return await _stream(request, response, reply, own_headers, pipe, connection, stall_s)
    finally:
        if connection is not None:
            connection.close_pipe(pipe)


async def _stream(
    request: web.BaseRequest,
    response: web.StreamResponse,
    reply: Reply,
    own_headers: Mapping[str, str],
    pipe: Pipe,
    connection: ReplicaConnection | None,
    stall_s: float,
) -> Delivery:
    """Pass on what comes; between two pieces that this loop sees, chunks may have gone through the pipe."""
    upstream, taken = reply.response, 0
    while True:
        # Only the read is guarded: a failed write is the client's doing and must not be reported as the replica's.
        try:
            piece = await upstream.content.readany()
        except (aiohttp.ClientError, TimeoutError) as exc:
            _log.warning(
                "Replica broke off in mid answer. replica=%s request_id=%s error=%s",
                reply.replica.name,
                own_headers.get(REQUEST_ID, ""),
                type(exc).__name__,
            )
            if connection is not None:
                connection.close_pipe(pipe)
            clean = pipe.whole and _is_event_stream(upstream) and ends_event(pipe.tail)
            await _show_break(request, response, at_event_boundary=clean)
            return Delivery(response, answers.STREAM_BROKEN.status)
        if not piece:
            break
        pipe.note(piece)
        await _write(request, response, piece, stall_s)
        taken += len(piece)
        # An answer that is over has given its connection back, perhaps to somebody else.
        if connection is not None and taken == upstream.content.total_bytes and not upstream.content.is_eof():
            connection.open_pipe(pipe)
    await response.write_eof()
    return Delivery(response, response.status)


def _connection_to_pipe(upstream: aiohttp.ClientResponse, response: web.StreamResponse) -> ReplicaConnection | None:
    """The replica's connection, where both sides are chunked alike and bytes can go from one to the other."""
    both = (upstream.headers, response.headers)
    if any(headers.get("Transfer-Encoding", "").lower() != "chunked" for headers in both):
        return None
    protocol = upstream.connection.protocol if upstream.connection is not None else None
    return protocol if isinstance(protocol, ReplicaConnection) else None


def _pass_on_whole(reply: Reply, own_headers: Mapping[str, str], meter: TokenMeter) -> Delivery:
    """An answer that came in one piece with its head also leaves in one: half the system calls and packets."""
    upstream = reply.response
    body = upstream.content.read_nowait()
    meter.note(body)
    response = web.Response(
        status=upstream.status,
        reason=upstream.reason,
        headers=headers_to_client(upstream.headers.items(), own_headers),
        body=body,
    )
    return Delivery(response, response.status)


def render_busy(answer: BusyAnswer, own_headers: Mapping[str, str]) -> web.Response:
    """Pass on a replica's own refusal."""
    return web.Response(
        status=answer.status, body=answer.body, headers=headers_to_client(answer.headers.items(), own_headers)
    )


def ends_event(tail: bytes) -> bool:
    """Whether a server-sent event has just ended, so that another may follow."""
    return tail.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))


async def _write(request: web.BaseRequest, response: web.StreamResponse, piece: bytes, stall_s: float) -> None:
    try:
        async with asyncio.timeout(stall_s):
            await response.write(piece)
    except TimeoutError as exc:
        _abort(request)
        raise ConnectionResetError("the client stopped reading") from exc


async def _show_break(request: web.BaseRequest, response: web.StreamResponse, *, at_event_boundary: bool) -> None:
    """Between two events an error event fits; anywhere else only a cut connection cannot be taken for a complete
    answer.
    """
    if at_event_boundary:
        await response.write(answers.STREAM_BROKEN.sse_event())
        response.force_close()
        await response.write_eof()
    else:
        _abort(request)


def _abort(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


def _is_event_stream(upstream: aiohttp.ClientResponse) -> bool:
    return upstream.content_type == "text/event-stream"
