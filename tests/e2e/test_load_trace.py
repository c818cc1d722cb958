"""A trace of load through the whole fleet: clients stream through the real gateway, a real Prometheus scrapes what runs
in the pods, our adapter asks it, and the real autoscaler drives the number up and down. Then Prometheus goes away.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.control_plane import ControlPlane
from support.kube_client import KubeClient, eventually
from support.live_pods import LivePods, Streams, serving_live_pods
from support.metrics_adapter import running_prometheus
from support.operator_process import OperatorProcess
from support.services import RUNTIME, condition, deployment, pods, ready_pods, service, wait_ready
from support.serving_fleet import Front, installed, serving_fleet

pytestmark = [pytest.mark.cluster, pytest.mark.own_plane, pytest.mark.usefixtures("clean")]

COST = "controller.kubernetes.io/pod-deletion-cost"
NAME = "trace"
SCALING = {
    "minReplicas": 1,
    "maxReplicas": 6,
    "metrics": [{"type": "QueueDepth", "target": 2}, {"type": "RunningRequests", "target": 3}],
    "scaleDownDelaySeconds": 20,
    "fallback": {"replicas": 4, "afterSeconds": 5},
}


class Load(threading.Thread):
    """Clients that keep so many streams open at once; each is followed to its end."""

    def __init__(self, streams: Streams) -> None:
        super().__init__(daemon=True)
        self.streams, self.at_once = streams, 0
        self.over = False

    def run(self) -> None:
        asyncio.run(self._play())

    async def _play(self) -> None:
        open_streams: set[asyncio.Task[None]] = set()
        while not self.over or open_streams:
            while not self.over and len(open_streams) < self.at_once:
                open_streams.add(asyncio.create_task(self.streams.one(f"team-a/{NAME}")))
            done, open_streams = await asyncio.wait(open_streams, timeout=0.05) if open_streams else (set(), set())
            if not done:
                await asyncio.sleep(0.05)

    def end(self) -> None:
        """Begin nothing more, and wait for what is open."""
        self.over = True
        self.join(60)


@pytest.fixture(scope="module")
def prometheus() -> Iterator[ExitStack]:
    """Holds the Prometheus of the module; a test may close it."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def front(
    control_plane: ControlPlane,
    kube: KubeClient,
    shared_operator: OperatorProcess,
    operator_kubeconfig: Path,
    helm: Any,
    prometheus: ExitStack,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Front]:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("missing binary: prometheus, in PATH")
    if shared_operator.running:
        shared_operator.stop()
    folder = tmp_path_factory.mktemp("fleet")
    live = LivePods(words=20, word_s=0.1)
    with serving_live_pods(live, lambda: kube.list("v1", "Pod", selector=RUNTIME)), installed(kube, helm) as port:
        url = prometheus.enter_context(running_prometheus(binary, folder, live.port))
        asks = {"SOURCE": "prometheus", "PROMETHEUS_URL": url}
        with serving_fleet(control_plane, kube, operator_kubeconfig, folder, live, port, asks) as found:
            yield found


@pytest.fixture
def load(front: Front) -> Iterator[Load]:
    found = Load(front.streams())
    found.start()
    yield found
    found.end()


def wanted(kube: KubeClient) -> int:
    found: int = deployment(kube, NAME)["spec"]["replicas"]
    return found


def costs(kube: KubeClient) -> dict[str, int]:
    found = {pod["metadata"]["name"]: pod["metadata"].get("annotations") or {} for pod in pods(kube, NAME)}
    return {name: int(annotations[COST]) for name, annotations in found.items() if COST in annotations}


def test_load_drives_replicas_up_and_down_and_no_stream_is_dropped(kube: KubeClient, front: Front, load: Load) -> None:
    kube.apply(service(NAME, scaling=SCALING))
    wait_ready(kube, NAME, timeout_s=120)

    load.at_once = 2
    eventually(lambda: load.streams.finished, lambda count: count >= 4, timeout_s=120)
    load.at_once = 14
    up = eventually(lambda: ready_pods(kube, NAME), lambda ready: ready >= 4, timeout_s=90)
    load.at_once = 1
    ordered = eventually(lambda: costs(kube), lambda found: len(found) >= up - 1, timeout_s=120)
    eventually(lambda: wanted(kube), lambda replicas: replicas <= 2, timeout_s=120)
    load.end()

    assert load.streams.broken == []
    assert load.streams.finished > 20
    assert len(set(ordered.values())) == len(ordered), "every pod has its place in the order"
    assert set(front.pods.served) >= set(ordered), "all of them had served"


@pytest.mark.timeout(300)
def test_without_prometheus_the_fleet_holds_then_grows_to_the_fallback_and_never_shrinks(
    kube: KubeClient, front: Front, load: Load, prometheus: ExitStack
) -> None:
    kube.apply(service(NAME, scaling={**SCALING, "minReplicas": 2}))
    wait_ready(kube, NAME, timeout_s=120)
    eventually(
        lambda: condition(kube, NAME, kind="ScalingActive"), lambda found: found.get("status") == "True", timeout_s=120
    )
    seen = [wanted(kube)]

    prometheus.close()

    lost = eventually(
        lambda: condition(kube, NAME, kind="ScalingActive"), lambda found: found.get("status") == "False", timeout_s=120
    )
    assert lost["reason"] == "AutoscalerProblem"
    eventually(lambda: seen.append(wanted(kube)) or seen[-1], lambda replicas: replicas >= 4, timeout_s=120)
    told = eventually(
        lambda: condition(kube, NAME, kind="ScalingActive")["message"],
        lambda message: "fallback keeps at least 4 replicas" in message,
    )
    assert "found none for" in told
    end = time.monotonic() + 30  # longer than the delay after which a fleet may shrink
    while time.monotonic() < end:
        seen.append(wanted(kube))
        time.sleep(0.5)
    assert seen == sorted(seen)
