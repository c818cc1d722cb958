"""The `windlass-gateway` command: read the settings, wire the parts, serve until SIGTERM, drain."""

from __future__ import annotations

import asyncio
import json
import logging
import pathlib
import resource
import signal
import socket
import sys
from contextlib import AsyncExitStack

import click

from windlass_gateway import metrics
from windlass_gateway.picking import Picker
from windlass_gateway.proxy import Proxy
from windlass_gateway.routes import RouteBook
from windlass_gateway.server import Listener
from windlass_gateway.settings import Settings
from windlass_gateway.tenants import Directory
from windlass_gateway.upstream import Upstream, build_session

_log = logging.getLogger(__name__)

DEFAULTS = Settings()


@click.group()
def cli() -> None:
    """Front door of a Windlass fleet: who may use which service, and which replica answers."""


@cli.command("run")
@click.option(
    "--routes",
    required=True,
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="Routing table file; watched.",
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--max-connections", default=DEFAULTS.max_connections, show_default=True, type=click.IntRange(1, 1_000_000)
)
@click.option("--max-body-bytes", default=DEFAULTS.max_body_bytes, show_default=True, type=click.IntRange(1024))
@click.option(
    "--drain-timeout", default=DEFAULTS.drain_timeout_s, show_default=True, type=click.FloatRange(0), help="Seconds."
)
def run_gateway(
    routes: pathlib.Path, host: str, port: int, max_connections: int, max_body_bytes: int, drain_timeout: float
) -> None:
    """Serve /{namespace}/{service}/v1/... for the routes in a file. Prints one JSON line once it listens."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = Settings(
        max_connections=_fit_descriptors(max_connections), max_body_bytes=max_body_bytes, drain_timeout_s=drain_timeout
    )
    try:
        sock = socket.create_server((host, port), family=_family(host), backlog=1024)
    except OSError as exc:
        raise click.ClickException(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
    asyncio.run(serve(settings, routes, sock))


async def serve(settings: Settings, routes_file: pathlib.Path, sock: socket.socket) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT, then drain."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(Gateway(settings, routes_file, sock))
        print(json.dumps({"event": "listening", "url": gateway.url}), flush=True)  # noqa: T201 - the contract with whoever started us
        await stop.wait()
        _log.info("Draining. deadline_s=%g", settings.drain_timeout_s)


class Gateway:
    """One running gateway: an asynchronous context that serves while it is open and drains when it closes."""

    def __init__(self, settings: Settings, routes_file: pathlib.Path, sock: socket.socket) -> None:
        self._settings = settings
        self._sock = sock
        self.picker = Picker()
        self.routes = RouteBook(routes_file, self._forget_replicas)
        self.metrics = metrics.Metrics()
        address = sock.getsockname()
        self.url = f"http://{f'[{address[0]}]' if ':' in address[0] else address[0]}:{address[1]}"

    async def __aenter__(self) -> Gateway:
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(build_session(self._settings))
            await self.routes.refresh()
            upstream = Upstream(self._settings, self.routes, self.picker, session)
            self._proxy = Proxy(self._settings, self.routes, upstream, self.metrics)
            self._listener = Listener(self._settings, self._proxy.handle)
            following = asyncio.create_task(self.routes.follow(self._settings.poll_s))
            stack.push_async_callback(_cancel, following)
            await self._listener.open(self._sock)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        # The table is followed to the end: running requests may still need another replica.
        self._proxy.draining = True
        await self._listener.drain(self._settings.drain_timeout_s)
        await self._stack.aclose()

    def _forget_replicas(self, directory: Directory) -> None:
        self.picker.keep_only({replica for route in directory.routes.values() for replica in route.replicas})


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _fit_descriptors(max_connections: int) -> int:
    """Raise the soft limit of open files to what `max_connections` needs, or lower `max_connections` to what the hard
    limit allows.

    One client connection needs one descriptor, and one more towards its replica; idle connections to replicas and
    everything else need theirs beside these.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = DEFAULTS.max_idle_upstream + 64
    wanted = 2 * max_connections + others
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    soft = max(allowed, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    fitted = min(max_connections, (allowed - others) // 2)
    if fitted < max_connections:
        _log.warning(
            "Open-file limit is too low for --max-connections. wanted=%d using=%d hard_limit=%d",
            max_connections,
            fitted,
            hard,
        )
    return fitted


def run() -> None:
    """Entry point of the `windlass-gateway` command."""
    cli(prog_name="windlass-gateway")
