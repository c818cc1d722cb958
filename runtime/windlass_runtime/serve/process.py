"""A replica's process: listen at once, load, serve, drain on SIGTERM, leave with an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

from aiohttp import web

from windlass_contract.launch_spec import CacheReuse, LaunchSpec
from windlass_runtime import errors
from windlass_runtime.backends.base import Backend
from windlass_runtime.launch import LoadedModel, ModelLoader
from windlass_runtime.loop import Engine, EngineLimits
from windlass_runtime.metrics import RuntimeMetrics
from windlass_runtime.serve.app import build_app
from windlass_runtime.serve.replica import Replica
from windlass_runtime.serve.tenancy import parse_weights, read_tenancy

logger = logging.getLogger(__name__)

_LAST_REPLIES_S: Final = 5.0
"""Time for error replies to leave after the drain deadline has cancelled their requests."""

_Result = TypeVar("_Result")

Report = Callable[[str, dict[str, object]], None]
"""Called with an event's name and its fields: `listening` (url), `ready` (seconds), `engine` (swapped), `stopped`."""


async def serve(spec: LaunchSpec, load: ModelLoader, report: Report, stop: asyncio.Event | None = None) -> None:
    """Run one replica until a signal, or until `stop` is set by a caller who hears the signals itself.

    Raises RuntimeFault when the model does not load or the settings of tenants cannot be used, OSError for the port.
    """
    started_s = time.monotonic()
    metrics = RuntimeMetrics(spec.served_name)
    replica = Replica(spec, metrics, int(time.time()))
    tenancy, weights = read_tenancy(spec), parse_weights(spec.tenant_weights)
    hears_signals, stop = stop is None, stop or asyncio.Event()
    # Cancelling handlers is what stops work when a client hangs up.
    runner = web.AppRunner(
        build_app(replica, tenancy), handler_cancellation=True, access_log=None, shutdown_timeout=_LAST_REPLIES_S
    )
    await runner.setup()
    try:
        with _signals_set(stop) if hears_signals else contextlib.nullcontext():
            report("listening", {"url": await _listen(runner, spec)})
            engine = await _load_unless_stopped(spec, load, weights, metrics, stop)
            if engine is None:
                return
            try:
                replica.become_ready(engine[0], engine[1].tokenizer, engine[1].grammars)
                metrics.set_load_seconds(time.monotonic() - started_s)
                report("ready", {"seconds": round(time.monotonic() - started_s, 3)})
                async with _upgrading(*engine, report):
                    await stop.wait()
                await drain(replica)
            finally:
                engine[0].close()
    finally:
        await runner.cleanup()
        report("stopped", {})


@contextlib.asynccontextmanager
async def _upgrading(engine: Engine, loaded: LoadedModel, report: Report) -> AsyncIterator[None]:
    """Get a faster backend in the background and go on with it; without one the first stays."""
    task = asyncio.create_task(_upgrade(engine, loaded.upgrade, report)) if loaded.upgrade else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _upgrade(engine: Engine, make: Callable[[], Backend], report: Report) -> None:
    started_s = time.monotonic()
    try:
        backend = await _run_in_daemon_thread(make)
        engine.swap(backend)
    except Exception as exc:  # an engine that cannot be had must not end a replica that serves
        logger.warning(
            "no engine, serving goes on as it is: %s", exc, exc_info=not isinstance(exc, errors.RuntimeFault)
        )
        report("engine", {"swapped": False, "reason": str(exc)})
        return
    report("engine", {"swapped": True, "seconds": round(time.monotonic() - started_s, 3)})


async def drain(replica: Replica) -> None:
    """Refuse new requests, let the running ones finish, and at the deadline end them with an error."""
    replica.begin_drain()
    logger.info("draining in_flight=%d timeout_s=%g", replica.in_flight, replica.spec.drain_timeout_s)
    if await replica.wait_quiet(replica.spec.drain_timeout_s):
        return
    logger.warning("drain deadline reached in_flight=%d", replica.in_flight)
    if replica.loaded_engine is not None:
        replica.loaded_engine.cancel_all(errors.Draining("the replica stopped before this request was done"))
    await replica.wait_quiet(_LAST_REPLIES_S)


async def _listen(runner: web.AppRunner, spec: LaunchSpec) -> str:
    """Bind, and return the URL under which this machine reaches the server."""
    site = web.TCPSite(runner, spec.host, spec.port, backlog=1024)
    await site.start()
    host, port = runner.addresses[0][:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{reachable}:{port}"


async def _load_unless_stopped(
    spec: LaunchSpec, load: ModelLoader, weights: Mapping[str, float], metrics: RuntimeMetrics, stop: asyncio.Event
) -> tuple[Engine, LoadedModel] | None:
    """A started engine; None when a signal came first. Loading cannot be interrupted, so its thread is left behind."""
    loading = _run_in_daemon_thread(lambda: load(spec))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        waiting: set[asyncio.Future[Any]] = {loading, stopping}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
    if not loading.done():
        return None
    loaded = loading.result()
    limits = EngineLimits(
        spec.max_running_requests,
        spec.max_queued_requests,
        spec.step_tokens,
        weights=weights,
        reuse=spec.cache_reuse is CacheReuse.PREFIX,
    )
    engine = Engine(loaded.backend, loaded.tokenizer, limits, metrics, sampler=loaded.sampler)
    if loaded.sparsity is not None:
        metrics.watch_sparsity(loaded.sparsity)
    engine.start()
    return engine, loaded


def _run_in_daemon_thread(work: Callable[[], _Result]) -> asyncio.Future[_Result]:
    """Like asyncio.to_thread, but the process may end while the thread still works."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def settle(result: _Result | BaseException) -> None:
        if future.done():
            return
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)

    def run() -> None:
        try:
            result: _Result | BaseException = work()
        except Exception as exc:  # carried over to the awaiting side as it is
            result = exc
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=run, name="windlass-load", daemon=True).start()
    return future


@contextlib.contextmanager
def _signals_set(stop: asyncio.Event) -> Iterator[None]:
    """The first SIGTERM or SIGINT asks for a drain, the second ends the process on the spot.

    Outside the main thread (a server inside a test) there are no signals to hear.
    """

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
