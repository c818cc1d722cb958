"""The operator as a process: builds every part, runs them, stops them in order. Called by `windlass operator run`.

Who runs: kopf (watches), the audit (fills and checks the caches), the elector (lease), the workers (reconcile), the
resync, the event poster, the probe server. On SIGTERM: take no new keys, finish those that run, give the lease back,
close the watches.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from windlass_operator import errors
from windlass_operator.cluster.canary_meter import Meter, NoMeter
from windlass_operator.cluster.gateways import SELECTOR as GATEWAYS
from windlass_operator.cluster.gateways import Gateways
from windlass_operator.cluster.kubernetes import KubernetesCluster
from windlass_operator.cluster.kubernetes_access import AccessLoader, access_loader
from windlass_operator.cluster.kubernetes_audit import AuditTimes, WatchAudit
from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.cluster.kubernetes_discovery import TRIAL_NAMESPACE, Discovery
from windlass_operator.cluster.kubernetes_events import EventRecorder
from windlass_operator.cluster.kubernetes_kinds import KINDS, OWNERS
from windlass_operator.cluster.kubernetes_lease import LeaderElector, Leadership, LeaseTimes
from windlass_operator.cluster.kubernetes_routes import RoutesSecret
from windlass_operator.cluster.pod_metrics import PodMetrics
from windlass_operator.cluster.prometheus_meter import PrometheusMeter, PrometheusPlace
from windlass_operator.cluster.quality_probe import QualityProbe
from windlass_operator.domain.canary_plan import object_name
from windlass_operator.domain.snapshot import Key, Snapshot
from windlass_operator.reconcile import probes, watch
from windlass_operator.reconcile.activation import Activator
from windlass_operator.reconcile.canary_analysis import CanaryAnalyst
from windlass_operator.reconcile.canary_metrics import CanaryMetrics
from windlass_operator.reconcile.coldness import ColdnessKeeper
from windlass_operator.reconcile.costs import CostBook, CostKeeper, CostMetrics, ReadTokens
from windlass_operator.reconcile.fleet_metrics import GpuClassCollector, TenantCollector
from windlass_operator.reconcile.keyed_queue import AsyncKeyedQueue, Backoff, KeyedQueue, Rate
from windlass_operator.reconcile.reconciler import Reconciler, Result, Workers
from windlass_operator.reconcile.routes import RoutePublisher
from windlass_operator.reconcile.wake import Claim, claim_on_others, keys_to_wake
from windlass_operator.render.fleet import render_fleet
from windlass_operator.settings import OperatorSettings

log = logging.getLogger(__name__)

OWN_DELAY_S = 0.02
"""Changes of one of our own objects within this time become one reconcile."""
OTHERS_DELAY_S = 0.25
"""The same for changes of children, pods and nodes, which come in flocks while a rollout goes on."""
FLEET_RETRY_S = 30.0
DISCOVERY_INTERVAL_S = 60.0
"""Between two looks at what the cluster offers."""
WATCH_AGAIN = Backoff(first_s=0.5, longest_s=10.0)
"""Before watches that failed are made anew."""
WATCHED_WELL_S = 10.0
"""Watches that lasted this long start with the first wait again."""


@dataclass
class Operator:
    """Every part of a running operator. Build with `build_operator`."""

    settings: OperatorSettings
    client: KubernetesClient
    cluster: KubernetesCluster
    queue: AsyncKeyedQueue[Key]
    leadership: Leadership
    elector: LeaderElector
    events: EventRecorder
    audit: WatchAudit
    workers: Workers
    metrics: probes.Metrics
    discovery: Discovery
    load_access: AccessLoader
    random: Callable[[], float]
    costs: CostKeeper
    analyst: CanaryAnalyst
    routes: RoutePublisher | None = None
    """None: there is no gateway."""
    activator: Activator | None = None
    coldness: ColdnessKeeper | None = None
    discovered: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once somebody has tried to learn what the cluster offers."""
    probe_port: int = 0
    """Port in use once the probes are served."""
    _last: Snapshot = field(default_factory=Snapshot)
    _told: dict[Key, Claim] = field(default_factory=dict)
    """What others were last told of each object of ours."""

    def absorb(self, event_type: str | None, manifest: Any) -> None:
        """Take one watch event and wake whom it concerns."""
        if event_type is None:
            self.audit.note_relist()
        key = self.cluster.absorb(event_type, dict(manifest))
        if key is not None:
            self.wake(key, OWN_DELAY_S if manifest["kind"] == key.kind else OTHERS_DELAY_S)

    def wake(self, key: Key, delay_s: float = OWN_DELAY_S) -> None:
        """Queue every key whose plan may come out differently after a change of `key`."""
        before, self._last = self._last, self.cluster.picture()
        if self.routes is not None and self._last is not before:
            self.routes.touch()
        woken = keys_to_wake(key, before, self._last, self._told.get(key))
        if key.kind != "Node":
            self._told[key] = claim_on_others(key, self._last)
            if not self._told[key].exists:
                del self._told[key]
        for other in woken:
            self.queue.add(other, delay_s if other == key else OTHERS_DELAY_S)

    async def wait_for_work(self) -> None:
        """Return once the caches are filled and this process leads: a plan from half a picture would be wrong."""
        await self.audit.filled.wait()
        await self.discovered.wait()
        await self.leadership.wait()

    def note_reconcile(self, key: Key, result: Result, seconds: float) -> None:
        """Count a reconcile. Its writes come back as replies and wake nobody, but routes depend on canaries' status."""
        self.metrics.observe_reconcile(key, result, seconds)
        if self.routes is not None and result is Result.CHANGED:
            self.routes.touch()

    def take_over(self) -> None:
        """This process leads now: what failed for want of a lease or a server need not wait longer."""
        if self.routes is not None:
            self.routes.start_over()
        self.wake_all(0.0)

    def wake_all(self, spread_s: float) -> None:
        """Queue everything, spread evenly at random over `spread_s` seconds."""
        picture = self.cluster.picture()
        keys = [*picture.services, *(Key("Tenant", "", name) for name in picture.tenants)]
        keys += [Key("GPUClass", "", name) for name in picture.gpu_classes]
        for key in keys:
            self.queue.add(key, self.random() * spread_s)

    async def resync(self) -> None:
        """Queue everything again in every interval. Catches what no event told."""
        while True:
            await self.audit.filled.wait()
            interval_s = self.settings.resync_interval_s
            self.wake_all(interval_s)
            await asyncio.sleep(interval_s)

    async def discover(self) -> None:
        """Keep up with what the cluster offers; what is new may change every plan."""
        while True:
            try:
                found = await self.discovery.look()
            except errors.WindlassError as exc:
                log.warning("Discovery failed; what was found before holds. error=%s", exc)
            else:
                if self.cluster.set_capabilities(found):
                    log.info("The cluster offers something else now. found=%s", found)
                    self.wake_all(0.0)
            self.discovered.set()
            await asyncio.sleep(DISCOVERY_INTERVAL_S)

    async def apply_fleet(self) -> None:
        """Keep the objects of the installation as a whole in place, while leading."""
        await self.audit.filled.wait()
        while True:
            await self.leadership.wait()
            delay_s = self.settings.resync_interval_s
            try:
                applied = await self.cluster.apply_fleet(render_fleet(self.settings.fleet))
            except errors.WindlassError as exc:
                log.warning("Fleet objects not applied. error=%s", exc)
                delay_s = FLEET_RETRY_S
            else:
                for name, problem in applied.problems.items():
                    log.error("Fleet object refused. object=%s problem=%s", name, problem)
                if applied.written:
                    log.info("Fleet objects applied. written=%s", ",".join(applied.written))
            await asyncio.sleep(delay_s)

    def live_problems(self) -> tuple[str, ...]:
        """What a restart would cure."""
        problems = [f"watch of {scope} misses changes" for scope in self.audit.dead_watches]
        # What waited for the lease or for the caches did not wait for the workers.
        age_s = min(self.queue.head_age_s(), self.leadership.held_for_s, self.audit.filled_for_s)
        if age_s > self.settings.stuck_after_s:
            problems.append(
                f"queue stands still: the oldest key waits for {age_s:.0f} s, "
                f"expected at most {self.settings.stuck_after_s:g} s"
            )
        return tuple(problems)

    def ready_problems(self) -> tuple[str, ...]:
        """What keeps this operator from being of use; a standby with filled caches is."""
        return tuple(f"first listing not complete: {kind}" for kind in self.cluster.filling)


def namespace_of(key: Key) -> str:
    """Group a key: namespaces take turns at the workers, and so do objects of the cluster as a whole."""
    return key.namespace


def build_operator(
    settings: OperatorSettings, load_access: AccessLoader, identity: str, random_source: random.Random
) -> Operator:
    """Wire the parts together; needs a running event loop, opens no connection."""
    clock = asyncio.get_running_loop().time
    client = KubernetesClient(load_access, settings.request_timeout_s)
    leadership = Leadership(clock)
    backoff = Backoff(settings.backoff_first_s, settings.backoff_longest_s)
    queue = AsyncKeyedQueue[Key](
        KeyedQueue(backoff, Rate(settings.reconciles_per_s, settings.reconcile_burst), group_of=namespace_of),
        clock,
        random_source.random,
    )
    parts: list[Operator] = []
    book = CostBook(settings.fleet.currency, _wall_clock)
    metrics = probes.Metrics(lambda: queue.depth, lambda: leadership.held)
    events = EventRecorder(
        client,
        component="windlass.dev/operator",
        instance=identity,
        clock=clock,
        wall_clock=_wall_clock,
        may_post=lambda: leadership.held,
    )
    cluster = KubernetesCluster(client, leadership, events, metrics.count_write)
    metrics.registry.register(GpuClassCollector(cluster.picture))
    metrics.registry.register(TenantCollector(cluster.picture))
    times = LeaseTimes(settings.lease_duration_s, settings.lease_renew_s, settings.lease_retry_s)
    elector = LeaderElector(
        client,
        leadership,
        namespace=settings.lease_namespace,
        name=settings.lease_name,
        identity=identity,
        times=times,
        clock=clock,
        wall_clock=_wall_clock,
        on_taken=lambda: parts[0].take_over(),
    )
    analyst = CanaryAnalyst(build_meter(settings), lambda key: parts[0].queue.add(key))
    workers = Workers(
        Reconciler(cluster, settings.fleet, _wall_clock, book, analyst),
        queue,
        may_work=lambda: parts[0].wait_for_work(),
        clock=clock,
        observe=lambda *done: parts[0].note_reconcile(*done),
    )
    metrics.registry.register(CanaryMetrics(cluster.picture))
    metrics.registry.register(CostMetrics(book, cluster.picture, settings.fleet.currency))
    costs = CostKeeper(
        book,
        cluster.picture,
        may_work=lambda: parts[0].wait_for_work(),
        wake=lambda key: queue.add(key, OTHERS_DELAY_S),
        interval_s=settings.usage_interval_s,
        clock=clock,
    )
    audit = WatchAudit(
        client,
        cluster,
        namespaces=settings.namespaces,
        times=AuditTimes(settings.audit_interval_s, min(AuditTimes().grace_s, settings.audit_interval_s)),
        on_change=lambda key: parts[0].wake(key),
        on_filled=lambda: parts[0].wake_all(0.0),
        clock=clock,
    )
    parts.append(
        Operator(
            settings,
            client,
            cluster,
            queue,
            leadership,
            elector,
            events,
            audit,
            workers,
            metrics,
            Discovery(client, settings.namespaces[0] if settings.namespaces else TRIAL_NAMESPACE),
            load_access,
            random_source.random,
            costs,
            analyst,
            _build_routes(settings, client, leadership, cluster, metrics, random_source, lambda: parts[0]),
        )
    )
    pod_metrics = PodMetrics(client)
    parts[0].activator = Activator(
        Gateways(lambda: _list_gateways(settings, client), settings.gateway_url),
        pod_metrics,
        cluster.scale,
        picture=cluster.picture,
        settings=settings.fleet,
        may_work=lambda: parts[0].wait_for_work(),
        clock=clock,
        wall_clock=_wall_clock,
    )
    parts[0].coldness = ColdnessKeeper(
        pod_metrics,
        cluster.set_deletion_cost,
        cluster.deletion_costs,
        picture=cluster.picture,
        may_work=lambda: parts[0].wait_for_work(),
        clock=clock,
    )
    return parts[0]


def _list_gateways(settings: OperatorSettings, client: KubernetesClient) -> AsyncIterator[dict[str, Any]]:
    return client.list_items(KINDS["Pod"].path(settings.fleet.gateway_namespace), GATEWAYS)


def build_meter(settings: OperatorSettings) -> Meter:
    """Return what measures canaries. Without a Prometheus nothing does, and canaries wait for their deadline."""
    if not settings.canary_prometheus_url:
        return NoMeter("no Prometheus is named (WINDLASS_CANARY_PROMETHEUS_URL), so there is no data")

    def locate(service: Key, canary: str) -> str:
        name = object_name(service.name, canary) if canary else service.name
        return settings.canary_probe_url.format(name=name, namespace=service.namespace)

    place = PrometheusPlace(
        settings.canary_prometheus_url,
        settings.canary_prometheus_token_file,
        settings.canary_prometheus_ca_file,
        settings.canary_prometheus_matchers,
        settings.canary_prometheus_namespace_label,
        settings.canary_prometheus_pod_label,
    )
    return PrometheusMeter(place, QualityProbe(locate), lambda: _wall_clock().timestamp())


def _build_routes(
    settings: OperatorSettings,
    client: KubernetesClient,
    leadership: Leadership,
    cluster: KubernetesCluster,
    metrics: probes.Metrics,
    random_source: random.Random,
    operator: Callable[[], Operator],
) -> RoutePublisher | None:
    if not settings.routes_secret:
        return None
    return RoutePublisher(
        RoutesSecret(client, leadership, settings.lease_namespace, settings.routes_secret),
        cluster.picture,
        may_work=lambda: operator().wait_for_work(),
        random=random_source.random,
        look_again_s=settings.resync_interval_s,
        count_write=metrics.count_write,
    )


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
            if operator.activator is not None:
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
            *_followers(operator),
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


def _followers(operator: Operator) -> list[tuple[str, Coroutine[Any, Any, None]]]:
    """Parts that follow the load."""
    found: list[tuple[str, Coroutine[Any, Any, None]]] = []
    if operator.activator is not None:
        found.append(("activation", operator.activator.run()))
    if operator.coldness is not None:
        found.append(("deletion costs", operator.coldness.run()))
    return found


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


def _wall_clock() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
