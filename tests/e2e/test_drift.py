"""What the operator writes: what somebody changed, and nothing else."""

from __future__ import annotations

import time

import pytest

from support.audit_log import AuditLog
from support.kube_client import KubeClient, Manifest, eventually
from support.operator_process import OperatorProcess
from support.services import APPS, CHILD_KINDS, children, deployment, service, versions, wait_ready

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("clean")]

REPAIR_S = 2.0
IDLE_SERVICES = 100
IDLE_S = 120.0
RESYNC_S = "30"
"""So that every object is reconciled four times while nothing may be written."""


def grace_of(found: Manifest) -> int:
    period: int = found["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    return period


@pytest.mark.usefixtures("operator")
def test_an_edited_child_is_repaired_within_two_seconds(kube: KubeClient) -> None:
    kube.apply(service())
    wait_ready(kube)
    wanted = deployment(kube)["spec"]["template"]["spec"]["containers"][0]["args"]

    kube.merge(deployment(kube), {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}})

    repaired = eventually(lambda: deployment(kube), lambda found: grace_of(found) == 75, timeout_s=REPAIR_S)
    assert repaired["spec"]["template"]["spec"]["containers"][0]["args"] == wanted


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("kind", [kind for _, kind in CHILD_KINDS])
def test_a_deleted_child_is_back_within_two_seconds(kube: KubeClient, kind: str) -> None:
    kube.apply(service(scaling={"minReplicas": 1, "maxReplicas": 3}))
    wait_ready(kube)
    (child,) = _of_kind(kube, kind)

    kube.delete(child["apiVersion"], kind, child["metadata"]["name"], "team-a")

    def again() -> Manifest | None:
        return kube.get(child["apiVersion"], kind, child["metadata"]["name"], "team-a")

    back = eventually(
        again, lambda found: bool(found) and found["metadata"]["uid"] != child["metadata"]["uid"], timeout_s=REPAIR_S
    )
    assert back is not None


@pytest.mark.usefixtures("operator")
def test_labels_and_annotations_of_others_survive(kube: KubeClient) -> None:
    kube.apply(service())
    wait_ready(kube)
    theirs = {"annotations": {"example.com/note": "kept"}, "labels": {"example.com/cost-centre": "42"}}
    for child in children(kube):
        kube.merge(child, {"metadata": theirs})

    kube.apply(service(drain={"timeoutSeconds": 30}))

    eventually(lambda: deployment(kube), lambda found: grace_of(found) == 45)
    for child in children(kube):
        assert child["metadata"]["annotations"]["example.com/note"] == "kept", child["kind"]
        assert child["metadata"]["labels"]["example.com/cost-centre"] == "42", child["kind"]


@pytest.mark.usefixtures("operator")
def test_a_label_that_somebody_adds_makes_the_operator_write_nothing(kube: KubeClient) -> None:
    kube.apply(service())
    wait_ready(kube)
    time.sleep(1)  # the last status may still be on its way; a write after this is one too many
    for child in children(kube):
        kube.merge(child, {"metadata": {"labels": {"example.com/noise": "1"}}})
    before = versions(kube)

    time.sleep(3)

    assert versions(kube) == before


@pytest.mark.usefixtures("operator")
def test_a_sidecar_that_an_injector_adds_is_left_alone(kube: KubeClient) -> None:
    kube.apply(service())
    wait_ready(kube)
    sidecar = {"name": "proxy", "image": "registry.example/proxy:1"}
    claim = {
        "apiVersion": APPS,
        "kind": "Deployment",
        "metadata": {"name": "chat", "namespace": "team-a"},
        "spec": {"template": {"spec": {"containers": [sidecar]}}},
    }

    kube.apply(claim, manager="injector", force=False)
    time.sleep(2)

    names = [container["name"] for container in deployment(kube)["spec"]["template"]["spec"]["containers"]]
    assert sorted(names) == ["proxy", "runtime"]


@pytest.mark.own_plane
@pytest.mark.timeout(400)
def test_a_hundred_idle_services_cost_no_write_in_two_minutes(
    kube: KubeClient, no_operator: OperatorProcess, audit: AuditLog, operator_user: str
) -> None:
    no_operator.start(environment={"WINDLASS_RESYNC_INTERVAL_S": RESYNC_S})
    try:
        for index in range(IDLE_SERVICES):
            kube.apply(service(f"idle-{index}", "team-b"))
        for index in range(IDLE_SERVICES):
            wait_ready(kube, f"idle-{index}", "team-b", timeout_s=120)
        audit.wait_until_quiet(operator_user)
        mark, reconciles = audit.mark(), no_operator.metric("windlass_reconcile_duration_seconds_count")

        time.sleep(IDLE_S)

        assert audit.writes(mark, operator_user) == []
        looked = no_operator.metric("windlass_reconcile_duration_seconds_count") - reconciles
        assert looked >= 2 * IDLE_SERVICES, "the operator did not even look"
    finally:
        no_operator.stop()


def test_a_restarted_operator_changes_nothing(kube: KubeClient, operator: OperatorProcess) -> None:
    kube.apply(service(replicas=2))
    wait_ready(kube)
    time.sleep(1)
    before = versions(kube)
    operator.kill()

    operator.start()
    eventually(operator.leads, bool, timeout_s=30)
    time.sleep(5)

    assert versions(kube) == before


def _of_kind(kube: KubeClient, kind: str) -> list[Manifest]:
    return [
        item
        for api, name in CHILD_KINDS
        if name == kind
        for item in kube.list(api, name, "team-a", "app.kubernetes.io/instance=chat")
    ]
