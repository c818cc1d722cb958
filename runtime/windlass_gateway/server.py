"""The listening side: bounded connections, a deadline for the first request head, error answers that echo nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from windlass_gateway import answers
from windlass_gateway.bodies import BROKEN_BODY
from windlass_gateway.settings import Settings

_log = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_BACKLOG: Final = 1024
_LINGERING_S: Final = 1.0
"""Time to read on after an early answer such as 413, so that the client sees it before its connection ends."""
_FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Connection(RequestHandler):
    """One client connection."""

    _head_deadline: asyncio.TimerHandle | None = None

    def expect_head(self, within_s: float) -> None:
        """Close the connection unless a whole request head arrives in time; later heads fall under the keep-alive
        time.
        """
        self._head_deadline = asyncio.get_running_loop().call_later(within_s, self.force_close)

    def head_arrived(self) -> None:
        """The first head is here."""
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """Drop the deadline together with the connection."""
        self.head_arrived()
        super().connection_lost(exc)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log what the base class could not handle, except that a body is broken: its sender has been told, and whoever
        sends broken bodies must not fill the log.
        """
        if not isinstance(kw.get("exc_info"), BROKEN_BODY):
            super().log_exception(*args, **kw)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - the base class passes it
    ) -> web.StreamResponse:
        """Answer in our shape. A malformed request is neither echoed nor logged: what cannot be parsed may hold a
        key.
        """
        if status == 500:
            _log.error("Request failed inside the gateway.", exc_info=exc)
            if request.writer.output_size > 0:
                raise ConnectionResetError("the answer has begun, so only closing the connection can show the failure")
        problem = answers.INTERNAL if status == 500 else answers.MALFORMED
        response = answers.render_problem(problem, "")
        response.force_close()
        return response


class Listener:
    """Accepts connections for a handler until closed."""

    def __init__(self, settings: Settings, handler: Handler) -> None:
        self._settings = settings
        self._server = web.Server(handler, request_factory=self._build_request, handler_cancellation=True)
        self._acceptor: asyncio.Server | None = None

    async def open(self, sock: socket.socket) -> None:
        """Start accepting on a bound socket."""
        self._acceptor = await asyncio.get_running_loop().create_server(self._accept, sock=sock, backlog=_BACKLOG)

    async def drain(self, deadline_s: float) -> None:
        """Stop accepting, close idle connections, let running requests finish until the deadline, then cut them."""
        if self._acceptor is not None:
            self._acceptor.close()
        # One turn of the loop lets requests that have arrived already start, so that they count as running.
        await asyncio.sleep(0)
        self._server.pre_shutdown()
        await self._server.shutdown(deadline_s)

    def _accept(self) -> asyncio.Protocol:
        if len(self._server.connections) >= self._settings.max_connections:
            return _Refusal()
        connection = Connection(
            self._server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=self._settings.keepalive_s,
            lingering_time=_LINGERING_S,
        )
        connection.expect_head(self._settings.head_timeout_s)
        return connection

    def _build_request(
        self,
        message: Any,
        payload: Any,
        protocol: RequestHandler,
        writer: Any,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        if isinstance(protocol, Connection):
            protocol.head_arrived()
        return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())


class _Refusal(asyncio.Protocol):
    """A connection too many: one short answer, then the end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(_FULL)
        transport.close()
