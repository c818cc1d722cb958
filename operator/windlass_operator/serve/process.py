"""The metrics adapter as a process: builds every part, runs them, stops them in order. Called by
`windlass metrics-adapter run`.

Two servers: the API over TLS for the API server, and a plain one with probes and the adapter's own metrics for kubelets
and Prometheus. Any number of replicas run side by side; they share a certificate and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import signal
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import prometheus_client
from aiohttp import web

from windlass_operator import errors
from windlass_operator.cluster.gateways import SELECTOR as GATEWAYS
from windlass_operator.cluster.gateways import Demand, Gateways
from windlass_operator.cluster.kubernetes_access import access_loader
from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.cluster.kubernetes_kinds import KINDS
from windlass_operator.serve.access import AccessReviewer
from windlass_operator.serve.app import MetricsApi
from windlass_operator.serve.settings import AdapterSettings
from windlass_operator.serve.shared_read import SharedRead
from windlass_operator.serve.sources import ReplicaDirectory, Source, build_source
from windlass_operator.serve.telemetry import Telemetry
from windlass_operator.serve.tls import ServingContext
from windlass_operator.serve.trust import TrustKeeper

log = logging.getLogger(__name__)

DEMAND_INTERVAL_S: Final = 1.0
"""How long one reading of the gateways counts: requests wait for what comes of it."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """Every part of a running adapter."""

    settings: AdapterSettings
    directory: ReplicaDirectory
    source: Source
    gateways: Gateways
    demand: SharedRead[Demand]
    trust: TrustKeeper
    serving: ServingContext
    telemetry: Telemetry
    api: MetricsApi


def build_adapter(settings: AdapterSettings, client: KubernetesClient) -> Adapter:
    """Wire the parts together; needs a running event loop."""
    clock = asyncio.get_running_loop().time
    telemetry, serving = Telemetry(), ServingContext()
    directory = ReplicaDirectory(client, settings, clock, telemetry.observe_read)
    source = build_source(settings, directory, clock, time.time, telemetry.observe_read)
    trust = TrustKeeper(client, serving, settings, lambda: datetime.datetime.now(datetime.UTC), telemetry)
    reviewer = AccessReviewer(client, settings.access_ttl_s, clock)
    gateways = Gateways(
        lambda: list_gateways(client, settings.namespace), settings.gateway_url, settings.scrape_timeout_s
    )
    demand = SharedRead[Demand](
        "gateways",
        gateways.read,
        Demand(),
        interval_s=DEMAND_INTERVAL_S,
        clock=clock,
        observe=telemetry.observe_read,
    )
    api = MetricsApi(
        source, directory, reviewer, trust, telemetry, demand, max_age_s=settings.max_age_s, wall_clock=time.time
    )
    return Adapter(settings, directory, source, gateways, demand, trust, serving, telemetry, api)


def list_gateways(client: KubernetesClient, namespace: str) -> AsyncIterator[dict[str, Any]]:
    """Yield the pods of the gateways in a namespace."""
    return client.list_items(KINDS["Pod"].path(namespace), GATEWAYS)


async def run_adapter(settings: AdapterSettings, stop: asyncio.Event | None = None) -> None:
    """Run until SIGTERM, SIGINT or `stop`. Raises ClusterUnavailable when there is no usable cluster at start."""
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    client = KubernetesClient(access_loader(settings.kubeconfig), settings.request_timeout_s)
    async with client, contextlib.AsyncExitStack() as stack:
        adapter = build_adapter(settings, client)
        stack.push_async_callback(adapter.directory.close)
        stack.push_async_callback(adapter.source.close)
        stack.push_async_callback(adapter.gateways.close)
        stack.push_async_callback(adapter.demand.close)
        probes = await serve(
            build_probes(adapter), settings.probe_host, settings.probe_port, "WINDLASS_ADAPTER_PROBE_PORT"
        )
        stack.push_async_callback(probes.cleanup)
        log.info(
            "Adapter started. source=%s server=%s access=%s probes=%s",
            settings.source,
            client.access.server,
            client.access.source,
            probes.addresses[0][1],
        )
        keeping = asyncio.create_task(adapter.trust.run(), name="trust")
        stack.push_async_callback(_cancel, keeping)
        serving = asyncio.create_task(_serve_api(adapter, stack), name="api")
        waiting = asyncio.create_task(stop.wait(), name="stop")
        try:
            await _until_stopped(waiting, keeping, serving)
        finally:
            await _cancel(waiting)
            await _cancel(serving)
        log.info("Stopping: asked to.")


def build_probes(adapter: Adapter) -> web.Application:
    """Return the application for kubelets and Prometheus. It does not fail with the source: without values, autoscalers
    hold and are told why; without the API they would only be told that it is gone.
    """

    async def live(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        if adapter.trust.ready.is_set():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="no certificate, or nobody to trust, yet; see the log\n")

    async def scrape(_: web.Request) -> web.Response:
        headers = {"Content-Type": prometheus_client.CONTENT_TYPE_LATEST}
        return web.Response(body=adapter.telemetry.text(), headers=headers)

    app = web.Application()
    app.router.add_get("/healthz", live)
    app.router.add_get("/livez", live)
    app.router.add_get("/readyz", ready)
    app.router.add_get("/metrics", scrape)
    return app


async def serve(
    app: web.Application,
    host: str,
    port: int,
    variable: str,
    *,
    tls: ssl.SSLContext | None = None,
    drain_timeout_s: float = 1.0,
) -> web.AppRunner:
    """Start serving; clean the runner up to stop. Raises SettingsError when the port is taken."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=drain_timeout_s)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
    except OSError as exc:
        await runner.cleanup()
        raise errors.SettingsError(
            f"{variable}: expected a free port on {host}, found {port}: {exc.strerror or exc}"
        ) from exc
    return runner


async def _serve_api(adapter: Adapter, stack: contextlib.AsyncExitStack) -> None:
    """Serve the API once there is a certificate."""
    settings = adapter.settings
    await adapter.trust.ready.wait()
    runner = await serve(
        adapter.api.build_app(),
        settings.host,
        settings.port,
        "WINDLASS_ADAPTER_PORT",
        tls=adapter.serving.listening,
        drain_timeout_s=settings.drain_timeout_s,
    )
    stack.push_async_callback(runner.cleanup)
    log.info("Metrics served. host=%s port=%d", settings.host, settings.port)


async def _until_stopped(waiting: asyncio.Task[bool], keeping: asyncio.Task[None], serving: asyncio.Task[None]) -> None:
    """Return when asked to stop; raise what ended another part."""
    parts: set[asyncio.Task[bool] | asyncio.Task[None]] = {waiting, keeping, serving}
    while True:
        done, parts = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if waiting in done:
            return


async def _cancel(task: asyncio.Task[bool] | asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
