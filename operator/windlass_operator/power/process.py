"""The agent as a process: parts wired together, a loop, probes, and what SIGTERM means: put everything back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from pathlib import Path

import prometheus_client
from aiohttp import web

from windlass_operator import errors
from windlass_operator.cluster.kubernetes_access import access_loader
from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.power.agent import PowerAgent
from windlass_operator.power.energy import EnergyBook
from windlass_operator.power.kubelet import Kubelet
from windlass_operator.power.ledger import Ledger, read_boot_id
from windlass_operator.power.nvml import NvmlDevices
from windlass_operator.power.pods import PodDirectory
from windlass_operator.power.settings import APPLY, PowerSettings, variable_of
from windlass_operator.power.telemetry import Telemetry
from windlass_operator.power.tokens import TokenReader

log = logging.getLogger(__name__)


def build_agent(settings: PowerSettings, client: KubernetesClient, tokens: TokenReader) -> PowerAgent:
    """Wire the parts together; needs a running event loop."""
    return PowerAgent(
        devices=NvmlDevices(),
        kubelet=Kubelet(settings.pod_resources_socket, settings.request_timeout_s),
        directory=PodDirectory(client, settings.node, settings.namespaces),
        tokens=tokens,
        telemetry=Telemetry(),
        book=EnergyBook(settings.window_s),
        clock=asyncio.get_running_loop().time,
        open_ledger=ledger_opener(settings) if settings.mode == APPLY else None,
    )


def ledger_opener(settings: PowerSettings) -> Callable[[], Ledger]:
    """Return a function that opens the file of this node."""
    return lambda: Ledger(Path(settings.state_folder), read_boot_id())


async def run_agent(settings: PowerSettings, stop: asyncio.Event | None = None) -> None:
    """Run until SIGTERM or `stop`, then restore every GPU. Raises SettingsError and ClusterUnavailable at start."""
    if not settings.node:
        raise errors.SettingsError(f"{variable_of('node')}: expected the name of this node, found none")
    stop = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        load_access = access_loader(settings.kubeconfig)
        client = await stack.enter_async_context(KubernetesClient(load_access, settings.request_timeout_s))
        tokens = await stack.enter_async_context(TokenReader(settings.replica_url, settings.request_timeout_s))
        agent = build_agent(settings, client, tokens)
        stack.callback(agent.devices.close)
        probes, port = await serve_probes(agent, settings)
        stack.push_async_callback(probes.cleanup)
        log.info(
            "Power agent started. node=%s mode=%s server=%s probes=%d",
            settings.node,
            settings.mode,
            client.access.server,
            port,
        )
        try:
            await agent.start()
            await _look_until(stop, agent, settings.interval_s)
        finally:
            log.info("Stopping: restoring what was changed.")
            await agent.restore()


async def restore_once(settings: PowerSettings) -> None:
    """Restore every GPU of this node from the file, without a cluster. Raises the first DeviceError or LedgerError."""
    from windlass_operator.power.apply import Limiter

    devices = NvmlDevices()
    try:
        limiter = Limiter(devices, ledger_opener(settings)())
        failures = await asyncio.to_thread(limiter.restore_all)
    finally:
        devices.close()
    if failures:
        raise failures[0]


async def _look_until(stop: asyncio.Event, agent: PowerAgent, interval_s: float) -> None:
    waiting = asyncio.create_task(stop.wait(), name="stop")
    try:
        while not stop.is_set():
            await agent.cycle()
            await asyncio.wait({waiting}, timeout=interval_s)
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def serve_probes(agent: PowerAgent, settings: PowerSettings) -> tuple[web.AppRunner, int]:
    """Serve /healthz, /readyz and /metrics. Liveness says nothing of the driver: a restart would repair none."""

    async def live(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        if agent.cycles:
            return web.Response(text="ok\n")
        return web.Response(status=503, text="no look came to its end yet; see the log\n")

    async def scrape(_: web.Request) -> web.Response:
        headers = {"Content-Type": prometheus_client.CONTENT_TYPE_LATEST}
        return web.Response(body=agent.telemetry.text(), headers=headers)

    app = web.Application()
    app.router.add_get("/healthz", live)
    app.router.add_get("/readyz", ready)
    app.router.add_get("/metrics", scrape)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.probe_host, settings.probe_port).start()
    except OSError as exc:
        await runner.cleanup()
        raise errors.SettingsError(
            f"{variable_of('probe_port')}: expected a free port on {settings.probe_host}, "
            f"found {settings.probe_port}: {exc.strerror or exc}"
        ) from exc
    return runner, int(runner.addresses[0][1])
