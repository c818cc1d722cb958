"""The status contract: one summary, parts that explain it, abnormal conditions only while abnormal, no idle writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.builders import build_gpu_class, build_node, build_service, build_snapshot, build_tenant, build_workload
from windlass_operator.api.v1alpha1.gpu_class import GPUClassStatus
from windlass_operator.api.v1alpha1.inference_service import Failure, InferenceServiceStatus
from windlass_operator.api.v1alpha1.tenant import TenantStatus
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_gpu_class, plan_service, plan_tenant
from windlass_operator.domain.snapshot import Revision, Workload
from windlass_operator.domain.status import (
    plan_gpu_class_status,
    plan_service_status,
    plan_tenant_status,
    status_document,
)

SETTINGS = FleetSettings()
NOW, LATER = "2026-03-01T10:00:00Z", "2026-03-01T11:00:00Z"
EMPTY = InferenceServiceStatus()
SCALED = {"scaling": {"minReplicas": 2, "maxReplicas": 8}}


def report(
    workload: Workload | None = None,
    previous: InferenceServiceStatus = EMPTY,
    now: str = NOW,
    problems=(),
    world=(),
    devices: int = 8,
    others=None,
    **fields,
):
    service = build_service(**{"generation": 7, **fields})
    runs = {} if workload is None else {"team-a/chat": workload}
    nodes = [build_node(devices=devices)]
    runs |= others or {}
    plan = plan_service(
        service, build_snapshot(service, build_gpu_class(), *world, nodes=nodes, workloads=runs), SETTINGS
    )
    return plan_service_status(plan, workload, previous, now, problems)


def conditions(status) -> dict[str, tuple[str, str]]:
    return {condition.type: (condition.status, condition.reason) for condition in status.conditions}


def message(status, kind: str) -> str:
    return next(condition.message for condition in status.conditions if condition.type == kind)


@pytest.mark.parametrize(
    ("fields", "workload", "ready", "extra"),
    [
        pytest.param({}, None, ("False", "RollingOut"), "Reconciling", id="nothing runs yet"),
        pytest.param(
            {"replicas": 2}, build_workload(2), ("True", "ReplicasReady"), None, id="all of the newest revision ready"
        ),
        pytest.param(
            {"replicas": 2},
            build_workload(2, updated=1, updated_ready=1),
            ("False", "RollingOut"),
            "Reconciling",
            id="old pods satisfy the count, the new revision does not",
        ),
        pytest.param(
            {"replicas": 2},
            build_workload(2, updated=2, updated_ready=1),
            ("False", "ReplicasNotReady"),
            "Reconciling",
            id="a new pod exists and is not ready",
        ),
        pytest.param(
            {"replicas": 2},
            build_workload(2, observed=False),
            ("False", "RollingOut"),
            "Reconciling",
            id="the figures are of an older template",
        ),
        pytest.param({"replicas": 3}, build_workload(2), ("False", "RollingOut"), "Reconciling", id="not yet scaled"),
        pytest.param(
            {"replicas": 2},
            build_workload(2, updated_ready=1, pending_reason="0/4 nodes are available"),
            ("False", "PodsPending"),
            "Reconciling",
            id="the scheduler has no room",
        ),
        pytest.param(
            {},
            build_workload(
                0, updated=1, wanted=1, last_failure=Failure(reason="OOMKilled", pod="chat-1", exit_code=137)
            ),
            ("False", "ReplicaFailed"),
            "Reconciling",
            id="a replica fails",
        ),
        pytest.param({"suspend": True}, build_workload(0), ("True", "Suspended"), None, id="suspended and gone"),
        pytest.param(
            {"suspend": True}, build_workload(1), ("False", "Draining"), "Reconciling", id="suspended, still draining"
        ),
        pytest.param({"replicas": 0}, build_workload(0), ("True", "ScaledToZero"), None, id="zero replicas asked for"),
        pytest.param(SCALED, build_workload(3), ("True", "ReplicasReady"), None, id="autoscaled within its range"),
        pytest.param(
            SCALED,
            build_workload(3, replicas=5, updated=5, wanted=5),
            ("True", "ReplicasReady"),
            None,
            id="growing with demand is no trouble",
        ),
        pytest.param(
            SCALED,
            build_workload(1),
            ("False", "ReplicasNotReady"),
            "Reconciling",
            id="the autoscaler has not acted yet",
        ),
        pytest.param(
            SCALED,
            build_workload(3, updated=1, updated_ready=1),
            ("False", "RollingOut"),
            "Reconciling",
            id="autoscaled, rolling out",
        ),
        pytest.param(
            SCALED,
            build_workload(4, updated=2, updated_ready=2),
            ("False", "RollingOut"),
            "Reconciling",
            id="autoscaled, the new revision has its minimum but not yet its share",
        ),
        pytest.param({"classes": ["gone"]}, None, ("False", "UnknownGPUClass"), "Stalled", id="refused"),
        pytest.param(
            {"classes": ["gone"]},
            build_workload(2, gpu_class="h200"),
            ("False", "UnknownGPUClass"),
            "Stalled",
            id="refused while an old revision runs",
        ),
    ],
)
def test_ready_means_the_newest_revision_is_as_the_spec_says(fields, workload, ready, extra):
    found = conditions(report(workload, **fields))

    assert found["Ready"] == ready
    assert {kind for kind in found if kind in ("Reconciling", "Stalled")} == ({extra} if extra else set())


FAILURE = Failure(reason="Error", pod="chat-1", exit_code=1, message="no such checkpoint")


@pytest.mark.parametrize(
    ("workload", "reason", "extra"),
    [
        pytest.param({"last_failure": FAILURE, "restarts": 4}, "ReplicaFailed", "Reconciling", id="it may recover"),
        pytest.param({"last_failure": FAILURE, "restarts": 5}, "ReplicaFailed", "Stalled", id="it has been tried"),
        pytest.param({"last_failure": FAILURE, "overdue": True}, "ReplicaFailed", "Stalled", id="it takes too long"),
        pytest.param({"pending_reason": "ImagePullBackOff"}, "PodsPending", "Reconciling", id="an image"),
        pytest.param(
            {"pending_reason": "ImagePullBackOff", "overdue": True}, "PodsPending", "Stalled", id="an image, for long"
        ),
        pytest.param(
            {"pending_reason": "no node", "unplaced": 1, "overdue": True},
            "PodsPending",
            "Reconciling",
            id="a device may come free at any time",
        ),
        pytest.param({"overdue": True}, "ReplicasNotReady", "Stalled", id="it never answers its probe"),
    ],
)
def test_what_only_a_person_can_mend_becomes_stalled(workload, reason, extra):
    found = conditions(report(build_workload(0, updated=1, replicas=1, wanted=1, **workload)))

    assert found["Ready"] == ("False", reason)
    assert {kind for kind in found if kind in ("Reconciling", "Stalled")} == {extra}


def test_a_rollout_that_waits_for_its_turn_says_so_and_names_no_neighbour():
    old = Revision("a", 1, 1, "h200", newest=True)
    mine = build_workload(1, gpu_class="h200", template="b", observed=False, paused=True, revisions=(old,), max_surge=1)
    theirs = build_workload(1, gpu_class="h200", template="b", observed=False, revisions=(old,), max_surge=1)

    status = report(
        mine,
        classes=["h200"],
        world=[build_service("rival", classes=["h200"])],
        devices=3,
        others={"team-a/rival": theirs},
    )

    assert conditions(status)["Ready"] == ("False", "RolloutQueued")
    assert status.rollout.state.value == "Waiting"
    assert "rival" not in str(status_document(status))


def test_a_refusal_says_what_still_serves_and_what_to_do():
    text = message(report(build_workload(2, gpu_class="h200"), classes=["gone"]), "Ready")

    assert "there is no GPUClass gone" in text
    assert "Add h200 to spec.accelerator.classes" in text
    assert "2 replicas of an earlier revision keep serving" in text


def test_a_limited_service_is_admitted_in_part_and_stalled():
    status = report(
        build_workload(2, gpu_class="h200"), classes=["h200"], replicas=4, world=[build_tenant(gpus={"h200": 2})]
    )

    assert conditions(status) == {
        "Ready": ("False", "QuotaLimited"),
        "Admitted": ("False", "QuotaLimited"),
        "QuotaAdmitted": ("False", "QuotaLimited"),
        "WorkloadReady": ("True", "ReplicasReady"),
        "Stalled": ("True", "QuotaLimited"),
    }


def test_a_blocked_rollout_says_why_the_old_pods_still_serve():
    workload = build_workload(
        8,
        gpu_class="h200",
        updated=1,
        updated_ready=0,
        replicas=9,
        devices=9,
        pending_reason="Insufficient nvidia.com/gpu",
    )

    text = message(report(workload, classes=["h200"], replicas=8, rollout={"minAvailable": 8}), "Ready")

    assert text.startswith(
        "0 of 8 replicas of the newest revision are ready, 8 of an earlier one still serve; pending: Insufficient"
    )
    assert "lower spec.rollout.minAvailable" in text


def test_an_object_the_cluster_refused_stalls_the_service_with_its_words():
    status = report(build_workload(1), problems=("Deployment/chat: exceeded quota",))

    assert conditions(status)["Ready"] == ("False", "ApplyRefused")
    assert conditions(status)["Stalled"] == ("True", "ApplyRefused")
    assert message(status, "Ready") == "Deployment/chat: exceeded quota"


@pytest.mark.parametrize(
    ("judged", "problem", "expected"),
    [
        pytest.param(False, "", ("Unknown", "AutoscalerStarting"), id="it has not looked yet"),
        pytest.param(True, "", ("True", "AutoscalerActive"), id="it acts"),
        pytest.param(True, "unable to get metric", ("False", "AutoscalerProblem"), id="it cannot"),
    ],
)
def test_the_autoscaler_speaks_through_the_status_without_spoiling_ready(judged, problem, expected):
    status = report(build_workload(2, autoscaler_judged=judged, autoscaler_problem=problem), **SCALED)

    assert conditions(status)["ScalingActive"] == expected
    assert conditions(status)["Ready"] == ("True", "ReplicasReady")
    assert problem in message(status, "ScalingActive")


def test_without_autoscaler_nothing_is_said_about_it():
    assert "ScalingActive" not in conditions(report(build_workload(1)))


def test_figures_selector_and_address_are_filled_in():
    status = report(build_workload(2, replicas=3), replicas=2, classes=["h200"], world=[build_tenant(gpus={"h200": 4})])

    assert (status.observed_generation, status.replicas, status.ready_replicas, status.updated_replicas) == (7, 3, 2, 2)
    assert status.selector == "app.kubernetes.io/instance=chat,app.kubernetes.io/component=runtime"
    assert status.address is not None
    assert status.address.url == "http://chat.team-a.svc.cluster.local:8000/v1"
    assert (status.tenant, status.accelerator_class) == ("acme", "h200")
    assert all(condition.observed_generation == 7 for condition in status.conditions)


def test_a_transition_is_dated_when_the_status_moves_and_only_then():
    starting = report(build_workload(0, wanted=1))
    still_starting = report(build_workload(0, wanted=1, updated=1), starting, LATER)
    ready = report(build_workload(1), still_starting, LATER)

    def since(status, kind):
        return next(condition.last_transition_time for condition in status.conditions if condition.type == kind)

    assert since(still_starting, "Ready") == NOW
    assert (since(ready, "Ready"), since(ready, "Admitted")) == (LATER, NOW)


def test_the_newest_failure_is_kept_after_recovery():
    failure = Failure(reason="OOMKilled", pod="chat-1", exit_code=137)

    recovered = report(build_workload(1), report(build_workload(0, last_failure=failure)), LATER)

    assert recovered.last_failure == failure
    assert conditions(recovered)["Ready"][0] == "True"


workloads = st.builds(
    lambda wanted, replicas, ready, updated, updated_ready, observed, pending: Workload(
        replicas=replicas,
        ready=min(ready, replicas),
        updated=min(updated, replicas),
        updated_ready=min(updated_ready, updated, ready, replicas),
        wanted=wanted,
        observed=observed,
        pending_reason=pending,
    ),
    *[st.integers(0, 4)] * 5,
    st.booleans(),
    st.sampled_from(["", "no room"]),
)


@given(
    workloads, st.sampled_from([{}, {"replicas": 3}, {"replicas": 0}, {"suspend": True}, SCALED, {"classes": ["gone"]}])
)
def test_reporting_twice_changes_nothing_and_abnormal_conditions_explain_every_unready_one(workload, fields):
    first = report(workload, **fields)
    second = report(workload, first, LATER, **fields)

    assert status_document(second) == status_document(first)
    found = conditions(first)
    assert ("Reconciling" in found or "Stalled" in found) == (found["Ready"][0] == "False")
    assert all(found[kind][0] == "True" for kind in ("Reconciling", "Stalled") if kind in found)


@given(workloads, st.sampled_from([{}, {"replicas": 3}, SCALED]))
def test_ready_is_never_claimed_while_the_new_revision_has_fewer_ready_pods_than_promised(workload, fields):
    service = build_service(**fields)
    promised = service.spec.scaling.min_replicas if service.spec.scaling else service.spec.replicas or 1
    found = conditions(report(workload, **fields))

    if found["Ready"][0] == "True":
        assert workload.observed
        assert workload.updated_ready >= promised


def test_long_messages_fit_the_schema():
    status = report(build_workload(0, updated=1, wanted=1, pending_reason="x" * 5000))

    assert all(len(condition.message) <= 2048 for condition in status.conditions)
    assert InferenceServiceStatus.model_validate(status_document(status)) == status


def test_a_tenant_in_order_is_granted_and_a_disputed_one_told():
    older = build_tenant("older", ["shared"], created="2025-01-01T00:00:00Z")
    fine, disputed = build_tenant(), build_tenant("young", ["shared", "team-y"])
    snapshot = build_snapshot(older, fine, disputed)

    granted = plan_tenant_status(plan_tenant(fine, snapshot, SETTINGS), TenantStatus(), NOW)
    told = plan_tenant_status(plan_tenant(disputed, snapshot, SETTINGS), TenantStatus(), NOW)

    assert conditions(granted) == {"Ready": ("True", "Granted")}
    assert conditions(told) == {"Ready": ("False", "NamespaceConflict"), "Stalled": ("True", "NamespaceConflict")}
    assert "namespace shared belongs to the older Tenant older" in message(told, "Ready")


def test_a_refused_child_of_a_tenant_is_told():
    tenant = build_tenant()
    plan = plan_tenant(tenant, build_snapshot(tenant), SETTINGS)

    assert conditions(plan_tenant_status(plan, TenantStatus(), NOW, ("Role/windlass-editor: forbidden",)))["Ready"] == (
        "False",
        "ApplyRefused",
    )


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        pytest.param([build_node()], "NodesReady", id="with nodes"),
        pytest.param([], "NoReadyNodes", id="an autoscaler may bring the first node"),
        pytest.param(None, "NodesUnknown", id="offline"),
    ],
)
def test_a_class_is_in_order_with_or_without_nodes(nodes, reason):
    gpu_class = build_gpu_class()

    status = plan_gpu_class_status(
        plan_gpu_class(gpu_class, build_snapshot(gpu_class, nodes=nodes)), GPUClassStatus(), NOW
    )

    assert conditions(status) == {"Ready": ("True", reason)}


def test_a_neighbours_scaling_does_not_rewrite_the_status():
    tenant, other = build_tenant(gpus={"h200": 8}), build_service("other", classes=["h200"], scaling={"maxReplicas": 3})
    service = build_service(classes=["h200"])
    mine = build_workload(1, gpu_class="h200")

    def status(others: int):
        world = build_snapshot(
            service,
            other,
            tenant,
            build_gpu_class(),
            nodes=[build_node()],
            workloads={"team-a/chat": mine, "team-a/other": build_workload(others, gpu_class="h200")},
        )
        return status_document(plan_service_status(plan_service(service, world, SETTINGS), mine, EMPTY, NOW))

    assert status(1) == status(3)
