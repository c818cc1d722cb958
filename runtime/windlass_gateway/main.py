"""The `windlass-gateway` command: read the settings, wire the parts, serve until SIGTERM, drain."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import pathlib
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import click
from aiohttp import web

from windlass_gateway import metrics
from windlass_gateway.cluster_routes import REPLICA_URL, ClusterPlace, ClusterRoutes
from windlass_gateway.entrance import Entrance
from windlass_gateway.kube_watch import SERVICE_ACCOUNT, Api, api_of_pod
from windlass_gateway.picking import Picker
from windlass_gateway.proxy import Proxy
from windlass_gateway.routes import RouteBook, RouteSource
from windlass_gateway.server import Listener
from windlass_gateway.settings import Settings
from windlass_gateway.sleepers import Sleepers
from windlass_gateway.splitting import Splitter
from windlass_gateway.tenants import Directory
from windlass_gateway.turnstile import Turnstile
from windlass_gateway.upstream import Upstream, build_session

_log = logging.getLogger(__name__)

DEFAULTS = Settings()


@click.group()
def cli() -> None:
    """Front door of a Windlass fleet: who may use which service, and which replica answers."""


@cli.command("run")
@click.option("--routes", type=click.Path(dir_okay=False, path_type=pathlib.Path), help="Routing table file; watched.")
@click.option(
    "--routes-secret",
    default="",
    metavar="NAMESPACE/NAME",
    help="In a cluster: the Secret with the routing table; replicas come from the endpoints of Services.",
)
@click.option("--namespaces", default="", help="Namespaces whose endpoints are followed, comma-separated; empty: all.")
@click.option(
    "--replica-url",
    default=REPLICA_URL,
    show_default=True,
    help="Base URL of a replica in a cluster, with {ip}, {port}, {namespace} and {pod} filled in.",
)
@click.option("--api-server", default="", help="URL of the API server; empty: the one that the pod is told.")
@click.option(
    "--api-credentials",
    default=SERVICE_ACCOUNT,
    show_default=True,
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    help="Folder with `token` and `ca.crt`.",
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--probe-port",
    type=click.IntRange(0, 65535),
    help="Serve /healthz, /readyz and /metrics here, and not where clients are: metrics name tenants.",
)
@click.option(
    "--max-connections", default=DEFAULTS.max_connections, show_default=True, type=click.IntRange(1, 1_000_000)
)
@click.option("--max-body-bytes", default=DEFAULTS.max_body_bytes, show_default=True, type=click.IntRange(1024))
@click.option(
    "--gateways",
    default=DEFAULTS.gateways,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Gateways that requests are spread over; each grants its equal part of every tenant's limits.",
)
@click.option(
    "--tenant-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
    help="Key shared with replicas, which then believe the gateway whose a request is.",
)
@click.option(
    "--drain-timeout", default=DEFAULTS.drain_timeout_s, show_default=True, type=click.FloatRange(0), help="Seconds."
)
def run_gateway(
    routes: pathlib.Path | None,
    routes_secret: str,
    namespaces: str,
    replica_url: str,
    api_server: str,
    api_credentials: pathlib.Path,
    host: str,
    port: int,
    probe_port: int | None,
    max_connections: int,
    max_body_bytes: int,
    gateways: int,
    tenant_key_file: pathlib.Path | None,
    drain_timeout: float,
) -> None:
    """Serve /{namespace}/{service}/v1/... for the routes of a file or a cluster.

    Prints one JSON line once it listens.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = Settings(
        max_connections=_fit_descriptors(max_connections),
        max_body_bytes=max_body_bytes,
        gateways=gateways,
        tenant_key=tenant_key_file.read_bytes().strip() if tenant_key_file else b"",
        drain_timeout_s=drain_timeout,
        separate_probes=probe_port is not None,
    )
    if (routes is None) == (not routes_secret):
        raise click.UsageError("expected --routes or --routes-secret, and one of them only")
    source: RouteSource
    if routes is not None:
        source = RouteBook(routes)
    else:
        api = _find_api(api_server, api_credentials)
        source = ClusterRoutes(_parse_place(api, routes_secret, namespaces, replica_url))
    probes = None if probe_port is None else _listen(host, probe_port)
    asyncio.run(serve(settings, source, _listen(host, port), probes))


def _find_api(server: str, credentials: pathlib.Path) -> Api:
    """Return the API server, with credentials that can be read. Raises ClickException."""
    named = Api(server.rstrip("/"), credentials / "ca.crt", credentials / "token") if server else None
    found = named or api_of_pod(os.environ, credentials)
    if found is None:
        raise click.ClickException(
            f"--routes-secret: expected a pod with an account token in {credentials}, found none; "
            "outside a cluster name --api-server and --api-credentials"
        )
    try:
        found.ssl_context()
        found.headers()
    except OSError as exc:
        raise click.ClickException(f"--api-credentials {credentials}: expected ca.crt and token, found {exc}") from exc
    return found


def _parse_place(api: Api, secret: str, namespaces: str, replica_url: str) -> ClusterPlace:
    namespace, _, name = secret.partition("/")
    if not namespace or not name or "/" in name:
        raise click.UsageError(f"--routes-secret: expected NAMESPACE/NAME, found {secret!r}")
    try:
        replica_url.format(ip="", port=0, namespace="", pod="")
    except (KeyError, ValueError, IndexError) as exc:
        raise click.UsageError(
            f"--replica-url: expected no places but {{ip}}, {{port}}, {{namespace}} and {{pod}}, found {replica_url!r}"
        ) from exc
    names = tuple(dict.fromkeys(part.strip() for part in namespaces.split(",") if part.strip()))
    return ClusterPlace(api, namespace, name, names, replica_url)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=_family(host), backlog=1024)
    except OSError as exc:
        raise click.ClickException(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc


async def serve(
    settings: Settings, routes: RouteSource, sock: socket.socket, probe_sock: socket.socket | None = None
) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT, then drain."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(Gateway(settings, routes, sock, probe_sock))
        print(json.dumps({"event": "listening", "url": gateway.url}), flush=True)  # noqa: T201 - the contract with whoever started us
        await stop.wait()
        _log.info("Draining. deadline_s=%g", settings.drain_timeout_s)


class Gateway:
    """One running gateway: an asynchronous context that serves while it is open and drains when it closes."""

    def __init__(
        self,
        settings: Settings,
        routes: RouteSource,
        sock: socket.socket,
        probe_sock: socket.socket | None = None,
    ) -> None:
        self._settings = settings
        self._sock, self._probe_sock = sock, probe_sock
        self.picker, self.splitter = Picker(), Splitter()
        self.routes = routes
        routes.on_change = self._adopt
        self.metrics = metrics.Metrics()
        self._turnstile = Turnstile(self.metrics, settings.gateways)
        places = settings.running_places
        waiting = settings.max_connections - places
        self._entrance = Entrance(places, waiting, settings.queue_timeout_s, self.metrics)
        self.sleepers: Sleepers | None = None
        address = sock.getsockname()
        self.url = f"http://{f'[{address[0]}]' if ':' in address[0] else address[0]}:{address[1]}"

    async def __aenter__(self) -> Gateway:
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(build_session(self._settings))
            await self.routes.refresh()
            upstream = Upstream(self._settings, self.routes, self.picker, session)
            self.sleepers = Sleepers(self.routes, upstream)
            self._proxy = Proxy(
                self._settings,
                self.routes,
                self._turnstile,
                self._entrance,
                self.splitter,
                self.sleepers,
                self.metrics,
            )
            self._listener = Listener(self._settings, self._proxy.handle)
            following = asyncio.create_task(self.routes.follow(self._settings.poll_s))
            stack.push_async_callback(_cancel, following)
            if self._probe_sock is not None:
                await stack.enter_async_context(_serving_probes(self._proxy, self._probe_sock))
            await self._listener.open(self._sock)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        # The table is followed to the end: running requests may still need another replica.
        self._proxy.draining = True
        if self.sleepers is not None:
            self.sleepers.close()
        await self._listener.drain(self._settings.drain_timeout_s)
        await self._stack.aclose()

    def _adopt(self, directory: Directory) -> None:
        """Go by new limits, and drop what is remembered of replicas and routes that left."""
        self._turnstile.adopt(directory)
        routes = directory.routes.values()
        tried = {replica for route in routes for canary in route.canaries for replica in canary.replicas}
        self.picker.keep_only({*tried, *(replica for route in routes for replica in route.replicas)})
        self.splitter.keep_only(directory.routes.keys())
        if self.sleepers is not None:
            self.sleepers.adopt(directory)


@asynccontextmanager
async def _serving_probes(proxy: Proxy, sock: socket.socket) -> AsyncIterator[None]:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return proxy.answer_own(request) or web.Response(status=404, text="expected /healthz, /readyz or /metrics\n")

    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    try:
        await web.SockSite(runner, sock).start()
        yield
    finally:
        await runner.cleanup()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _fit_descriptors(max_connections: int) -> int:
    """Raise the soft limit of open files to what `max_connections` needs, or lower `max_connections` to what the hard
    limit allows.

    One client connection needs one descriptor, and one more towards its replica while its request is answered; idle
    connections to replicas and everything else need theirs beside these.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = DEFAULTS.max_idle_upstream + 64
    each = 1.0 + DEFAULTS.running_share
    wanted = math.ceil(each * max_connections) + others
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    soft = max(allowed, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    fitted = min(max_connections, int((allowed - others) / each))
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
