"""Build the parts of an operator from its settings. Called by `process`.

Needs a running event loop, opens no connection.
"""

from __future__ import annotations

import asyncio
import datetime
import random
from collections.abc import AsyncIterator
from typing import Any

from windlass_operator.cluster.canary_meter import Meter, NoMeter
from windlass_operator.cluster.gateways import SELECTOR as GATEWAYS
from windlass_operator.cluster.gateways import Gateways
from windlass_operator.cluster.kubernetes import KubernetesCluster
from windlass_operator.cluster.kubernetes_access import AccessLoader
from windlass_operator.cluster.kubernetes_audit import AuditTimes, WatchAudit
from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.cluster.kubernetes_discovery import TRIAL_NAMESPACE, Discovery
from windlass_operator.cluster.kubernetes_events import EventRecorder
from windlass_operator.cluster.kubernetes_kinds import KINDS
from windlass_operator.cluster.kubernetes_lease import LeaderElector, Leadership, LeaseTimes
from windlass_operator.cluster.kubernetes_routes import RoutesSecret
from windlass_operator.cluster.pod_metrics import PodMetrics
from windlass_operator.cluster.prometheus_meter import PrometheusMeter, PrometheusPlace
from windlass_operator.cluster.quality_probe import QualityProbe
from windlass_operator.domain.canary_plan import object_name
from windlass_operator.domain.snapshot import Key
from windlass_operator.reconcile import probes
from windlass_operator.reconcile.activation import Activator
from windlass_operator.reconcile.canary_analysis import CanaryAnalyst
from windlass_operator.reconcile.canary_metrics import CanaryMetrics
from windlass_operator.reconcile.coldness import ColdnessKeeper
from windlass_operator.reconcile.costs import CostBook, CostKeeper, CostMetrics
from windlass_operator.reconcile.fleet_metrics import GpuClassCollector, TenantCollector
from windlass_operator.reconcile.keyed_queue import AsyncKeyedQueue, Backoff, KeyedQueue, Rate
from windlass_operator.reconcile.parts import OTHERS_DELAY_S, Operator
from windlass_operator.reconcile.reconciler import Reconciler, Workers
from windlass_operator.reconcile.routes import RoutePublisher
from windlass_operator.settings import OperatorSettings


def namespace_of(key: Key) -> str:
    """Group a key: namespaces take turns at the workers, and so do objects of the cluster as a whole."""
    return key.namespace


def build_operator(
    settings: OperatorSettings, load_access: AccessLoader, identity: str, random_source: random.Random
) -> Operator:
    """Wire the parts together."""
    return _Assembly(settings, load_access, identity, random_source).build()


class _Assembly:
    """What parts have in common while they are built. `operator` is there before any of them runs."""

    operator: Operator

    def __init__(
        self, settings: OperatorSettings, load_access: AccessLoader, identity: str, random_source: random.Random
    ) -> None:
        self.settings, self.load_access, self.identity, self.random = settings, load_access, identity, random_source
        self.clock = asyncio.get_running_loop().time
        self.client = KubernetesClient(load_access, settings.request_timeout_s)
        self.leadership = Leadership(self.clock)
        self.queue = self._build_queue()
        self.metrics = probes.Metrics(lambda: self.queue.depth, lambda: self.leadership.held)
        self.events = self._build_events()
        self.cluster = KubernetesCluster(self.client, self.leadership, self.events, self.metrics.count_write)
        self.book = CostBook(settings.fleet.currency, wall_clock)
        self.pod_metrics = PodMetrics(self.client)

    def build(self) -> Operator:
        settings = self.settings
        analyst = CanaryAnalyst(build_meter(settings), lambda key: self.queue.add(key))
        self._register_metrics()
        self.operator = Operator(
            settings,
            self.client,
            self.cluster,
            self.queue,
            self.leadership,
            self._build_elector(),
            self.events,
            self._build_audit(),
            self._build_workers(analyst),
            self.metrics,
            Discovery(self.client, settings.namespaces[0] if settings.namespaces else TRIAL_NAMESPACE),
            self.load_access,
            self.random.random,
            self._build_costs(),
            analyst,
            self._build_activator(),
            self._build_coldness(),
            self._build_routes() if settings.routes_secret else None,
        )
        return self.operator

    async def _may_work(self) -> None:
        await self.operator.wait_for_work()

    def _build_queue(self) -> AsyncKeyedQueue[Key]:
        settings = self.settings
        backoff = Backoff(settings.backoff_first_s, settings.backoff_longest_s)
        rate = Rate(settings.reconciles_per_s, settings.reconcile_burst)
        return AsyncKeyedQueue(KeyedQueue(backoff, rate, group_of=namespace_of), self.clock, self.random.random)

    def _build_events(self) -> EventRecorder:
        return EventRecorder(
            self.client,
            component="windlass.dev/operator",
            instance=self.identity,
            clock=self.clock,
            wall_clock=wall_clock,
            may_post=lambda: self.leadership.held,
        )

    def _register_metrics(self) -> None:
        picture, register = self.cluster.picture, self.metrics.registry.register
        register(GpuClassCollector(picture))
        register(TenantCollector(picture))
        register(CanaryMetrics(picture))
        register(CostMetrics(self.book, picture, self.settings.fleet.currency))

    def _build_elector(self) -> LeaderElector:
        settings = self.settings
        return LeaderElector(
            self.client,
            self.leadership,
            namespace=settings.lease_namespace,
            name=settings.lease_name,
            identity=self.identity,
            times=LeaseTimes(settings.lease_duration_s, settings.lease_renew_s, settings.lease_retry_s),
            clock=self.clock,
            wall_clock=wall_clock,
            on_taken=lambda: self.operator.take_over(),
        )

    def _build_audit(self) -> WatchAudit:
        settings = self.settings
        return WatchAudit(
            self.client,
            self.cluster,
            namespaces=settings.namespaces,
            times=AuditTimes(settings.audit_interval_s, min(AuditTimes().grace_s, settings.audit_interval_s)),
            on_change=lambda key: self.operator.wake(key),
            on_filled=lambda: self.operator.wake_all(0.0),
            clock=self.clock,
        )

    def _build_workers(self, analyst: CanaryAnalyst) -> Workers:
        return Workers(
            Reconciler(self.cluster, self.settings.fleet, wall_clock, self.book, analyst),
            self.queue,
            may_work=self._may_work,
            clock=self.clock,
            observe=lambda *done: self.operator.note_reconcile(*done),
        )

    def _build_costs(self) -> CostKeeper:
        return CostKeeper(
            self.book,
            self.cluster.picture,
            may_work=self._may_work,
            wake=lambda key: self.queue.add(key, OTHERS_DELAY_S),
            interval_s=self.settings.usage_interval_s,
            clock=self.clock,
        )

    def _build_activator(self) -> Activator:
        return Activator(
            Gateways(self._list_gateways, self.settings.gateway_url),
            self.pod_metrics,
            self.cluster.scale,
            picture=self.cluster.picture,
            settings=self.settings.fleet,
            may_work=self._may_work,
            clock=self.clock,
            wall_clock=wall_clock,
        )

    def _list_gateways(self) -> AsyncIterator[dict[str, Any]]:
        return self.client.list_items(KINDS["Pod"].path(self.settings.fleet.gateway_namespace), GATEWAYS)

    def _build_coldness(self) -> ColdnessKeeper:
        return ColdnessKeeper(
            self.pod_metrics,
            self.cluster.set_deletion_cost,
            self.cluster.deletion_costs,
            picture=self.cluster.picture,
            may_work=self._may_work,
            clock=self.clock,
        )

    def _build_routes(self) -> RoutePublisher:
        settings = self.settings
        return RoutePublisher(
            RoutesSecret(self.client, self.leadership, settings.lease_namespace, settings.routes_secret),
            self.cluster.picture,
            may_work=self._may_work,
            random=self.random.random,
            look_again_s=settings.resync_interval_s,
            count_write=self.metrics.count_write,
        )


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
    return PrometheusMeter(place, QualityProbe(locate), lambda: wall_clock().timestamp())


def wall_clock() -> datetime.datetime:
    """The time of day, for people and other processes."""
    return datetime.datetime.now(datetime.UTC)
