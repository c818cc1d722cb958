"""The reconcile loop: observe -> plan -> render -> apply -> report, by level, through the Cluster protocol.

Knows no Kubernetes and no kopf. Workers take keys from the queue; what goes wrong decides when the key comes back:

  done                              when something changes, or at the next resync
  problems on single objects        in `problem_retry_s` (a quota may have been freed)
  RetryLater                        after its backoff, not before the server's Retry-After
  ClusterUnavailable, other errors  after its backoff
  InvalidInput                      when the object changes
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import enum
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final

from windlass_operator import errors
from windlass_operator.api.v1alpha1.cost import Cost
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.cluster.canary_meter import NoMeter
from windlass_operator.cluster.protocol import Applied, Cluster
from windlass_operator.domain import batch_plan, batch_status
from windlass_operator.domain import plan as planning
from windlass_operator.domain import status as reporting
from windlass_operator.domain.admission import key_of
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.fleet_view import Circle, FleetView, circle_of
from windlass_operator.domain.scaling import fallback_due_at
from windlass_operator.domain.snapshot import Key, Snapshot
from windlass_operator.reconcile.canary_analysis import CanaryAnalyst
from windlass_operator.reconcile.costs import CostBook
from windlass_operator.reconcile.keyed_queue import AsyncKeyedQueue, QueueClosed
from windlass_operator.reconcile.refusals import Refusals
from windlass_operator.render.batch import render_batch
from windlass_operator.render.planned import plan_rendered
from windlass_operator.render.tenant import render_tenant
from windlass_operator.render.workload import render_service

log = logging.getLogger(__name__)


class Result(enum.StrEnum):
    """How a reconcile ended; value of the `result` label."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"
    PROBLEMS = "problems"
    """The cluster refused single objects; the status names them."""
    GONE = "gone"
    RETRY = "retry"
    INVALID = "invalid"
    FAILED = "failed"


QUEUE_LOOK_S: Final = 15.0
"""Between two looks at why Kueue holds pods back; that it lets one go is an event of the pod."""


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What one reconcile did."""

    result: Result
    applied: Applied = field(default_factory=Applied)
    reported: bool = False
    again_in_s: float | None = None
    """When the same world will want something else; None: not by itself."""


class Reconciler:
    """Reconciles one key at a time. Holds nothing between calls but look-ups of the newest picture, and since when pods
    find no place.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: FleetSettings,
        wall_clock: Callable[[], datetime.datetime],
        costs: CostBook | None = None,
        analyst: CanaryAnalyst | None = None,
    ) -> None:
        """Without an analyst no canary is measured."""
        self._cluster = cluster
        self._costs = costs
        self._analyst = analyst or CanaryAnalyst(NoMeter("nobody measures canaries here"), lambda _: None)
        self._settings = settings
        self._wall_clock = wall_clock
        self._view = FleetView(Snapshot(), settings)
        self._device_turns = asyncio.Lock()
        """Held while a rollout takes a free device, until its claim is visible to the next one."""
        self._quota_turns: dict[Circle, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Held while a service takes more of the GPUs that its circle shares, until its Deployment is visible."""
        self._refusals = Refusals(wall_clock)

    async def reconcile(self, key: Key) -> Reconciliation:
        """Bring one object to its plan. Raises what the Cluster raises."""
        if key.kind == "InferenceService":
            return await self._reconcile_service(key)
        if key.kind == "Tenant":
            return await self._reconcile_tenant(key)
        if key.kind == "GPUClass":
            return await self._reconcile_gpu_class(key)
        if key.kind == "BatchInference":
            return await self._reconcile_batch(key)
        raise AssertionError(f"{key}: no reconciler for this kind")

    async def _reconcile_service(self, key: Key) -> Reconciliation:
        snapshot = await self._cluster.observe(key)
        service = snapshot.services.get(key)
        if service is None or service.metadata.deletion_timestamp:
            self._analyst.forget(key)
            self._refusals.forget(key)
            return Reconciliation(Result.GONE)
        now = self._wall_clock()
        service = self._analyst.advance(key, service, snapshot, now)
        plan = self._plan_service(service, snapshot, now)
        if plan.rollout.takes_device or plan.takes_quota:
            # One at a time: what the one before applied is in the next one's picture.
            async with self._turn(plan, snapshot):
                plan = self._plan_service(service, await self._cluster.observe(key), now)
                applied = await self._apply_service(plan)
        else:
            applied = await self._apply_service(plan)
        # Not the snapshot from before the apply: a status must tell of what was just written.
        after = await self._cluster.observe(key)
        workload = after.workloads.get(key)
        status = reporting.plan_service_status(plan, workload, service.status, self._now(), _texts(applied))
        status = status.model_copy(update={"cost": self._cost_of(key, after)})
        done = _conclude(applied, await self._cluster.report(key, reporting.status_document(status)))
        moments = [self._analyst.again_in_s(service, now), self._refusals.settles_in_s(key)]
        if workload is not None and workload.gated:
            moments.append(QUEUE_LOOK_S)
        # The status just written may be the first to tell of lost metrics, and its echo wakes nobody.
        for moment in (plan.plan_again_at, fallback_due_at(service.spec.scaling, status, now)):
            moments += [] if moment is None else [_seconds_until(moment, now)]
        return replace(done, again_in_s=min((moment for moment in moments if moment is not None), default=None))

    def _plan_service(
        self, service: InferenceService, snapshot: Snapshot, now: datetime.datetime
    ) -> planning.ServicePlan:
        waited_s = self._refusals.waited_s(key_of(service), snapshot)
        return plan_rendered(service, self._view_of(snapshot, now), waited_s)

    @contextlib.asynccontextmanager
    async def _turn(self, plan: planning.ServicePlan, snapshot: Snapshot) -> AsyncIterator[None]:
        """Let nobody else decide on the devices that a plan takes; always entered in the same order."""
        async with contextlib.AsyncExitStack() as turns:
            tenant = snapshot.tenants.get(plan.tenant)
            if plan.takes_quota and tenant is not None:
                await turns.enter_async_context(self._quota_turns[circle_of(tenant)])
            if plan.rollout.takes_device:
                await turns.enter_async_context(self._device_turns)
            yield

    async def _apply_service(self, plan: planning.ServicePlan) -> Applied:
        if plan.action is planning.Action.HOLD:
            return Applied()
        return await self._cluster.apply(plan.key, render_service(plan, self._settings))

    async def _reconcile_tenant(self, key: Key) -> Reconciliation:
        snapshot = await self._cluster.observe(key)
        tenant = snapshot.tenants.get(key.name)
        if tenant is None or tenant.metadata.deletion_timestamp:
            return Reconciliation(Result.GONE)
        plan = planning.plan_tenant_in_view(tenant, self._view_of(snapshot, self._wall_clock()))
        applied = await self._cluster.apply(key, render_tenant(plan, self._settings))
        status = reporting.plan_tenant_status(plan, tenant.status, self._now(), _texts(applied))
        status = status.model_copy(update={"cost": self._cost_of(key, snapshot)})
        return _conclude(applied, await self._cluster.report(key, reporting.status_document(status)))

    async def _reconcile_gpu_class(self, key: Key) -> Reconciliation:
        snapshot = await self._cluster.observe(key)
        gpu_class = snapshot.gpu_classes.get(key.name)
        if gpu_class is None or gpu_class.metadata.deletion_timestamp:
            return Reconciliation(Result.GONE)
        plan = planning.plan_gpu_class(gpu_class, snapshot)
        status = reporting.plan_gpu_class_status(plan, gpu_class.status, self._now())
        return _conclude(Applied(), await self._cluster.report(key, reporting.status_document(status)))

    async def _reconcile_batch(self, key: Key) -> Reconciliation:
        snapshot = await self._cluster.observe(key)
        batch = snapshot.batches.get(key)
        if batch is None or batch.metadata.deletion_timestamp:
            return Reconciliation(Result.GONE)
        now = self._wall_clock()
        plan = batch_plan.plan_batch(batch, self._view_of(snapshot, now))
        async with self._turn(plan.workers, snapshot):
            if plan.workers.takes_quota:
                plan = batch_plan.plan_batch(batch, self._view_of(await self._cluster.observe(key), now))
            applied = await self._apply_batch(plan)
        after = await self._cluster.observe(key)
        status = batch_status.plan_batch_status(
            plan, after.runs.get(key), after.workloads.get(key), batch.status, self._now(), _texts(applied)
        )
        done = _conclude(applied, await self._cluster.report(key, reporting.status_document(status)))
        # The status just written may be the first to tell of the end, and its echo wakes nobody.
        removed = plan.action is planning.Action.REMOVE
        moment = plan.plan_again_at or (None if removed else batch_plan.removal_due_at(status, batch.spec))
        return done if moment is None else replace(done, again_in_s=_seconds_until(moment, now))

    async def _apply_batch(self, plan: batch_plan.BatchPlan) -> Applied:
        if plan.action is planning.Action.HOLD:
            return Applied()
        return await self._cluster.apply(plan.key, render_batch(plan, self._settings))

    def _cost_of(self, key: Key, snapshot: Snapshot) -> Cost | None:
        return self._costs.renew(key, snapshot) if self._costs is not None else None

    def _view_of(self, snapshot: Snapshot, now: datetime.datetime) -> FleetView:
        """Keep the view while the picture stays: a restart plans every service from one and the same."""
        if self._view.observed is not snapshot or not self._view.advance_to(now):
            earlier, self._view = self._view, FleetView(snapshot, self._settings, now)
            self._view.inherit(earlier)
        return self._view

    def _now(self) -> str:
        return self._wall_clock().astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds_until(moment: datetime.datetime, now: datetime.datetime) -> float:
    return max(0.0, (moment - now).total_seconds())


def _texts(applied: Applied) -> tuple[str, ...]:
    return tuple(f"{name}: {problem}" for name, problem in sorted(applied.problems.items()))


def _conclude(applied: Applied, reported: bool) -> Reconciliation:
    if applied.problems:
        result = Result.PROBLEMS
    else:
        result = Result.CHANGED if applied.written or applied.pruned or reported else Result.UNCHANGED
    return Reconciliation(result, applied, reported)


Observe = Callable[[Key, Result, float], None]
"""Called after every reconcile with key, result and seconds."""


class Workers:
    """Takes keys from the queue and reconciles them; run `work` in as many tasks as should work at once."""

    def __init__(
        self,
        reconciler: Reconciler,
        queue: AsyncKeyedQueue[Key],
        *,
        may_work: Callable[[], Awaitable[None]],
        clock: Callable[[], float],
        observe: Observe,
        problem_retry_s: float = 60.0,
    ) -> None:
        self._reconciler = reconciler
        self._queue = queue
        self._may_work = may_work
        self._clock = clock
        self._observe = observe
        self._problem_retry_s = problem_retry_s

    async def work(self) -> None:
        """Work until the queue closes. A standby waits for the lease before it takes a key."""
        while True:
            try:
                await self._may_work()
                key = await self._queue.take()
            except QueueClosed:
                return
            await self._run_one(key)

    async def _run_one(self, key: Key) -> None:
        started = self._clock()
        settled = False
        try:
            result = await self._attempt(key)
            settled = True
        finally:
            if not settled:  # cancelled: the key must not stay busy for ever
                self._queue.retry(key)
        self._observe(key, result, self._clock() - started)

    async def _attempt(self, key: Key) -> Result:
        try:
            done = await self._reconciler.reconcile(key)
        except errors.RetryLater as exc:
            delay = self._queue.retry(key, exc.after_s)
            log.info("Retrying later. key=%s in_s=%.1f reason=%s", key, delay, exc)
            return Result.RETRY
        except errors.InvalidInput as exc:
            self._queue.done(key)
            log.warning("Not readable; waiting for a change. key=%s problem=%s", key, exc.problems[0])
            return Result.INVALID
        except errors.WindlassError as exc:
            delay = self._queue.retry(key)
            log.warning("Reconcile failed. key=%s in_s=%.1f error=%s", key, delay, exc)
            return Result.FAILED
        except Exception:
            # The main loop: a bug met by one object must not stop the reconciling of all the others.
            delay = self._queue.retry(key)
            log.exception("Reconcile failed by a bug. key=%s in_s=%.1f", key, delay)
            return Result.FAILED
        self._finish(key, done)
        return done.result

    def _finish(self, key: Key, done: Reconciliation) -> None:
        self._queue.done(key)
        if done.result is Result.GONE:
            self._queue.forget(key)
        if done.result is Result.PROBLEMS:
            self._queue.add(key, self._problem_retry_s)
        if done.again_in_s is not None:
            self._queue.add(key, done.again_in_s)
        if done.result in (Result.CHANGED, Result.PROBLEMS):
            log.info(
                "Reconciled. key=%s written=%s pruned=%s problems=%s status=%s",
                key,
                ",".join(done.applied.written) or "-",
                ",".join(done.applied.pruned) or "-",
                "; ".join(_texts(done.applied)) or "-",
                "written" if done.reported else "same",
            )
