"""What runs in the pods of fake nodes: one server on loopback plays every pod's replica, by the pod's name in the path.

`/NAMESPACE/POD/v1/...` streams an answer, `/NAMESPACE/POD/metrics` reports what that pod computes and what waits there.
A replica computes a few requests at once, and finishes its streams after its pod is gone, as draining does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from aiohttp import web

from support.kube_client import Manifest


@dataclass
class LivePods:
    """All replicas. Figures may be changed while they serve."""

    at_once: int = 4
    """Requests that one replica computes at once."""
    words: int = 10
    word_s: float = 0.05
    running: Counter[str] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)
    """Streams finished, by pod."""
    cache_use: dict[str, float] = field(default_factory=dict)
    port: int = 0
    _places: dict[str, asyncio.Semaphore] = field(default_factory=dict)

    @property
    def replica_url(self) -> str:
        """The gateway's --replica-url."""
        return f"http://127.0.0.1:{self.port}/{{namespace}}/{{pod}}"

    @property
    def metrics_url(self) -> str:
        """The adapter's replica_url."""
        return f"{self.replica_url}/metrics"

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Stream one completion, after waiting for a place."""
        pod = request.match_info["pod"]
        place = self._places.setdefault(pod, asyncio.Semaphore(self.at_once))
        await request.read()
        self.waiting[pod] += 1
        try:
            await place.acquire()
        finally:
            self.waiting[pod] -= 1
        self.running[pod] += 1
        try:
            return await self._stream(request, pod)
        finally:
            self.running[pod] -= 1
            place.release()

    async def _stream(self, request: web.Request, pod: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(self.words):
            await asyncio.sleep(self.word_s)
            event = {"choices": [{"index": 0, "text": f"{number} ", "pod": pod}]}
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        self.served[pod] += 1
        return response

    async def report(self, request: web.Request) -> web.Response:
        """One pod's metrics."""
        pod = request.match_info["pod"]
        values = {
            "windlass_requests_running": float(self.running[pod]),
            "windlass_requests_waiting": float(self.waiting[pod]),
            "windlass_kv_use_ratio": self.cache_use.get(pod, 0.0),
        }
        text = "".join(f'# TYPE {name} gauge\n{name}{{model="m"}} {value}\n' for name, value in values.items())
        return web.Response(text=text)


@contextlib.contextmanager
def serving_live_pods(pods: LivePods, listed: Callable[[], list[Manifest]] = list) -> Iterator[LivePods]:
    """Serve all pods, and at /targets where `listed` ones are, for Prometheus; gone when the block ends."""

    async def targets(_: web.Request) -> web.Response:
        found = await asyncio.to_thread(listed)
        return web.json_response(
            [
                {
                    "targets": [f"127.0.0.1:{pods.port}"],
                    "labels": {
                        "__metrics_path__": f"/{pod['metadata']['namespace']}/{pod['metadata']['name']}/metrics",
                        "namespace": pod["metadata"]["namespace"],
                        "pod": pod["metadata"]["name"],
                    },
                }
                for pod in found
            ]
        )

    started, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        app = web.Application()
        app.router.add_get("/targets", targets)
        app.router.add_get("/{namespace}/{pod}/metrics", pods.report)
        app.router.add_post("/{namespace}/{pod}/v1/completions", pods.complete)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        pods.port = runner.addresses[0][1]
        loops.append(asyncio.get_running_loop())
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(10), "the replicas of fake pods did not start"
    try:
        yield pods
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(10)


@dataclass
class Streams:
    """Clients that stream completions through a gateway, and what became of them."""

    url: str
    key: str
    finished: int = 0
    broken: list[str] = field(default_factory=list)
    """Everything that did not end with [DONE]: what came instead."""
    first_byte_s: list[float] = field(default_factory=list)

    async def one(self, path: str, timeout_s: float = 60.0) -> None:
        """Ask once, to the end of the stream."""
        import aiohttp

        loop = asyncio.get_running_loop()
        begun = loop.time()
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        headers = {"Authorization": f"Bearer {self.key}"}
        body = {"model": path.split("/")[1], "prompt": "hello", "stream": True}
        text = ""
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(f"{self.url}/{path}/v1/completions", json=body, headers=headers) as answer,
            ):
                async for piece in answer.content.iter_any():
                    if not text:
                        self.first_byte_s.append(loop.time() - begun)
                    text += piece.decode()
        except (aiohttp.ClientError, TimeoutError) as exc:
            text += f"{type(exc).__name__}: {exc}"
        if text.endswith("data: [DONE]\n\n"):
            self.finished += 1
        else:
            self.broken.append(text[-300:])

    def run(self, path: str, count: int, *, gap_s: float = 0.0) -> None:
        """Ask `count` times, one every `gap_s`, and wait until all have ended."""

        async def all_of_them() -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(self.one(path))
                    await asyncio.sleep(gap_s)

        asyncio.run(all_of_them())
