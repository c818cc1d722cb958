"""A small OpenAI-shaped replica that misbehaves on request: the other side of every gateway and supervision test.

In process: `async with FakeReplica("a") as replica`. As a process, with the start protocol of `windlass-runtime serve`:
`python -m support.replica serve --launch-spec FILE`; the environment variable FAKE_REPLICA names a behaviour there.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import enum
import json
import os
import pathlib
import signal
import sys
from collections import Counter

from aiohttp import web
from multidict import CIMultiDict

from windlass_contract import endpoints
from windlass_contract.launch_spec import LaunchSpec


class Behaviour(enum.StrEnum):
    """What goes wrong."""

    NORMAL = "normal"
    SILENT = "silent"
    """Accepts a request and never answers."""
    FULL = "full"
    """429 with Retry-After."""
    DRAINING = "draining"
    """503."""
    DIES_BEFORE_ANSWER = "dies before answer"
    """Cuts the connection after reading the request."""
    DIES_BETWEEN_EVENTS = "dies between events"
    DIES_INSIDE_EVENT = "dies inside event"
    STALLS = "stalls"
    """Sends two events, then nothing."""
    HELD = "held"
    """Sends one event, then waits until `proceed` is set."""
    CRASH_AT_START = "crash at start"
    """Process only: prints an error and exits 1."""
    NEVER_READY = "never ready"


@dataclasses.dataclass(frozen=True)
class Seen:
    """One request as the replica saw it."""

    method: str
    path: str
    headers: CIMultiDict[str]
    body: bytes


class FakeReplica:
    """Serves chat completions; counts what it sees and what was cancelled under it."""

    def __init__(self, name: str = "replica", behaviour: Behaviour = Behaviour.NORMAL, words: int = 5) -> None:
        self.name = name
        self.behaviour = behaviour
        self.words = words
        self.prompt_tokens: int | None = None
        """What it says a prompt costs; an answer costs one token per word. None: it reports no usage."""
        self.seen: list[Seen] = []
        self.counts: Counter[str] = Counter()
        self.proceed = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.draining = False
        self.url = ""

    @property
    def address(self) -> endpoints.Replica:
        """This replica as a routing table lists it."""
        return endpoints.Replica(self.name, self.url)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen; return the URL."""
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_get(endpoints.LIVE_PATH, self._live)
        app.router.add_get(endpoints.READY_PATH, self._ready)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_route("*", "/{tail:.*}", self._echo)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.url = "http://{}:{}".format(*self._runner.addresses[0])
        return self.url

    async def stop(self) -> None:
        """Stop listening and cut what still runs."""
        await self._runner.cleanup()

    async def __aenter__(self) -> FakeReplica:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.proceed.set()
        await self.stop()

    async def _live(self, _: web.Request) -> web.Response:
        return web.Response(text="alive")

    async def _ready(self, _: web.Request) -> web.Response:
        ready = not self.draining and self.behaviour is not Behaviour.NEVER_READY
        return web.Response(status=200 if ready else 503)

    async def _note(self, request: web.Request) -> bytes:
        body = await request.read()
        self.seen.append(Seen(request.method, request.raw_path, CIMultiDict(request.headers), body))
        return body

    async def _echo(self, request: web.Request) -> web.Response:
        await self._note(request)
        return web.json_response({"replica": self.name, "object": "list", "data": []})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await self._note(request))
        self.counts["begun"] += 1
        try:
            return await self._answer(request, streamed=bool(body.get("stream")))
        except asyncio.CancelledError:
            self.counts["cancelled"] += 1
            self.cancelled.set()
            raise

    async def _answer(self, request: web.Request, *, streamed: bool) -> web.StreamResponse:
        match self.behaviour:
            case Behaviour.FULL:
                return web.json_response(_error("queue full"), status=429, headers={"Retry-After": "7"})
            case Behaviour.DRAINING:
                return web.json_response(_error("draining"), status=503)
            case Behaviour.SILENT:
                await asyncio.Event().wait()
            case Behaviour.DIES_BEFORE_ANSWER:
                _cut(request)
                return web.Response()
        if self.behaviour is Behaviour.HELD and not streamed:
            await self.proceed.wait()
        return await self._stream(request) if streamed else web.json_response(self._whole())

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for index in range(self.words):
            await response.write(self._event(index))
            if index == 0 and self.behaviour is Behaviour.HELD:
                await self.proceed.wait()
            if index == 1 and self.behaviour is Behaviour.STALLS:
                await asyncio.Event().wait()
            if index == 1 and self.behaviour in (Behaviour.DIES_BETWEEN_EVENTS, Behaviour.DIES_INSIDE_EVENT):
                if self.behaviour is Behaviour.DIES_INSIDE_EVENT:
                    await response.write(self._event(2)[:20])
                await asyncio.sleep(0.02)  # lets the pieces leave the socket before the cut discards them
                _cut(request)
                return response
        await response.write(self._report_usage(request) + b"data: [DONE]\n\n")
        await response.write_eof()
        self.counts["finished"] += 1
        return response

    def _report_usage(self, request: web.Request) -> bytes:
        """The comment for the gateway, as `windlass-runtime` writes it."""
        if endpoints.REPORT_USAGE_HEADER not in request.headers or self.prompt_tokens is None:
            return b""
        return b": " + json.dumps({"usage": self._usage()}).encode() + b"\n\n"

    def _usage(self) -> dict[str, int]:
        prompt = self.prompt_tokens or 0
        return {"prompt_tokens": prompt, "completion_tokens": self.words, "total_tokens": prompt + self.words}

    def _event(self, index: int) -> bytes:
        choice = {"index": 0, "delta": {"content": f"{self.name}{index} "}, "finish_reason": None}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    def _whole(self) -> dict[str, object]:
        text = "".join(f"{self.name}{index} " for index in range(self.words))
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.counts["finished"] += 1
        reply = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        return reply if self.prompt_tokens is None else reply | {"usage": self._usage()}


def _error(message: str) -> dict[str, object]:
    return {"error": {"message": message, "type": "x", "param": None, "code": message}}


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


async def _serve(spec: LaunchSpec) -> int:
    behaviour = Behaviour(os.environ.get("FAKE_REPLICA", Behaviour.NORMAL))
    if behaviour is Behaviour.CRASH_AT_START:
        print(f"checkpoint {spec.model_uri}: config.json: expected a file, found nothing", file=sys.stderr)
        return 1
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    replica = FakeReplica(spec.served_name, behaviour)
    url = await replica.start(spec.host, spec.port)
    print(json.dumps({"event": "listening", "url": url}), flush=True)
    await stop.wait()
    replica.draining = True
    replica.proceed.set()
    await replica.stop()
    return 0


def main() -> int:
    """Entry point of the process form."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("--launch-spec", type=pathlib.Path, required=True)
    return asyncio.run(_serve(LaunchSpec.from_json(parser.parse_args().launch_spec.read_text())))


if __name__ == "__main__":
    raise SystemExit(main())
