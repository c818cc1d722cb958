"""Scale to zero on one machine: wake services that the gateway holds requests for, and stop them when nobody asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import aiohttp

from windlass_contract.endpoints import METRICS_PATH
from windlass_operator.cluster.gateways import Demand, add_up, parse_demand
from windlass_operator.cluster.local import LocalCluster
from windlass_operator.domain.activation import plan_activation
from windlass_operator.domain.routes import hold_of
from windlass_operator.domain.scaling import ScalingPlan, Sleep, requests_per_replica
from windlass_operator.domain.snapshot import Key

_log = logging.getLogger(__name__)

LOOK_S: Final = 0.5
TIMEOUT_S: Final = 2.0


class LocalActivator:
    """Run `run` as one task."""

    def __init__(self, cluster: LocalCluster, gateway_url: Callable[[], str], clock: Callable[[], float]) -> None:
        self._cluster, self._gateway_url, self._clock = cluster, gateway_url, clock
        self._idle_since_s: dict[Key, float | None] = {}

    async def run(self) -> None:
        """Look for ever."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
            while True:
                await asyncio.sleep(LOOK_S)
                sleepers = plan_sleepers(self._cluster)
                if sleepers and self._gateway_url():
                    self.decide(sleepers, await self._read(session))

    def decide(self, sleepers: dict[Key, ScalingPlan], demand: Demand) -> None:
        """Wake and stop services by what the gateway is asked for."""
        for key, scaling in sleepers.items():
            asked = None if demand.missing else demand.of(key.namespace, key.name)
            awake = self._cluster.awake(key)
            done = plan_activation(scaling, awake, asked, self._idle_since_s.get(key), self._clock())
            self._idle_since_s[key] = done.idle_since_s
            if done.replicas is not None:
                words = "Falls asleep." if awake else "Wakes."
                _log.info("%s key=%s replicas=%d reason=%s", words, key, done.replicas, done.reason)
                self._cluster.keep_awake(key, done.replicas)
            elif awake > 1 and done.idle_since_s is not None:
                # There is no autoscaler here that would take all but the last away.
                self._cluster.keep_awake(key, 1)

    async def _read(self, session: aiohttp.ClientSession) -> Demand:
        try:
            async with session.get(self._gateway_url() + METRICS_PATH) as answer:
                answer.raise_for_status()
                return add_up([parse_demand(await answer.text())])
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return add_up([None])


def plan_sleepers(cluster: LocalCluster) -> dict[Key, ScalingPlan]:
    """Services that may have no replica."""
    found = {}
    for key, service in cluster.loaded_services().items():
        scaling = service.spec.scaling
        if scaling is not None and scaling.min_replicas == 0 and hold_of(service) is not None:
            found[key] = ScalingPlan(
                0,
                scaling.max_replicas,
                tuple(scaling.metrics),
                scaling.scale_down_delay_seconds,
                sleep=Sleep.OPERATOR,
                requests_per_replica=requests_per_replica(scaling, service.spec.limits.max_running_requests),
            )
    return found
