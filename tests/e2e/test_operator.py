"""The operator against a real API server, controller manager and scheduler."""

from __future__ import annotations

import time

import pytest

from support.kube_client import KubeClient, Manifest, eventually
from support.operator_process import OperatorProcess
from support.services import API, CHILD_KINDS, OWNED, condition, deployment, service, versions, wait_ready

pytestmark = pytest.mark.cluster


@pytest.mark.usefixtures("operator", "clean")
def test_a_service_becomes_ready_on_nodes_that_carry_its_gpu(kube: KubeClient) -> None:
    kube.apply(service(accelerator={"classes": ["h200"]}, replicas=2))

    ready = wait_ready(kube)

    pods = kube.list("v1", "Pod", "team-a", "app.kubernetes.io/instance=chat")
    assert {pod["spec"]["nodeName"] for pod in pods} <= {"h200-1", "h200-2"}
    assert ready["status"]["replicas"] == 2
    assert ready["status"]["acceleratorClass"] == "h200"
    assert ready["status"]["observedGeneration"] == ready["metadata"]["generation"]
    assert "finalizers" not in ready["metadata"]
    assert "annotations" not in ready["metadata"]


@pytest.mark.usefixtures("operator", "clean")
def test_every_child_is_owned_by_its_service(kube: KubeClient) -> None:
    applied = kube.apply(service(scaling={"maxReplicas": 3}))
    wait_ready(kube)

    for api, kind in CHILD_KINDS:
        children = kube.list(api, kind, "team-a", f"{OWNED},app.kubernetes.io/instance=chat")
        assert children, kind
        for child in children:
            assert [owner["uid"] for owner in child["metadata"]["ownerReferences"]] == [applied["metadata"]["uid"]]


@pytest.mark.usefixtures("operator", "clean")
def test_edited_and_deleted_children_are_repaired_within_two_seconds(kube: KubeClient) -> None:
    kube.apply(service())
    wait_ready(kube)
    wanted = deployment(kube)["spec"]["template"]["spec"]["containers"][0]["args"]

    vandal = {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}}
    kube.merge(deployment(kube), vandal)
    kube.delete("v1", "Service", "chat", "team-a")

    eventually(lambda: kube.get("v1", "Service", "chat", "team-a"), bool, timeout_s=2)
    repaired = eventually(
        lambda: deployment(kube)["spec"]["template"]["spec"],
        lambda spec: spec["terminationGracePeriodSeconds"] == 75,
        timeout_s=2,
    )
    assert repaired["containers"][0]["args"] == wanted


@pytest.mark.usefixtures("operator", "clean")
def test_labels_and_annotations_of_others_survive(kube: KubeClient) -> None:
    kube.apply(service())
    wait_ready(kube)
    kube.merge(deployment(kube), {"metadata": {"annotations": {"example.com/note": "kept"}}})

    kube.apply(service(drain={"timeoutSeconds": 30}))

    changed = eventually(
        lambda: deployment(kube),
        lambda found: found["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 45,
    )
    assert changed["metadata"]["annotations"]["example.com/note"] == "kept"


@pytest.mark.usefixtures("operator", "clean")
def test_nothing_is_written_while_nothing_changes(kube: KubeClient) -> None:
    for index in range(5):
        kube.apply(service(f"idle-{index}"))
    for index in range(5):
        wait_ready(kube, f"idle-{index}")
    time.sleep(1)  # the last status may still be on its way; a write after this is one too many
    before = versions(kube)

    time.sleep(5)

    assert versions(kube) == before


@pytest.mark.usefixtures("operator", "clean")
def test_handing_the_replicas_to_an_autoscaler_never_lowers_them(kube: KubeClient) -> None:
    kube.apply(service(replicas=3))
    wait_ready(kube)

    kube.apply(service(scaling={"minReplicas": 2, "maxReplicas": 5}))
    seen = set()

    def autoscaler() -> Manifest | None:
        seen.add(deployment(kube)["spec"]["replicas"])
        return kube.get("autoscaling/v2", "HorizontalPodAutoscaler", "chat", "team-a")

    eventually(autoscaler, bool)
    kube.merge(deployment(kube), {"spec": {"replicas": 4}})  # what an autoscaler does
    kube.apply(service(scaling={"minReplicas": 2, "maxReplicas": 5}, drain={"timeoutSeconds": 30}))

    def grace() -> int:
        found = deployment(kube)["spec"]
        seen.add(found["replicas"])
        period: int = found["template"]["spec"]["terminationGracePeriodSeconds"]
        return period

    eventually(grace, lambda seconds: seconds == 45)
    assert seen <= {3, 4}
    assert deployment(kube)["spec"]["replicas"] == 4


@pytest.mark.usefixtures("operator", "clean")
def test_a_service_beyond_its_quota_says_so_with_numbers_and_runs_nothing(kube: KubeClient) -> None:
    kube.apply(service("big", accelerator={"classes": ["h200"]}, replicas=7, tier="Standard"))

    refused = eventually(lambda: condition(kube, "big", "Admitted"), lambda found: found.get("status") == "False")

    assert "7" in refused["message"]
    assert "6" in refused["message"]
    assert not kube.list("v1", "Pod", "team-a", "app.kubernetes.io/instance=big")


@pytest.mark.usefixtures("operator", "clean")
def test_the_scale_subresource_sets_the_number_of_replicas(kube: KubeClient) -> None:
    kube.apply(service())
    wait_ready(kube)

    kube.merge(service(), {"spec": {"replicas": 2}}, subresource="scale")

    eventually(lambda: deployment(kube)["status"].get("readyReplicas"), lambda ready: ready == 2)


@pytest.mark.usefixtures("clean")
def test_deletion_finishes_with_the_operator_stopped(kube: KubeClient, operator: OperatorProcess) -> None:
    kube.apply(service())
    wait_ready(kube)
    assert operator.stop() == 0

    kube.delete(API, "InferenceService", "chat", "team-a")

    def left() -> list[str]:
        return [
            f"{kind} {item['metadata']['name']}"
            for api, kind in [*CHILD_KINDS, (API, "InferenceService")]
            for item in kube.list(api, kind, "team-a", "app.kubernetes.io/instance=chat" if api != API else "")
        ]

    eventually(left, lambda found: not found)


@pytest.mark.usefixtures("clean")
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
