"""One run of `windlass up`: wire files, reconcile loop, processes, gateway and display together, and take them down
in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import pathlib
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from windlass_operator.api.load import load_documents
from windlass_operator.api.loaded import Loaded
from windlass_operator.cli.up_activation import LocalActivator
from windlass_operator.cli.up_files import Fingerprint, observe_files
from windlass_operator.cli.up_gateway import GatewayProcess, GatewaySettings
from windlass_operator.cli.up_state import ROUTES_FILE, SessionKeys
from windlass_operator.cli.up_view import Extras, Row, View, plan_rows
from windlass_operator.cluster.local import LocalCluster
from windlass_operator.cluster.local_replicas import LocalSettings
from windlass_operator.cluster.local_routes import key_owner, owners_without_keys, plan_routes, write_atomically
from windlass_operator.cluster.quality_probe import QualityProbe
from windlass_operator.cluster.replica_meter import ReplicaMeter
from windlass_operator.domain.canary_plan import canary_key
from windlass_operator.domain.fleet import FleetSettings, Platform
from windlass_operator.domain.snapshot import Key, Node, Snapshot
from windlass_operator.reconcile.canary_analysis import CanaryAnalyst
from windlass_operator.reconcile.keyed_queue import AsyncKeyedQueue, Backoff, KeyedQueue, Rate
from windlass_operator.reconcile.reconciler import Reconciler, Workers
from windlass_operator.reconcile.wake import keys_to_wake

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1

_LOOK_S: Final = 0.25
"""Interval at which files are looked at. An edit counts once two looks in a row see the same."""
_SEEN_S: Final = 0.25
"""Time after which the gateway, which looks at its table every 0.1 s, has read a new one."""
_SHOW_S: Final = 0.05
"""Least time between two pictures."""


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for."""

    files: tuple[str, ...]
    host: str
    port: int
    once: bool
    timeout_s: float
    show_keys: bool
    state_dir: pathlib.Path
    env: Mapping[str, str]


class Session:
    """Owns everything that runs. `run` returns the exit code."""

    def __init__(self, options: Options, settings: LocalSettings, node: Node, view: View) -> None:
        self._options = options
        self._view = view
        self._queue = AsyncKeyedQueue(KeyedQueue[Key](Backoff(longest_s=30.0), Rate()), time.monotonic, random.random)
        self._dirty = asyncio.Event()
        self._stop = asyncio.Event()
        self._snapshot = Snapshot()
        self._cluster = LocalCluster(settings, node, self._touched)
        self._keys = SessionKeys(options.state_dir)
        self._routes_text = ""
        self._exit_code = EXIT_OK
        self._ready = False
        self._started_s = time.monotonic()

    async def run(self, loaded: Loaded) -> int:
        """Serve until a signal or, with `once`, until it is clear that waiting is in vain."""
        self._adopt(loaded)
        self._write_routes()
        drain_s = max((float(item.spec.drain.timeout_seconds) for item in loaded.services), default=60.0)
        options = self._options
        gateway = GatewayProcess(
            GatewaySettings(
                options.state_dir / ROUTES_FILE,
                options.state_dir / "logs" / "gateway.log",
                options.host,
                options.port,
                drain_s,
                options.env,
            ),
            lambda _: self._dirty.set(),
        )
        with _signals(self._on_signal):
            await self._run_parts(gateway)
        return self._exit_code

    async def _run_parts(self, gateway: GatewayProcess) -> None:
        settings = FleetSettings(platform=Platform.LOCAL)
        analyst = CanaryAnalyst(ReplicaMeter(self._cluster.routable, QualityProbe(self._locate)), self._queue.add)
        reconciler = Reconciler(self._cluster, settings, lambda: datetime.datetime.now(datetime.UTC), analyst=analyst)
        workers = Workers(
            reconciler, self._queue, may_work=_always, clock=time.monotonic, observe=lambda *_: self._dirty.set()
        )
        async with asyncio.TaskGroup() as group:
            supervising = group.create_task(self._cluster.replicas.run())
            working = group.create_task(workers.work())
            serving = group.create_task(gateway.run())
            showing = group.create_task(self._show(gateway))
            activator = LocalActivator(self._cluster, lambda: gateway.url, time.monotonic)
            helping = [group.create_task(self._watch_files()), group.create_task(activator.run())]
            if self._options.once:
                helping.append(group.create_task(self._limit_waiting()))
            await self._stop.wait()
            for task in helping:
                task.cancel()
            # Clients first: the gateway finishes what runs while replicas still serve; then nothing new
            # is decided; then replicas go.
            gateway.stop()
            await serving
            self._queue.close()
            await working
            await analyst.close()
            self._cluster.replicas.drain()
            await supervising
            showing.cancel()

    def _on_signal(self) -> None:
        """First signal: drain. Second: end now, which kills what still runs."""
        if self._stop.is_set():
            raise KeyboardInterrupt
        self._view.tell("draining", "draining: running requests may finish; interrupt again to kill")
        self._stop.set()

    def _touched(self, key: Key) -> None:
        """Queue everything whose plan may come out differently after a change of `key`."""
        before, self._snapshot = self._snapshot, self._cluster.snapshot()
        for other in keys_to_wake(key, before, self._snapshot):
            self._queue.add(other)
        self._dirty.set()

    def _adopt(self, loaded: Loaded) -> None:
        self._cluster.load(loaded)
        snapshot = self._cluster.snapshot()
        fresh = self._keys.cover(owners_without_keys(snapshot.services, snapshot.tenants))
        for owner in fresh:
            shown = self._keys.keys[owner] if self._options.show_keys else f"see {self._keys.path}"
            self._view.tell("key", f"key of {owner} for this run: {shown}", owner=owner, keyFile=str(self._keys.path))
        for batch in loaded.batches:
            name = f"BatchInference {batch.metadata.namespace or 'default'}/{batch.metadata.name}"
            self._view.tell("warning", f"warning: {name} needs a cluster; here, run windlass-runtime batch")
        for warning in loaded.warnings:
            self._view.tell("warning", f"warning: {warning}")

    async def _watch_files(self) -> None:
        """Reconcile edits. A broken edit is reported, and what ran before goes on."""
        seen = pending = await asyncio.to_thread(observe_files, self._options.files)
        while True:
            await asyncio.sleep(_LOOK_S)
            now = await asyncio.to_thread(observe_files, self._options.files)
            settled, pending = now == pending, now
            if settled and now != seen:
                seen = await self._reload(now)

    async def _reload(self, seen: Fingerprint) -> Fingerprint:
        loaded = await asyncio.to_thread(load_documents, self._options.files)
        if loaded.problems:
            for problem in loaded.problems:
                self._view.tell("problem", f"not applied: {problem}", **dataclasses.asdict(problem))
        else:
            self._adopt(loaded)
            self._view.tell("reloaded", "files changed: applied")
        return seen

    async def _show(self, gateway: GatewayProcess) -> None:
        """Keep routing table, display and verdict in step with the cluster."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if self._write_routes():
                # Say that a service is ready only once the gateway has seen it too.
                await asyncio.sleep(_SEEN_S)
            if not self._stop.is_set():
                rows = self._rows(gateway.url)
                self._view.show(rows)
                if gateway.url and not self._ready:
                    self._judge(gateway.url, rows)
            await asyncio.sleep(_SHOW_S)

    def _rows(self, gateway_url: str) -> tuple[Row, ...]:
        snapshot = self._cluster.snapshot()
        owners = {key: key_owner(key.namespace, snapshot.tenants) for key in snapshot.services}
        stored = {key: self._cluster.needs_a_cluster(key) for key in snapshot.services}
        return plan_rows(snapshot, Extras(gateway_url, owners, stored))

    def _locate(self, service: Key, canary: str) -> str:
        """Some ready replica of a revision; empty while there is none."""
        found = self._cluster.routable(canary_key(service, canary) if canary else service)
        return found[0].url if found else ""

    def _write_routes(self) -> bool:
        """Bring the routing table up to date; return whether it changed."""
        snapshot = self._cluster.snapshot()
        table = plan_routes(snapshot.services, snapshot.tenants, self._keys.keys, self._cluster.routable)
        text = table.to_json()
        if text == self._routes_text:
            return False
        write_atomically(self._options.state_dir / ROUTES_FILE, text)
        self._routes_text = text
        return True

    def _judge(self, gateway_url: str, rows: tuple[Row, ...]) -> None:
        """Announce readiness once; with `once`, give up as soon as it cannot come."""
        if all(row.phase == "Ready" for row in rows):
            self._ready = True
            self._announce(gateway_url, rows)
        elif self._options.once:
            reason = self._cluster.find_hopeless()
            if reason:
                self._fail(reason)

    def _announce(self, gateway_url: str, rows: tuple[Row, ...]) -> None:
        seconds = round(time.monotonic() - self._started_s, 3)
        objects = sum(len(children) for children in self._cluster.children.values())
        services = [dataclasses.asdict(row) for row in rows if row.url]
        endpoints = "\n".join(f"  {row.url}  (key of {row.owner})" for row in rows if row.url)
        kinds = ", ".join(sorted({kind for row in rows for kind in row.needs_a_cluster}))
        stored = f"\nrendered, but act only in a cluster: {kinds}" if kinds else ""
        self._view.tell(
            "ready",
            f"ready after {seconds:.1f} s, {objects} objects rendered; keys in {self._keys.path}\n{endpoints}{stored}",
            url=gateway_url,
            services=services,
            keyFile=str(self._keys.path),
            objects=objects,
            seconds=seconds,
        )

    async def _limit_waiting(self) -> None:
        await asyncio.sleep(self._options.timeout_s)
        if not self._ready:
            late = [f"{row.object}: {row.phase}: {row.message}" for row in self._rows("") if row.phase != "Ready"]
            self._fail(f"not ready after {self._options.timeout_s:g} s: " + "; ".join(late))

    def _fail(self, reason: str) -> None:
        self._exit_code = EXIT_FAILED
        self._view.tell("failed", f"failed: {reason}", reason=reason)
        self._stop.set()


async def _always() -> None:
    """There is no second operator to wait for."""


@contextlib.contextmanager
def _signals(handler: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, handler)
    try:
        yield
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(signum)
