"""The parts of a running operator, and what connects them: events wake keys, leadership lets parts work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from windlass_operator import errors
from windlass_operator.cluster.kubernetes import KubernetesCluster
from windlass_operator.cluster.kubernetes_access import AccessLoader
from windlass_operator.cluster.kubernetes_audit import WatchAudit
from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.cluster.kubernetes_discovery import Discovery
from windlass_operator.cluster.kubernetes_events import EventRecorder
from windlass_operator.cluster.kubernetes_kinds import SUPPLY
from windlass_operator.cluster.kubernetes_lease import LeaderElector, Leadership
from windlass_operator.domain.snapshot import Key, Snapshot
from windlass_operator.reconcile import probes
from windlass_operator.reconcile.activation import Activator
from windlass_operator.reconcile.canary_analysis import CanaryAnalyst
from windlass_operator.reconcile.coldness import ColdnessKeeper
from windlass_operator.reconcile.costs import CostKeeper
from windlass_operator.reconcile.keyed_queue import AsyncKeyedQueue
from windlass_operator.reconcile.reconciler import Result, Workers
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


@dataclass
class Operator:
    """Every part of a running operator. Build with `assembly.build_operator`."""

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
    activator: Activator
    coldness: ColdnessKeeper
    routes: RoutePublisher | None = None
    """None: there is no gateway."""
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
        if key.kind not in SUPPLY:
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
        keys = [*picture.services, *picture.batches, *(Key("Tenant", "", name) for name in picture.tenants)]
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
