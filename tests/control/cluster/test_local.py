"""The local cluster with real (fake-model) processes: start, replace, restart, drain, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psutil
import pytest

from support.builders import build_service, build_tenant
from windlass_contract.endpoints import TenantRates, digest_key
from windlass_contract.launch_spec import LaunchSpec
from windlass_operator.api.loaded import Loaded, Source, identity_of
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.cluster.local import LocalCluster
from windlass_operator.cluster.local_child import Exit, parse_error_words, parse_listening
from windlass_operator.cluster.local_machine import describe_machine, parse_gpus
from windlass_operator.cluster.local_processes import Phase
from windlass_operator.cluster.local_replicas import LocalSettings, ServiceView
from windlass_operator.cluster.local_routes import owners_without_keys, plan_routes
from windlass_operator.domain.fleet import FleetSettings, Platform
from windlass_operator.domain.plan import plan_service
from windlass_operator.domain.snapshot import Key
from windlass_operator.render.workload import render_service

TESTS = pathlib.Path(__file__).resolve().parents[2]
FLEET = FleetSettings(platform=Platform.LOCAL)
KEY = Key("InferenceService", "team-a", "chat")


class Bench:
    """A local cluster under test, and a way to wait for it."""

    def __init__(self, cluster: LocalCluster, changed: asyncio.Event, folder: pathlib.Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self._changed = changed

    async def apply(self, **spec: object) -> None:
        """Declare the one service and reconcile it once."""
        service = build_service("chat", "team-a", **spec)  # type: ignore[arg-type]
        self.cluster.load(load(service, self.folder))
        plan = plan_service(service, self.cluster.snapshot(), FLEET)
        await self.cluster.apply(KEY, render_service(plan, FLEET))

    def view(self) -> ServiceView:
        """The service's replicas now."""
        view = self.cluster.replicas.view(KEY)
        assert view is not None
        return view

    async def until(self, holds: Callable[[], bool], within_s: float = 15.0) -> None:
        """Wait for a condition, looking whenever the cluster reports a change."""
        async with asyncio.timeout(within_s):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def until_ready(self, count: int) -> None:
        """Wait until `count` replicas of the newest revision are ready and no other is alive."""
        await self.until(lambda: self.ready() == count == len(self.view().replicas))

    def ready(self) -> int:
        """Ready replicas of the newest revision."""
        return sum(item.phase is Phase.READY and item.current for item in self.view().replicas)


def load(service: InferenceService, folder: pathlib.Path) -> Loaded:
    """As if the service had been read from a file in `folder`."""
    return Loaded(services=(service,), sources={identity_of(service): Source(str(folder / "service.yaml"), 1)})


@asynccontextmanager
async def running(folder: pathlib.Path, behaviour: str = "normal") -> AsyncIterator[Bench]:
    changed = asyncio.Event()
    settings = LocalSettings(
        state_dir=folder / "state",
        command=(sys.executable, "-m", "support.replica"),
        env={**os.environ, "PYTHONPATH": str(TESTS), "FAKE_REPLICA": behaviour},
        cores=4,
        probe_s=0.02,
        steady_probe_s=0.05,
        notice_s=0.05,
    )
    cluster = LocalCluster(settings, describe_machine("here", ()), lambda _: changed.set())
    supervising = asyncio.create_task(cluster.replicas.run())
    try:
        yield Bench(cluster, changed, folder)
    finally:
        cluster.replicas.drain()
        async with asyncio.timeout(20):
            await supervising


async def test_replicas_start_listen_on_their_own_ports_and_end_with_the_cluster(tmp_path: pathlib.Path) -> None:
    async with running(tmp_path) as bench:
        await bench.apply(replicas=2)
        await bench.until_ready(2)
        replicas = bench.view().replicas
        routable = bench.cluster.routable(KEY)

    assert len({item.url for item in replicas}) == 2
    assert {item.name for item in routable} == {item.name for item in replicas}
    assert not any(psutil.pid_exists(item.pid) for item in replicas)


async def test_a_changed_spec_replaces_every_replica_and_never_serves_with_fewer(tmp_path: pathlib.Path) -> None:
    lowest = 2

    async with running(tmp_path) as bench:
        await bench.apply(replicas=2)
        await bench.until_ready(2)
        before = {item.name for item in bench.view().replicas}

        await bench.apply(replicas=2, limits={"maxRunningRequests": 3})

        def settled() -> bool:
            nonlocal lowest
            lowest = min(lowest, len(bench.view().routable))
            return bench.ready() == 2 == len(bench.view().replicas)

        await bench.until(settled)
        after = {item.name for item in bench.view().replicas}

    assert lowest == 2
    assert not before & after


async def test_applying_the_same_again_writes_nothing_and_touches_no_process(tmp_path: pathlib.Path) -> None:
    async with running(tmp_path) as bench:
        await bench.apply(replicas=1)
        await bench.until_ready(1)
        pids = {item.pid for item in bench.view().replicas}
        children = bench.cluster.children[KEY]

        applied = await bench.cluster.apply(KEY, list(children.values()))

        assert (applied.written, applied.pruned) == ((), ())
        assert {item.pid for item in bench.view().replicas} == pids


async def test_a_killed_replica_is_replaced_and_the_failure_is_told(tmp_path: pathlib.Path) -> None:
    async with running(tmp_path) as bench:
        await bench.apply(replicas=1)
        await bench.until_ready(1)
        (victim,) = bench.view().replicas

        os.kill(victim.pid, signal.SIGKILL)
        await bench.until(lambda: bench.ready() == 1 and bench.view().replicas[0].pid != victim.pid)
        failure = bench.cluster.snapshot().workloads[KEY].last_failure

    assert failure is not None
    assert (failure.reason, failure.exit_code, failure.message) == ("Killed", -9, "killed by SIGKILL")


async def test_a_replica_that_cannot_start_is_tried_again_later_and_named_hopeless(tmp_path: pathlib.Path) -> None:
    async with running(tmp_path, "crash at start") as bench:
        await bench.apply(replicas=1)
        await bench.until(lambda: bench.view().hopeless)
        workload = bench.cluster.snapshot().workloads[KEY]
        reason = bench.cluster.find_hopeless()

    assert workload.last_failure is not None
    assert workload.last_failure.message.endswith("config.json: expected a file, found nothing")
    assert (workload.ready, workload.replicas) == (0, 1)
    assert reason.startswith("InferenceService team-a/chat: checkpoint file:///")


async def test_a_replica_that_is_not_ready_is_not_routable(tmp_path: pathlib.Path) -> None:
    async with running(tmp_path, "never ready") as bench:
        await bench.apply(replicas=1)
        await bench.until(lambda: bool(bench.view().replicas and bench.view().replicas[0].url))

        assert bench.cluster.routable(KEY) == ()


async def test_a_removed_service_is_drained(tmp_path: pathlib.Path) -> None:
    async with running(tmp_path) as bench:
        await bench.apply(replicas=1)
        await bench.until_ready(1)
        (replica,) = bench.view().replicas

        bench.cluster.load(Loaded())
        await bench.until(lambda: bench.cluster.replicas.view(KEY) is None)

        assert not psutil.pid_exists(replica.pid)
        assert KEY not in bench.cluster.children


async def test_a_relative_path_starts_from_the_folder_of_its_file(tmp_path: pathlib.Path) -> None:
    async with running(tmp_path) as bench:
        await bench.apply(replicas=1, model={"uri": "file://./models/tiny"})
        await bench.until_ready(1)
        (launch,) = await asyncio.to_thread(read_launch_specs, tmp_path)

    assert launch.model_uri == f"file://{tmp_path}/models/tiny"
    assert (launch.host, launch.port) == ("127.0.0.1", 0)


def read_launch_specs(folder: pathlib.Path) -> list[LaunchSpec]:
    """What the replicas were told."""
    return [LaunchSpec.from_json(file.read_text()) for file in folder.resolve().glob("state/launch/*.json")]


async def test_a_drain_reaches_a_replica_that_is_about_to_start(tmp_path: pathlib.Path) -> None:
    async with asyncio.timeout(5), running(tmp_path) as bench:
        await bench.apply(replicas=1)
        await bench.until(lambda: bool(bench.view().replicas))

        assert bench.view().replicas[0].pid == 0


def test_a_tethered_process_ends_when_its_parent_is_killed(tmp_path: pathlib.Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the kernel ties processes together on Linux only")
    script = f"""
import asyncio, pathlib, sys
from windlass_operator.cluster.local_child import Child, Launch
command = (sys.executable, "-c", "print('{{}}', flush=True); import time; time.sleep(60)")
child = Child(Launch(command, {{}}, pathlib.Path({str(tmp_path / "log")!r})))
async def main():
    task = asyncio.create_task(child.run())
    while not child.pid:
        await asyncio.sleep(0.01)
    print(child.pid, flush=True)
    await task
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout as lines:
        child = psutil.Process(int(lines.readline()))
        parent.kill()
        parent.wait(timeout=5)
        gone, alive = psutil.wait_procs([child], timeout=5)

    assert ([item.pid for item in gone], alive) == ([child.pid], [])


@pytest.mark.parametrize(
    ("line", "url"),
    [
        pytest.param('{"event": "listening", "url": "http://127.0.0.1:1"}', "http://127.0.0.1:1", id="the event"),
        pytest.param('{"event": "ready"}', "", id="another event"),
        pytest.param("Loading weights", "", id="plain text"),
        pytest.param('{"event": ', "", id="broken JSON"),
        pytest.param("[1]", "", id="JSON of another shape"),
    ],
)
def test_only_a_listening_event_tells_a_url(line: str, url: str) -> None:
    assert parse_listening(line) == url


def test_ends_are_told_in_words() -> None:
    assert str(Exit(1, "no space left")) == "exit code 1: no space left"
    assert str(Exit(-9, "loading")) == "killed by SIGKILL"
    assert str(Exit(0, "bye")) == "exit code 0"
    assert parse_error_words('{"level": "error", "message": "config.json is missing"}') == "config.json is missing"


def test_gpus_become_a_node_with_the_labels_of_gpu_feature_discovery() -> None:
    gpus = parse_gpus("0, NVIDIA H200, 143771, 9.0\n1, NVIDIA H200, 143771, 9.0\nFailed to initialize NVML\n")

    node = describe_machine("here", gpus)

    assert node.allocatable == {"nvidia.com/gpu": 2}
    assert node.labels["nvidia.com/gpu.product"] == "NVIDIA-H200"
    assert (node.labels["nvidia.com/gpu.compute.major"], node.labels["nvidia.com/gpu.compute.minor"]) == ("9", "0")


def test_routes_carry_the_tenants_keys_and_those_of_the_session() -> None:
    stored = {"name": "ci", "sha256": digest_key("stored")}
    services = {
        Key("InferenceService", space, "chat"): build_service("chat", space) for space in ("team-a", "team-b", "x")
    }
    tenants = {
        "a": build_tenant("a", namespaces=["team-a"], access={"keys": [stored]}),
        "b": build_tenant("b", namespaces=["team-b"], rates={"requestsPerMinute": 60}),
    }
    owners = owners_without_keys(services, tenants)
    table = plan_routes(services, tenants, {owner: f"key of {owner}" for owner in owners}, lambda _: ())

    assert owners == ("b", "namespace/x")
    assert {route.namespace: (route.tenant, route.key_digests) for route in table.routes} == {
        "team-a": ("a", (digest_key("stored"),)),
        "team-b": ("b", (digest_key("key of b"),)),
        "x": ("", (digest_key("key of namespace/x"),)),
    }
    assert table.rates == (TenantRates("b", requests_per_minute=60),)


async def test_a_status_is_written_only_when_it_differs(tmp_path: pathlib.Path) -> None:
    changed: list[Key] = []
    settings = LocalSettings(state_dir=tmp_path, command=(), env={})
    cluster = LocalCluster(settings, describe_machine("here", ()), changed.append)
    cluster.load(load(build_service("chat", "team-a"), tmp_path))

    first = await cluster.report(KEY, {"observedGeneration": 1, "tenant": "a"})
    second = await cluster.report(KEY, {"observedGeneration": 1, "tenant": "a"})
    gone = await cluster.report(KEY._replace(name="other"), {"observedGeneration": 1})

    assert (first, second, gone) == (True, False, False)
    assert changed == [KEY, KEY]


def test_a_generation_counts_changes_of_the_spec_only(tmp_path: pathlib.Path) -> None:
    settings = LocalSettings(state_dir=tmp_path, command=(), env={})
    cluster = LocalCluster(settings, describe_machine("here", ()), lambda _: None)

    generations = []
    for replicas in (1, 1, 2):
        cluster.load(load(build_service("chat", "team-a", replicas=replicas), tmp_path))
        generations.append(cluster.snapshot().services[KEY].metadata.generation)

    assert generations == [1, 1, 2]
