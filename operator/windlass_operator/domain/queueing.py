"""Decide which LocalQueue of Kueue a service's pods wait in, and put what Kueue says into words. Pure.

Kueue and our quota both apply. The planner never asks for more pods than the Tenant's quota allows; Kueue holds each of
them behind a scheduling gate until its ClusterQueue has room. Neither has to know of the other, so a Kueue that does
not manage these pods never lets a tenant past its quota. Where Kueue alone should decide, `nominal` is set to the most
that its queues ever give.

Kueue lets a Deployment join or change its queue while no replica is ready, and never lets it leave.
"""

from __future__ import annotations

from dataclasses import dataclass

from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.batch_workers import BatchWorkers
from windlass_operator.domain.capabilities import Capabilities
from windlass_operator.domain.decision import Decision, decide
from windlass_operator.domain.labels import QUEUE
from windlass_operator.domain.quota_report import QuotaVerdict
from windlass_operator.domain.snapshot import Workload


@dataclass(frozen=True, slots=True)
class QueuePlan:
    """Which queue, and why."""

    name: str = ""
    """LocalQueue in the namespace of the service; empty: Kueue is not asked."""
    decision: Decision | None = None
    """None where nobody names a queue and none is in use."""


NO_QUEUE = QueuePlan()


def plan_queue(
    service: InferenceService, tenant: Tenant | None, runs: Workload | None, capabilities: Capabilities
) -> QueuePlan:
    """Choose the queue: the service's own label, else its Tenant's. `runs` is None while there is no Deployment."""
    wanted, reason = _wanted(service, tenant)
    if capabilities.known and not capabilities.kueue:
        missing = f"{reason}, but the cluster serves no Workload of kueue.x-k8s.io: only the Tenant's quota applies"
        return QueuePlan("", decide("queue", "none", missing)) if wanted else NO_QUEUE
    if not capabilities.kueue:
        return NO_QUEUE
    if isinstance(service, BatchWorkers):
        aside = f"{reason}, but batches are not queued: Kueue and the Tenant's quota would both suspend the Job"
        return QueuePlan("", decide("queue", "none", aside)) if wanted else NO_QUEUE
    held = "" if runs is None else runs.queue
    if held == wanted or runs is None or (wanted and not runs.ready):
        return QueuePlan(wanted, decide("queue", wanted, f"{reason}; Kueue admits each pod")) if wanted else NO_QUEUE
    if not wanted:
        stays = "nobody names a queue any more, but Kueue lets no Deployment leave one: delete the Deployment to leave"
        return QueuePlan(held, decide("queue", held, stays))
    waits = (
        f"{reason}, {wanted}, but Kueue lets no Deployment join or change a queue while a replica is ready: "
        "set spec.suspend once to move"
    )
    return QueuePlan(held, decide("queue", held or "none", waits))


def judge_queue(queue: str, runs: Workload, own: QuotaVerdict | None) -> QuotaVerdict | None:
    """What `QuotaAdmitted` says of both: `own` is our verdict, None where no quota of ours applies."""
    if not queue or (own is not None and not own.admitted):
        return own
    ours = f"; {own.message}" if own is not None else ""
    where = f"LocalQueue {queue} of Kueue"
    if runs.gated:
        said = f": {runs.queue_words}" if runs.queue_words else ""
        return QuotaVerdict(False, "QueuePending", f"{_pods(runs.gated)} in {where}{said}")
    if runs.unqueued:
        ignored = f"{where} is named, but Kueue does not manage {runs.unqueued} of the pods"
        return QuotaVerdict(True, "QueueIgnored", f"{ignored}: turn on its integration `deployment`{ours}")
    return QuotaVerdict(True, "QueueAdmitted", f"no pod waits in {where}{ours}")


def _pods(count: int) -> str:
    return "1 pod waits" if count == 1 else f"{count} pods wait"


def _wanted(service: InferenceService, tenant: Tenant | None) -> tuple[str, str]:
    own = service.metadata.labels.get(QUEUE, "")
    if own:
        return own, f"the service's label {QUEUE} names it"
    if tenant is not None and tenant.spec.local_queue:
        return tenant.spec.local_queue, f"Tenant {tenant.metadata.name} names it"
    return "", ""
