"""Wake services that sleep, and put those to sleep that no autoscaler can: a look at the gateways every second.

Only while some service may sleep. Where an autoscaler goes to zero by itself it also wakes by itself, but looks four
times a minute; waking is done here for both, because a request waits.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from windlass_contract import metric_names
from windlass_operator import errors
from windlass_operator.cluster.gateways import Demand, Gateways
from windlass_operator.cluster.pod_metrics import PodMetrics
from windlass_operator.domain import plan as planning
from windlass_operator.domain.activation import Activation, plan_activation
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.fleet_view import FleetView
from windlass_operator.domain.scaling import ScalingPlan, Sleep
from windlass_operator.domain.schedule import lowest_minimum
from windlass_operator.domain.snapshot import Key, Snapshot, Workload
from windlass_operator.reconcile.rounds import look_for_ever

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
REPLICAS_LOOK_S: Final = 10.0
"""Between two questions to the replicas of a service whose gateways are quiet."""
PLAN_AGAIN_S: Final = 30.0
BUSY: Final = (metric_names.REQUESTS_RUNNING, metric_names.REQUESTS_WAITING)

Scale = Callable[[Key, int], Awaitable[None]]
"""Sets the number of replicas of a service's Deployment."""


@dataclass(frozen=True, slots=True)
class Sleeper:
    """A service that may sleep."""

    key: Key
    scaling: ScalingPlan


@dataclass(frozen=True, slots=True)
class _Quiet:
    """What is remembered of a service while it is idle."""

    idle_since_s: float | None = None
    asked_at_s: float = float("-inf")


class Activator:
    """Run `run` as one task."""

    def __init__(
        self,
        gateways: Gateways,
        metrics: PodMetrics,
        scale: Scale,
        *,
        picture: Callable[[], Snapshot],
        settings: FleetSettings,
        may_work: Callable[[], Awaitable[None]],
        clock: Callable[[], float],
        wall_clock: Callable[[], datetime.datetime],
    ) -> None:
        self._gateways, self._metrics, self._scale = gateways, metrics, scale
        self._picture, self._settings, self._may_work = picture, settings, may_work
        self._clock, self._wall_clock = clock, wall_clock
        self._quiet: dict[Key, _Quiet] = {}
        self._sleepers: tuple[Sleeper, ...] = ()
        self._planned_from: tuple[Snapshot | None, float] = (None, float("-inf"))

    async def run(self) -> None:
        """Look for ever, while leading."""
        await look_for_ever("sleeping services", self.look, may_work=self._may_work, pause_s=LOOK_S)

    async def close(self) -> None:
        """Close the connections to gateways."""
        await self._gateways.close()

    async def look(self) -> None:
        """Look once. Raises RetryLater and ClusterUnavailable."""
        picture = self._picture()
        sleepers = self._plan_sleepers(picture)
        self._quiet = {key: quiet for key, quiet in self._quiet.items() if key in {item.key for item in sleepers}}
        if not sleepers:
            return
        demand = await self._gateways.read()
        for sleeper in sleepers:
            workload = picture.workloads.get(sleeper.key)
            if workload is not None:
                await self._activate(sleeper, workload, demand)

    def _plan_sleepers(self, picture: Snapshot) -> tuple[Sleeper, ...]:
        """Plan again when the picture is another one, and now and then for schedules."""
        known, at_s = self._planned_from
        if known is not picture or self._clock() - at_s > PLAN_AGAIN_S:
            self._sleepers = tuple(plan_sleepers(picture, self._settings, self._wall_clock()))
            self._planned_from = (picture, self._clock())
        return self._sleepers

    async def _activate(self, sleeper: Sleeper, workload: Workload, demand: Demand) -> None:
        key, now_s = sleeper.key, self._clock()
        quiet = self._quiet.get(key, _Quiet())
        asked = demand.of(key.namespace, key.name)
        known: float | None = asked
        asked_at_s = quiet.asked_at_s
        if workload.wanted > 0 and asked == 0 and sleeper.scaling.sleep is Sleep.OPERATOR:
            if now_s - asked_at_s < REPLICAS_LOOK_S:
                return
            known, asked_at_s = await self._ask_replicas(key, workload, demand), now_s
        done = plan_activation(sleeper.scaling, workload.wanted, known, quiet.idle_since_s, now_s)
        self._quiet[key] = _Quiet(done.idle_since_s, asked_at_s)
        if done.replicas is not None:
            await self._carry_out(key, done)

    async def _ask_replicas(self, key: Key, workload: Workload, demand: Demand) -> float | None:
        """Requests that reached replicas by another way; None where a gateway or a replica is not heard, or where no
        gateway runs that could wake the service again.
        """
        if demand.missing or demand.asked == 0:
            return None
        try:
            values = [await self._metrics.read(key.namespace, key.name, metric) for metric in BUSY]
        except errors.WindlassError as exc:
            log.info("A service stays awake, because its replicas are not heard. key=%s error=%s", key, exc)
            return None
        if any(len(found) < workload.ready for found in values):
            return None
        return sum(sum(found.values()) for found in values)

    async def _carry_out(self, key: Key, done: Activation) -> None:
        assert done.replicas is not None
        await self._scale(key, done.replicas)
        words = "Falls asleep." if done.replicas == 0 else "Wakes."
        log.info("%s key=%s replicas=%d reason=%s", words, key, done.replicas, done.reason)


def plan_sleepers(picture: Snapshot, settings: FleetSettings, now: datetime.datetime) -> list[Sleeper]:
    """Services that may have no replica now. KEDA does all of it by itself."""
    candidates: Mapping[Key, object] = {
        key: service
        for key, service in picture.services.items()
        if service.spec.scaling is not None and lowest_minimum(service.spec.scaling) == 0
    }
    if not candidates:
        return []
    view = FleetView(picture, settings, now)
    plans = [planning.plan_in_view(picture.services[key], view) for key in sorted(candidates)]
    return [
        Sleeper(plan.key, plan.scaling)
        for plan in plans
        if plan.runnable and plan.scaling is not None and plan.scaling.sleep in (Sleep.AUTOSCALER, Sleep.OPERATOR)
    ]
