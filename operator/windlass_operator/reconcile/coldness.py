"""Let the coldest pod go first: keep the deletion costs of pods in the order of what would be lost with them.

Only of services whose autoscaler is about to shrink, only when the order changed, and each at most every half minute:
a cost that is written is an update of a pod.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from windlass_contract import metric_names
from windlass_operator import errors
from windlass_operator.cluster.pod_metrics import PodMetrics
from windlass_operator.domain.activation import PodLoad, plan_deletion_costs
from windlass_operator.domain.snapshot import Key, Snapshot, Workload
from windlass_operator.reconcile.rounds import look_for_ever

log = logging.getLogger(__name__)

LOOK_S: Final = 5.0
PAUSE_S: Final = 30.0
"""Between two looks at one service."""
SERVICES_AT_ONCE: Final = 50
"""Services that are looked at in one round; the others wait for the next."""

SetCost = Callable[[Key, str, int], Awaitable[None]]
"""Writes the deletion cost of one pod of a service."""
Costs = Callable[[Key], dict[str, int]]
"""Deletion costs that the pods of a service have now."""


class ColdnessKeeper:
    """Run `run` as one task."""

    def __init__(
        self,
        metrics: PodMetrics,
        set_cost: SetCost,
        costs: Costs,
        *,
        picture: Callable[[], Snapshot],
        may_work: Callable[[], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._metrics, self._set_cost, self._costs = metrics, set_cost, costs
        self._picture, self._may_work, self._clock = picture, may_work, clock
        self._looked_at: dict[Key, float] = {}

    async def run(self) -> None:
        """Look for ever, while leading."""
        await look_for_ever("deletion costs", self.look, may_work=self._may_work, pause_s=LOOK_S)

    async def look(self) -> None:
        """Look once at the services that shrink soon."""
        picture, now_s = self._picture(), self._clock()
        self._looked_at = {key: at_s for key, at_s in self._looked_at.items() if now_s - at_s < PAUSE_S}
        near = [key for key in shrinking_soon(picture.workloads.items()) if key not in self._looked_at]
        for key in near[:SERVICES_AT_ONCE]:
            self._looked_at[key] = now_s
            try:
                await self._keep(key)
            except errors.WindlassError as exc:
                # Without costs Kubernetes picks by its own rules: nothing is lost that was promised.
                log.info("Deletion costs not kept. key=%s error=%s", key, exc)

    async def _keep(self, key: Key) -> None:
        running = await self._metrics.read(key.namespace, key.name, metric_names.REQUESTS_RUNNING)
        cache_use = await self._metrics.read(key.namespace, key.name, metric_names.KV_USE_RATIO)
        costs = self._costs(key)
        # Pods without a value are left alone: what they run is not known.
        loads = {pod: PodLoad(running[pod], cache_use.get(pod, 0.0)) for pod in costs if pod in running}
        written = plan_deletion_costs(loads, costs)
        for pod, cost in written.items():
            await self._set_cost(key, pod, cost)
        if written:
            log.info("Deletion costs follow the load. key=%s written=%d of=%d", key, len(written), len(loads))


def shrinking_soon(workloads: Iterable[tuple[Key, Workload]]) -> list[Key]:
    """Services whose autoscaler wants fewer replicas and waits for the delay to pass."""
    return sorted(key for key, workload in workloads if workload.shrinks_soon and workload.ready > 1)
