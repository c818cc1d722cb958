"""Which LocalQueue of Kueue pods wait in, and what the quota condition says of both quotas."""

from __future__ import annotations

from typing import Any

import pytest

from support.builders import build_service, build_snapshot, build_tenant
from windlass_operator.domain.capabilities import Capabilities
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.labels import QUEUE
from windlass_operator.domain.plan import plan_service
from windlass_operator.domain.queueing import judge_queue, plan_queue
from windlass_operator.domain.quota_report import QuotaVerdict
from windlass_operator.domain.snapshot import Snapshot, Workload
from windlass_operator.render.workload import render_service

KUEUE = Capabilities(known=True, kueue="kueue.x-k8s.io/v1beta2")
WITHIN = QuotaVerdict(True, "WithinNominal", "needs 1 x h200, has 1")
EXCEEDED = QuotaVerdict(False, "QuotaExceeded", "needs 1 x h200, has 0")


def service_of(queue: str = "") -> Any:
    service = build_service()
    labels = {QUEUE: queue} if queue else {}
    return service.model_copy(update={"metadata": service.metadata.model_copy(update={"labels": labels})})


def tenant_of(queue: str = "") -> Any:
    return build_tenant(local_queue=queue)


@pytest.mark.parametrize(
    ("own", "of_tenant", "chosen"),
    [
        pytest.param("", "", "", id="nobody names one"),
        pytest.param("", "gpu", "gpu", id="the tenant's"),
        pytest.param("mine", "", "mine", id="the service's"),
        pytest.param("mine", "gpu", "mine", id="the service's goes first"),
    ],
)
def test_the_queue_is_the_services_own_or_its_tenants(own: str, of_tenant: str, chosen: str) -> None:
    assert plan_queue(service_of(own), tenant_of(of_tenant), None, KUEUE).name == chosen


def test_a_cluster_without_kueue_has_no_queues_and_says_so() -> None:
    plan = plan_queue(service_of(), tenant_of("gpu"), None, Capabilities(known=True))

    assert plan.name == ""
    assert plan.decision is not None
    assert "serves no Workload of kueue.x-k8s.io" in plan.decision.reason


@pytest.mark.parametrize(
    ("runs", "wanted", "chosen", "says"),
    [
        pytest.param(Workload(queue="gpu", ready=1), "gpu", "gpu", "Kueue admits each pod", id="stays"),
        pytest.param(Workload(ready=1), "gpu", "", "set spec.suspend once", id="joins only when nothing is ready"),
        pytest.param(Workload(), "gpu", "gpu", "Kueue admits each pod", id="joins"),
        pytest.param(Workload(queue="a", ready=1), "b", "a", "set spec.suspend once", id="moves only then too"),
        pytest.param(Workload(queue="a"), "b", "b", "Kueue admits each pod", id="moves"),
        pytest.param(Workload(queue="a"), "", "a", "delete the Deployment", id="never leaves"),
    ],
)
def test_what_kueue_lets_no_deployment_do_is_not_tried(runs: Workload, wanted: str, chosen: str, says: str) -> None:
    plan = plan_queue(service_of(wanted), None, runs, KUEUE)

    assert plan.name == chosen
    assert plan.decision is not None
    assert says in plan.decision.reason


@pytest.mark.parametrize(
    ("runs", "own", "admitted", "reason"),
    [
        pytest.param(Workload(queue="gpu"), WITHIN, True, "QueueAdmitted", id="nothing waits"),
        pytest.param(Workload(queue="gpu", gated=2), WITHIN, False, "QueuePending", id="pods wait"),
        pytest.param(Workload(queue="gpu", gated=2), None, False, "QueuePending", id="without a quota of ours too"),
        pytest.param(Workload(queue="gpu", unqueued=1), WITHIN, True, "QueueIgnored", id="Kueue looks away"),
        pytest.param(Workload(queue="gpu", gated=2), EXCEEDED, False, "QuotaExceeded", id="ours refuses first"),
    ],
)
def test_both_quotas_have_to_admit(runs: Workload, own: QuotaVerdict | None, admitted: bool, reason: str) -> None:
    verdict = judge_queue("gpu", runs, own)

    assert verdict is not None
    assert (verdict.admitted, verdict.reason) == (admitted, reason)


def test_kueues_own_words_are_passed_on() -> None:
    verdict = judge_queue("gpu", Workload(gated=1, queue_words="insufficient unused quota"), WITHIN)

    assert verdict is not None
    assert verdict.message == "1 pod waits in LocalQueue gpu of Kueue: insufficient unused quota"


def test_without_a_queue_our_verdict_stands_alone() -> None:
    assert judge_queue("", Workload(), WITHIN) is WITHIN


def test_only_the_deployment_names_the_queue_so_that_leaving_kueue_restarts_nothing_by_our_hand() -> None:
    def deployment(queue: str) -> dict[str, Any]:
        service = service_of(queue)
        snapshot = Snapshot(build_snapshot(service).services, capabilities=KUEUE)
        children = render_service(plan_service(service, snapshot, FleetSettings()), FleetSettings())
        return next(item for item in children if item["kind"] == "Deployment")

    with_queue, without = deployment("gpu"), deployment("")

    assert with_queue["metadata"]["labels"].pop(QUEUE) == "gpu"
    assert with_queue == without
