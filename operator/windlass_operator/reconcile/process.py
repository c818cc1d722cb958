"""The operator as a process: builds every part, runs them, stops them in order. Called by `windlass operator run`.

Who runs: kopf (watches), the audit (fills and checks the caches), the elector (lease), the workers (reconcile), the
resync, the event poster, the probe server. On SIGTERM: take no new keys, finish those that run, give the lease back,
close the watches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from windlass_operator import errors
from windlass_operator.cluster.kubernetes_access import access_loader
from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.cluster.kubernetes_kinds import OWNERS
from windlass_operator.reconcile import probes, watch
from windlass_operator.reconcile.assembly import build_operator
from windlass_operator.reconcile.costs import ReadTokens
from windlass_operator.reconcile.keyed_queue import Backoff
from windlass_operator.reconcile.parts import Operator
from windlass_operator.settings import OperatorSettings

log = logging.getLogger(__name__)

WATCH_AGAIN = Backoff(first_s=0.5, longest_s=10.0)
"""Before watches that failed are made anew."""
WATCHED_WELL_S = 10.0
"""Watches that lasted this long start with the first wait again."""


OpenUsage = Callable[[KubernetesClient, OperatorSettings], AbstractAsyncContextManager[ReadTokens | None]]
"""Opens whatever reads the tokens of replicas; yields None where nothing should."""


async def run_operator(
    settings: OperatorSettings,
    stop: asyncio.Event | None = None,
    started: Callable[[Operator], None] | None = None,
    open_usage: OpenUsage = lambda *_: contextlib.nullcontext(),
) -> None:
    """Run until SIGTERM, SIGINT or `stop`. Raises ClusterUnavailable when there is no usable cluster at start."""
    stop = stop or asyncio.Event()
    operator = build_operator(settings, access_loader(settings.kubeconfig), identity_of_process(), random.Random())
    async with operator.client, open_usage(operator.client, settings) as operator.costs.read_tokens:
        await _require_cluster(operator.client)
        runner, operator.probe_port = await _serve_probes(operator)
        try:
            if started is not None:
                started(operator)
            await _run_parts(operator, stop)
        finally:
            await runner.cleanup()
            await operator.activator.close()


async def _require_cluster(client: KubernetesClient) -> None:
    """Raise ClusterUnavailable unless a server answers, accepts us and knows our kinds."""
    try:
        version = await client.version()
        missing = [f"{kind.plural}.{kind.group}" for kind in OWNERS if not await client.serves(kind)]
    except errors.ClusterUnavailable:
        raise
    except errors.WindlassError as exc:
        raise errors.ClusterUnavailable(f"{client.access.server} ({client.access.source}): {exc}") from exc
    if missing:
        raise errors.ClusterUnavailable(
            f"{client.access.server}: expected the CRDs {', '.join(missing)}, found none; "
            "kubectl apply --server-side -f crds/"
        )
    log.info("Connected. server=%s version=%s access=%s", client.access.server, version, client.access.source)


async def _serve_probes(operator: Operator) -> tuple[Any, int]:
    settings = operator.settings
    app = probes.build_app(operator.live_problems, operator.ready_problems, operator.metrics)
    try:
        runner, port = await probes.serve(app, settings.probe_host, settings.probe_port)
    except OSError as exc:
        raise errors.SettingsError(
            f"WINDLASS_PROBE_PORT: expected a free port on {settings.probe_host}, "
            f"found {settings.probe_port}: {exc.strerror or exc}"
        ) from exc
    log.info("Probes served. host=%s port=%d", settings.probe_host, port)
    return runner, port


async def _run_parts(operator: Operator, stop: asyncio.Event) -> None:
    """Run every part; end when asked to or when one of them ends."""
    workers = [
        asyncio.create_task(operator.workers.work(), name=f"worker {number}")
        for number in range(operator.settings.worker_count)
    ]
    elector = asyncio.create_task(operator.elector.run(), name="elector")
    others = [
        asyncio.create_task(part, name=name)
        for name, part in (
            ("audit", operator.audit.run()),
            ("resync", operator.resync()),
            ("discovery", operator.discover()),
            ("activation", operator.activator.run()),
            ("deletion costs", operator.coldness.run()),
            ("fleet", operator.apply_fleet()),
            ("events", operator.events.run()),
            ("costs", operator.costs.run()),
            *([("routes", operator.routes.run())] if operator.routes is not None else []),
        )
    ]
    watching = asyncio.create_task(_keep_watching(operator, stop), name="watches")
    waiting = asyncio.create_task(stop.wait(), name="stop")
    try:
        done, _ = await asyncio.wait(
            [waiting, watching, elector, *others, *workers], return_when=asyncio.FIRST_COMPLETED
        )
        _log_end(done, waiting)
    finally:
        await _stop_parts(operator, workers, elector, [waiting, *others], watching)
    _raise_failures(done - {waiting})


async def _keep_watching(operator: Operator, stop: asyncio.Event) -> None:
    """Watch for ever. What ends kopf (a kind that is not served, an error that it takes for fatal) costs a new listing
    but not the process: a restart would lose the caches, and meet the same server.
    """
    registry = watch.build_registry(operator.absorb, operator.load_access)
    clock = asyncio.get_running_loop().time
    failures = 0
    while True:
        started = clock()
        operator.audit.note_begin()
        try:
            await watch.watch(
                registry,
                watch.build_settings(operator.settings),
                namespaces=operator.settings.namespaces,
                take_signals=lambda: _take_signals(stop),
            )
            problem = "ended by themselves"
        except Exception as exc:
            # Whatever kopf lets out; it has logged the traceback.
            problem = f"{type(exc).__name__}: {exc}"
        operator.audit.note_end()
        failures = 1 if clock() - started > WATCHED_WELL_S else failures + 1
        delay_s = WATCH_AGAIN.delay_s(failures, operator.random())
        log.error("Watches ended; nothing is written until they are back. in_s=%.1f error=%s", delay_s, problem[:500])
        await asyncio.sleep(delay_s)
        await _wait_for_cluster(operator.client, delay_s)


async def _wait_for_cluster(client: KubernetesClient, pause_s: float) -> None:
    """Return once the server answers and knows our kinds: kopf looks for them only when it starts."""
    said = ""
    while True:
        try:
            await _require_cluster(client)
            return
        except errors.ClusterUnavailable as exc:
            if str(exc) != said:
                log.error("Waiting for the cluster. error=%s", exc)
            said = str(exc)
        await asyncio.sleep(pause_s)


async def _stop_parts(
    operator: Operator,
    workers: Sequence[asyncio.Task[None]],
    elector: asyncio.Task[None],
    others: Sequence[asyncio.Task[Any]],
    watching: asyncio.Task[None],
) -> None:
    """Workers first, then the lease, then the watches: nobody else may write while we still do."""
    operator.queue.close()
    if workers:
        # Standby workers wait for a lease that never comes; those at work get their time.
        _, slow = await asyncio.wait(
            workers, timeout=operator.settings.drain_timeout_s if operator.leadership.held else 0.0
        )
        await _cancel(slow)
    await _cancel([elector])
    await operator.analyst.close()
    await _cancel(others)
    await _cancel([watching])


async def _cancel(tasks: Sequence[asyncio.Task[Any]] | set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _log_end(done: set[asyncio.Task[Any]], waiting: asyncio.Task[Any]) -> None:
    if waiting in done:
        log.info("Stopping: asked to.")
        return
    for task in done:
        log.error("Stopping: a part ended by itself. part=%s", task.get_name())


def _raise_failures(done: set[asyncio.Task[Any]]) -> None:
    for task in done:
        if not task.cancelled() and task.exception() is not None:
            raise errors.ClusterUnavailable(f"{task.get_name()} ended: {task.exception()}") from task.exception()
        raise errors.ClusterUnavailable(f"{task.get_name()} ended by itself")


def _take_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop.set)
        except (NotImplementedError, RuntimeError):  # not the main thread: the owner of the loop sets `stop`
            return


def identity_of_process() -> str:
    """Return a name for this process that no other holder of the lease has."""
    return f"{socket.gethostname()}_{os.getpid()}_{random.getrandbits(32):08x}"
