"""A reverse proxy between one operator and the API server that misbehaves on demand.

It terminates TLS, forwards everything and streams watches through. Tests switch faults at run time:

    with proxy.fault(Answer(429, retry_after_s=1), on=is_write, share=0.5): ...     # from now on, until the block ends
    proxy.cut_watches()                                                             # once, mid-line

Every fault that really happened is counted in `done`, and every write that reached the server is in `writes`, so a test
can tell that it tested something, and who wrote when.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from aiohttp import web

from support.certificates import Authority, Files
from support.control_plane import Access

T = TypeVar("T")

HOP_BY_HOP = frozenset({"connection", "host", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"})
AUTOMATIC = ("Content-Type", "User-Agent", "Accept", "Accept-Encoding")
READING = frozenset({"GET", "HEAD", "OPTIONS"})
HALF_A_LINE = b'{"type":"MODIFIED","object":{"ki'


@dataclass(frozen=True, slots=True)
class Call:
    """One request, as far as faults choose by it."""

    method: str
    path: str
    watches: bool
    dry: bool = False
    """A dry run: the server answers as if, and stores nothing."""


def is_write(call: Call) -> bool:
    """Every write but those of the lease: its faults have tests of their own."""
    return call.method not in READING and not call.dry and not is_lease(call)


def is_watch(call: Call) -> bool:
    """Watches."""
    return call.watches


def is_lease(call: Call) -> bool:
    """Reads and writes of the lease."""
    return "/leases" in call.path


def is_any(call: Call) -> bool:
    """Everything, the lease too."""
    return True


@dataclass(frozen=True, slots=True)
class Answer:
    """An error in the place of the server's answer; nothing is forwarded."""

    status: int
    retry_after_s: int | None = None


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """A watch that begins with an ERROR event: what an expired resource version looks like."""

    status: int = 410


@dataclass(frozen=True, slots=True)
class Delay:
    """Forwarded after a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class LoseReply:
    """Forwarded and done, but the connection breaks before the answer: the client cannot know."""


@dataclass(frozen=True, slots=True)
class BlackHole:
    """Neither forwarded nor answered; the connection stays open until the fault is over, then it breaks."""


@dataclass(frozen=True, slots=True)
class Silence:
    """A watch that is accepted and then brings nothing."""


Act = Answer | ErrorEvent | Delay | LoseReply | BlackHole | Silence


@dataclass(frozen=True, slots=True)
class Write:
    """One write that went to the server through this proxy. Times are of time.monotonic."""

    method: str
    path: str
    status: int
    """0 when the client or the server went away first: it may have been done or not."""
    started: float
    ended: float

    @property
    def of_lease(self) -> bool:
        """Whether it only was about who leads."""
        return "/leases/" in self.path or self.path.endswith("/leases")


@dataclass
class _Fault:
    act: Act
    on: Callable[[Call], bool]
    share: float
    left: int | None
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class _Watch:
    """One open watch and the connection that it goes out on."""

    transport: asyncio.Transport
    flows: asyncio.Event = field(default_factory=asyncio.Event)


class FaultProxy:
    """Use through `running_proxy`. Faults may be switched from any thread."""

    def __init__(self, upstream: Access, folder: Path, seed: int = 1) -> None:
        authority = Authority(folder, "fault-proxy")
        self._files: Files = authority.server("proxy")
        self._authority = authority.file
        self._upstream = upstream
        self._random = random.Random(seed)
        self._faults: tuple[_Fault, ...] = ()
        self._watches: set[_Watch] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)
        self._port = 0
        self.done: Counter[str] = Counter()
        """How often each fault happened, by the name of its class; `cut` and `stalled` count watches."""
        self.writes: list[Write] = []

    def access(self, token: str) -> Access:
        """A user of the server who comes through here."""
        return Access(f"https://127.0.0.1:{self._port}", self._authority, token)

    @contextlib.contextmanager
    def fault(
        self, act: Act, *, on: Callable[[Call], bool], share: float = 1.0, times: int | None = None
    ) -> Iterator[None]:
        """Until the block ends, let `act` happen to a share of the requests that `on` names, at most `times` times."""
        fault = _Fault(act, on, share, times)
        self._faults += (fault,)
        try:
            yield
        finally:
            self._faults = tuple(other for other in self._faults if other is not fault)
            self._loop.call_soon_threadsafe(fault.over.set)

    def cut_watches(self) -> int:
        """Break every open watch in the middle of a line; returns how many there were."""
        return self._run(self._cut())

    def stall_watches(self) -> int:
        """Let the open watches bring nothing more and stay open: a load balancer that forgot them."""
        return self._run(self._stall())

    @property
    def open_watches(self) -> int:
        """Watches that are open now, stalled ones included."""
        return len(self._watches)

    def of_objects(self, since: float = 0.0) -> list[Write]:
        """Writes other than those of the lease, since a time of time.monotonic."""
        return [write for write in list(self.writes) if not write.of_lease and write.started >= since]

    # -- the server, on its own thread ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen on a free port of loopback."""
        self._thread.start()
        self._run(self._serve())

    def stop(self) -> None:
        """Close every connection and end the thread."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _serve(self) -> None:
        self._connector = aiohttp.TCPConnector(limit=0, ssl=self._upstream.ssl_context())
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(
            connector=self._connector, timeout=timeout, auto_decompress=False, skip_auto_headers=AUTOMATIC
        )
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._take)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._files.certificate, self._files.key)
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        self._port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        for watch in list(self._watches):
            watch.transport.abort()
        await self._runner.cleanup()
        await self._connector.close(abort_ssl=True)
        await self._session.close()
        await settle()

    async def _cut(self) -> int:
        open_now = list(self._watches)
        for watch in open_now:
            watch.transport.write(b"%x\r\n%s" % (2 * len(HALF_A_LINE), HALF_A_LINE))  # half of a chunk, too
            await asyncio.sleep(0)
            watch.transport.abort()
        self.done["cut"] += len(open_now)
        return len(open_now)

    async def _stall(self) -> int:
        for watch in self._watches:
            watch.flows.clear()
        self.done["stalled"] += len(self._watches)
        return len(self._watches)

    async def _take(self, request: web.Request) -> web.StreamResponse:
        call = Call(
            request.method, request.path, request.query.get("watch") in ("true", "1"), bool(request.query.get("dryRun"))
        )
        fault = self._choose(call)
        act = None if fault is None else fault.act
        if fault is not None:
            self.done[type(fault.act).__name__] += 1
        match act:
            case Answer():
                return _refusal(act.status, act.retry_after_s)
            case BlackHole() if fault is not None:
                await fault.over.wait()
                _abort(request)
                return web.Response(status=502)
            case Delay():
                await asyncio.sleep(act.seconds)
        try:
            return await self._forward(request, call, act)
        except aiohttp.ClientError:
            _abort(request)  # the server is away: look like it
            return web.Response(status=502)

    def _choose(self, call: Call) -> _Fault | None:
        for fault in self._faults:
            if fault.left == 0 or not fault.on(call) or self._random.random() >= fault.share:
                continue
            if fault.left is not None:
                fault.left -= 1
            return fault
        return None

    async def _forward(self, request: web.Request, call: Call, act: Act | None) -> web.StreamResponse:
        started = time.monotonic()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        url = self._upstream.url + request.path_qs
        status = 0
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=await request.read() or None, allow_redirects=False
            ) as answer:
                if call.watches and answer.status == 200:
                    return await self._relay(request, answer, act)
                status, body = answer.status, await answer.read()
        finally:
            if call.method not in READING and not call.dry:
                self.writes.append(Write(call.method, call.path, status, started, time.monotonic()))
        if isinstance(act, LoseReply):
            _abort(request)
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
        kept.pop("Content-Length", None)
        return web.Response(status=answer.status, headers=kept, body=body)

    async def _relay(self, request: web.Request, answer: aiohttp.ClientResponse, act: Act | None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": answer.headers["Content-Type"]})
        response.enable_chunked_encoding()
        await response.prepare(request)
        assert isinstance(request.transport, asyncio.Transport)
        watch = _Watch(request.transport)
        self._watches.add(watch)
        try:
            if isinstance(act, ErrorEvent):
                await response.write(_error_event(act.status))
                return response
            if not isinstance(act, Silence):
                watch.flows.set()
            async for data in answer.content.iter_any():
                await watch.flows.wait()
                await response.write(data)
            await watch.flows.wait()
        finally:
            self._watches.discard(watch)
        return response


async def settle(timeout_s: float = 2.0) -> None:
    """Let the loop finish what it began by itself: handshakes of connections that were just accepted, and the rounds in
    which closed TLS transports let go of their sockets. A loop that ends before leaves them open.
    """
    others = asyncio.all_tasks() - {asyncio.current_task()}
    ours = {task for task in others if "_accept_connection2" in repr(task.get_coro())}
    if ours:
        await asyncio.wait(ours, timeout=timeout_s)
    await asyncio.sleep(0.05)


@contextlib.contextmanager
def running_proxy(upstream: Access, folder: Path, seed: int = 1) -> Iterator[FaultProxy]:
    """A proxy in front of a server that is gone when the block ends. `upstream` says whom to trust, not who asks."""
    folder.mkdir(parents=True, exist_ok=True)
    proxy = FaultProxy(replace(upstream, token="", certificate=None, key=None), folder, seed)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


def _refusal(status: int, retry_after_s: int | None) -> web.Response:
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return web.json_response(_status(status), status=status, headers=headers)


def _error_event(status: int) -> bytes:
    return json.dumps({"type": "ERROR", "object": _status(status)}).encode() + b"\n"


def _status(status: int) -> dict[str, object]:
    reason = {409: "Conflict", 410: "Expired", 429: "TooManyRequests"}.get(status, "InternalError")
    text = f"the fault proxy answers {status}"
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "code": status,
        "reason": reason,
        "message": text,
    }


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
