"""Get the first part of an answer from some replica: try, classify, retry where that is safe.

A retry is safe while the client has seen nothing and the failed replica cannot have begun the work: it took no
connection, it
closed an idle one, or it said 429 or 503. A replica that accepted the request and then died is not retried elsewhere:
a request
that kills its replica must not visit them all.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
from types import SimpleNamespace
from typing import Final

import aiohttp
import yarl
from multidict import CIMultiDictProxy

from windlass_contract.endpoints import Replica, Route
from windlass_gateway import answers
from windlass_gateway.picking import Picker
from windlass_gateway.pool import BoundedPool
from windlass_gateway.routes import RouteSource
from windlass_gateway.settings import Settings

_log = logging.getLogger(__name__)

_BUSY: Final = frozenset({429, 503})
_OWN_LIMITS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})
"""Why a connection failed that no replica ever saw."""
_MAX_BUSY_BODY_BYTES: Final = 64 * 2**10


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """What every attempt sends."""

    method: str
    path_and_query: str
    headers: dict[str, str]
    body: bytes
    request_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Which revision of a service a call is for."""

    canary: str = ""
    """Name of a canary; empty for the stable revision."""
    only: bool = False
    """Whether nobody else may answer, because the client asked for this canary."""


STABLE: Final = Part()


@dataclasses.dataclass(frozen=True, slots=True)
class BusyAnswer:
    """A replica's 429 or 503, kept to be passed on if nobody else can serve."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class Reply:
    """An answer whose head has arrived. Close it in every case: that frees the connection and the replica's slot."""

    def __init__(self, replica: Replica, response: aiohttp.ClientResponse, picker: Picker, canary: str = "") -> None:
        self.replica = replica
        self.response = response
        self.canary = canary
        """The canary that the replica belongs to; empty for the stable revision."""
        self._picker = picker

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *_: object) -> None:
        # A response read to its end has given its connection back already; closing an unfinished one cuts the
        # connection, which is
        # how the replica learns that nobody waits any more.
        self.response.close()
        self._picker.finish(self.replica)


class _AttemptError(Exception):
    """One attempt got no head of an answer."""


class _UnreachableError(_AttemptError):
    """The replica took no connection."""


class _StaleConnectionError(_AttemptError):
    """An idle connection was closed under the request."""


class Upstream:
    """Sends calls to replicas."""

    def __init__(self, settings: Settings, routes: RouteSource, picker: Picker, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._routes = routes
        self._picker = picker
        self._session = session

    async def send(self, route: Route, call: Call, part: Part = STABLE) -> Reply | BusyAnswer:
        """Return the first answer worth passing on. Raises Refused when there is none."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + self._settings.attempt_window_s
        tried: list[Replica] = []
        busy: list[BusyAnswer] = []
        while len(busy) <= self._settings.max_busy_retries and loop.time() < give_up_s:
            # The table may have changed while an attempt was under way: always pick from the newest.
            chosen = self._pick(self._routes.newest(route), part, tried, loop.time())
            if chosen is None:
                break
            replica, canary = chosen
            tried.append(replica)
            try:
                answer = await self._attempt(replica, canary, call, route.request_timeout_s)
            except _AttemptError as exc:
                self._note_failure(replica, exc, call, loop.time())
                continue
            if isinstance(answer, Reply):
                return answer
            busy.append(answer)
        if busy:
            return _kindest(busy)
        raise answers.Refused(answers.UNREACHABLE if tried else answers.NO_REPLICAS)

    def _pick(self, route: Route, part: Part, tried: list[Replica], now_s: float) -> tuple[Replica, str] | None:
        """A trial must cost nobody an answer: what its canary does not take, the stable revision gets."""
        canary = next((item for item in route.canaries if item.name == part.canary), None)
        replica = self._picker.pick(canary.replicas, tried, now_s) if canary is not None else None
        if replica is not None:
            return replica, part.canary
        replica = None if part.only else self._picker.pick(route.replicas, tried, now_s)
        return (replica, "") if replica is not None else None

    async def _attempt(self, replica: Replica, canary: str, call: Call, silence_s: float) -> Reply | BusyAnswer:
        self._picker.start(replica)
        try:
            response = await self._open(replica, call, silence_s)
        except BaseException:
            self._picker.finish(replica)
            raise
        self._picker.answered(replica)
        reply = Reply(replica, response, self._picker, canary)
        if response.status < 200:
            # Passed on, it would end HTTP on the client's connection, and a proxy before us would let anything through.
            with reply:
                _log.warning("Replica switches protocols. replica=%s request_id=%s", replica.name, call.request_id)
                raise answers.Refused(answers.REPLICA_FAILED)
        if response.status not in _BUSY:
            return reply
        with reply:
            return BusyAnswer(response.status, response.headers, await _read_some(response))

    async def _open(self, replica: Replica, call: Call, silence_s: float) -> aiohttp.ClientResponse:
        connection = SimpleNamespace(reused=False)
        try:
            return await self._session.request(
                call.method,
                yarl.URL(replica.url + call.path_and_query, encoded=True),
                headers=call.headers,
                data=call.body or None,
                allow_redirects=False,
                trace_request_ctx=connection,
                timeout=aiohttp.ClientTimeout(sock_connect=self._settings.connect_timeout_s, sock_read=silence_s),
            )
        except aiohttp.ClientConnectorError as exc:
            if exc.os_error.errno in _OWN_LIMITS:
                _log.error("Gateway is out of descriptors or ports. error=%s", exc.os_error)
                raise answers.Refused(answers.OVERLOADED) from exc
            raise _UnreachableError(str(exc)) from exc
        except aiohttp.ConnectionTimeoutError as exc:
            raise _UnreachableError(str(exc)) from exc
        except TimeoutError as exc:
            _log.warning(
                "Replica sent nothing in time. replica=%s request_id=%s limit_s=%g",
                replica.name,
                call.request_id,
                silence_s,
            )
            raise answers.Refused(answers.REPLICA_SILENT) from exc
        except aiohttp.ClientError as exc:
            if connection.reused:
                raise _StaleConnectionError(str(exc)) from exc
            _log.warning(
                "Replica broke off. replica=%s request_id=%s error=%s",
                replica.name,
                call.request_id,
                type(exc).__name__,
            )
            raise answers.Refused(answers.REPLICA_FAILED) from exc

    def _note_failure(self, replica: Replica, failure: _AttemptError, call: Call, now_s: float) -> None:
        if isinstance(failure, _UnreachableError):
            rest_s = self._picker.refused(replica, now_s)
            _log.warning(
                "Replica takes no connection; it rests. replica=%s rest_s=%g request_id=%s error=%s",
                replica.name,
                rest_s,
                call.request_id,
                failure,
            )


def build_session(settings: Settings) -> aiohttp.ClientSession:
    """Open the connection pool towards replicas. The number of client connections bounds those in use."""
    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=BoundedPool(settings.max_idle_upstream),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        trace_configs=[tracing],
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    )


async def _note_reuse(
    _: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceConnectionReuseconnParams
) -> None:
    context.trace_request_ctx.reused = True


async def _read_some(response: aiohttp.ClientResponse) -> bytes:
    """Read a short answer; a long or broken one counts as empty, since its status says enough."""
    try:
        body = await response.content.read(_MAX_BUSY_BODY_BYTES)
        while not response.content.at_eof() and len(body) < _MAX_BUSY_BODY_BYTES:
            body += await response.content.read(_MAX_BUSY_BODY_BYTES - len(body))
    except (aiohttp.ClientError, TimeoutError):
        return b""
    return body if response.content.at_eof() else b""


def _kindest(busy: list[BusyAnswer]) -> BusyAnswer:
    """Prefer 429 (full, wait) over 503 (leaving): it tells the client what to do."""
    return next((answer for answer in busy if answer.status == 429), busy[-1])
