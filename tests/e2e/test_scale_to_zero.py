"""Services with no replica, on a real control plane: the real autoscaler where it goes to zero, our own operator where
it does not, the real gateway that holds requests, and the real adapter between them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.control_plane import ControlPlane
from support.kube_client import KubeClient, eventually
from support.live_pods import LivePods, Streams, serving_live_pods
from support.operator_process import OperatorProcess
from support.patience import stretched
from support.services import condition, deployment, find, pods, ready_pods, service, wait_ready
from support.serving_fleet import Front, installed, serving_fleet

pytestmark = [pytest.mark.cluster, pytest.mark.own_plane, pytest.mark.usefixtures("clean")]

ASLEEP = {
    "minReplicas": 0,
    "maxReplicas": 4,
    "scaleDownDelaySeconds": 8,
    "hold": {"timeoutSeconds": 40, "maxRequests": 30},
}
LIMITS = {"maxRunningRequests": 4}
PATH = "team-a/{}"


@pytest.fixture(scope="module")
def front(
    control_plane: ControlPlane,
    kube: KubeClient,
    shared_operator: OperatorProcess,
    operator_kubeconfig: Path,
    helm: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Front]:
    """A whole fleet; its operator takes the place of the shared one."""
    if shared_operator.running:
        shared_operator.stop()
    folder = tmp_path_factory.mktemp("fleet")
    with (
        serving_live_pods(LivePods()) as live,
        installed(kube, helm) as port,
        serving_fleet(control_plane, kube, operator_kubeconfig, folder, live, port) as found,
    ):
        yield found


def wanted(kube: KubeClient, name: str) -> int:
    found: int = deployment(kube, name)["spec"]["replicas"]
    return found


def put_to_sleep(kube: KubeClient, name: str, **scaling: Any) -> None:
    """A service that has fallen asleep."""
    kube.apply(service(name, scaling={**ASLEEP, **scaling}, limits=LIMITS))
    eventually(lambda: kube.get("apps/v1", "Deployment", name, "team-a"), bool)
    eventually(lambda: wanted(kube, name), lambda replicas: replicas == 0, timeout_s=90)
    eventually(lambda: pods(kube, name), lambda found: not found, timeout_s=30)


def hpa(kube: KubeClient, name: str) -> dict[str, Any]:
    found = kube.get("autoscaling/v2", "HorizontalPodAutoscaler", name, "team-a")
    assert found is not None
    return found


def in_background(streams: Streams, name: str, count: int) -> threading.Thread:
    thread = threading.Thread(target=streams.run, args=(PATH.format(name), count), daemon=True)
    thread.start()
    return thread


def test_a_service_that_nobody_asks_for_goes_to_zero_and_says_so(kube: KubeClient, front: Front, minor: str) -> None:
    put_to_sleep(kube, "unasked")

    eventually(lambda: condition(kube, "unasked").get("reason"), lambda reason: reason == "ScaledToZero")
    found = wait_ready(kube, "unasked")
    (decision,) = (item for item in found["status"]["decisions"] if item["topic"] == "replicas")
    native = tuple(int(part) for part in minor.split(".")) >= (1, 37)
    assert ("the autoscaler takes" if native else "the operator takes") in decision["reason"]
    assert hpa(kube, "unasked")["spec"]["minReplicas"] == (0 if native else 1)
    assert condition(kube, "unasked", kind="ScalingActive")["status"] != "False"


def test_a_request_waits_at_the_gateway_while_the_first_replica_starts(kube: KubeClient, front: Front) -> None:
    put_to_sleep(kube, "woken")
    streams = front.streams()

    thread = in_background(streams, "woken", 1)
    # Looked at while the request is there: soon after its end the service may sleep again.
    woken = eventually(lambda: wanted(kube, "woken"), lambda replicas: replicas > 0, timeout_s=30)
    thread.join(stretched(60))

    assert woken == 1
    assert (streams.finished, streams.broken) == (1, [])
    assert streams.first_byte_s[0] < stretched(20)


def test_many_who_wait_wake_as_many_replicas_as_they_fill_and_are_all_answered(kube: KubeClient, front: Front) -> None:
    put_to_sleep(kube, "crowd")
    streams = front.streams()

    thread = in_background(streams, "crowd", 10)
    woken = eventually(lambda: wanted(kube, "crowd"), lambda replicas: replicas > 0, timeout_s=30)
    thread.join(stretched(60))

    assert woken == 3  # ten requests, four of them start one replica
    assert (streams.finished, streams.broken) == (10, [])


def test_beyond_its_bound_the_gateway_says_when_to_come_back(kube: KubeClient, front: Front) -> None:
    put_to_sleep(kube, "full", hold={"timeoutSeconds": 30, "maxRequests": 2})
    kube.apply(service("full", scaling={**ASLEEP, "hold": {"timeoutSeconds": 30, "maxRequests": 2}}, limits=LIMITS))
    streams = front.streams()

    streams.run(PATH.format("full"), 6)

    assert streams.finished == 2
    assert len(streams.broken) == 4
    assert all("wake_queue_full" in text for text in streams.broken)


def test_a_service_in_use_is_not_put_to_sleep(kube: KubeClient, front: Front) -> None:
    put_to_sleep(kube, "in-use")
    streams = front.streams()

    # One short stream every two seconds, for three times the delay.
    streams.run(PATH.format("in-use"), 12, gap_s=2.0)

    assert (streams.finished, streams.broken) == (12, [])
    assert wanted(kube, "in-use") >= 1
    assert max(streams.first_byte_s[1:]) < stretched(5), "only the first one had to wait for a replica"


def test_a_minimum_of_certain_hours_wakes_without_a_request(kube: KubeClient, front: Front) -> None:
    always = {"name": "always", "timeZone": "Etc/UTC", "start": "00:00", "end": "00:00", "minReplicas": 2}
    put_to_sleep(kube, "hours")

    kube.apply(service("hours", scaling={**ASLEEP, "schedules": [always]}, limits=LIMITS))

    eventually(lambda: ready_pods(kube, "hours"), lambda ready: ready == 2, timeout_s=60)
    (decision,) = (item for item in find(kube, "hours")["status"]["decisions"] if item["topic"] == "replicas")
    assert "schedule always holds" in decision["reason"]
