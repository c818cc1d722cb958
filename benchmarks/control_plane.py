"""Measure the operator on a real control plane: a burst of services, single edits, idleness, a restart.

    PYTHONPATH=tests python benchmarks/control_plane.py --repeats 3 --idle 5000 --output build/control_plane.json

Every measurement gets a fresh control plane (etcd, kube-apiserver, controller manager, scheduler, kwok nodes) of the
same binaries and flags, and the subjects take turns within each repeat, so that a slow minute of the machine hits all:

  floor            the same children created by a plain client, without any operator
  windlass         our operator with its defaults
  kuberay          KubeRay's operator with its defaults: as many RayClusters with as many children and pods
  kuberay-raised   the same with as many workers as ours and without its client's own rate limit

`--idle 5000` adds what that many idle services cost our operator. Prints Markdown, writes every figure as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import itertools
import json
import math
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import control_plane_objects as objects
import psutil
import yaml
from control_plane_client import Api, Sightings, collection, collection_of, connected, own_name
from control_plane_figures import (
    MemoryWatch,
    Meter,
    Write,
    count_by_resource,
    read_refusals,
    read_writes,
    spread,
)

from support.control_plane import ControlPlane, free_ports, running_control_plane
from support.operator_process import OperatorProcess

ROOT = Path(__file__).resolve().parents[1]
KUBERAY_TOOL = ROOT / "tests" / "e2e" / "tools" / "kuberay"
KUBERAY_MODULE = "github.com/ray-project/kuberay/ray-operator"
SUBJECTS = ("floor", "windlass", "kuberay", "kuberay-raised")
CREATORS = 16
"""Requests of the load generator under way at a time."""
BURST_TIMEOUT_S = 1200.0
NEIGHBOUR_S = 2.0
"""Between two single objects of a tenant that takes no part in the burst."""
QUIET_S = 10.0
"""An operator that wrote nothing for this long has settled."""
QUIET_PERCENT = 15.0
"""A machine that is busier than this is not quiet."""
FAST = {
    "kube-controller-manager": (
        "--kube-api-qps=5000",
        "--kube-api-burst=10000",
        "--concurrent-deployment-syncs=16",
        "--concurrent-replicaset-syncs=16",
        "--concurrent-resource-quota-syncs=4",
        "--concurrent-service-endpoint-syncs=8",
    ),
    "kube-scheduler": ("--kube-api-qps=5000", "--kube-api-burst=10000"),
}
"""Flags that take the brakes off Kubernetes' own controllers; kwok gets its own file."""
KWOK = {
    "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
    "kind": "KwokConfiguration",
    "options": {"podPlayStageParallelism": 32, "nodePlayStageParallelism": 4, "nodeLeaseParallelism": 4},
}


POD_NETWORK = "--cidr=10.64.0.0/10"
"""Of kwok. Its default has 254 addresses; a pod without one is patched again and again, and takes the machine down."""


class Bench:
    """One started control plane with the fleet on it, and what every measurement needs."""

    def __init__(self, plane: ControlPlane, api: Api, count: int) -> None:
        self.plane = plane
        self.api = api
        self.count = count

    @property
    def folder(self) -> Path:
        """Scratch folder of the control plane."""
        return self.plane.folder

    def mark(self) -> int:
        """Position of now in the audit log."""
        return self.plane.audit_log.stat().st_size

    def writes_of(self, user: str, since: int = 0) -> list[Write]:
        """Successful writes of one user."""
        return [write for write in read_writes(self.plane.audit_log, since) if write.user == user]

    async def settle(self, user: str, timeout_s: float = 300.0) -> None:
        """Wait until a user has written nothing for QUIET_S. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while True:
            mark = self.mark()
            await asyncio.sleep(QUIET_S)
            if not self.writes_of(user, mark):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{user} still writes after {timeout_s:.0f} s")

    def meter(self, **more: int) -> Meter:
        """Processor time from now on, of the control plane and of further processes by name."""
        return Meter({**{name: process.pid for name, process in self.plane.processes.items()}, **more})


@contextlib.asynccontextmanager
async def started_bench(minor: str, count: int) -> AsyncIterator[Bench]:
    """A fresh control plane with nodes and namespaces."""
    with tempfile.TemporaryDirectory(prefix="windlass-bench-") as name:
        folder = Path(name)
        kwok_file = folder / "kwok.yaml"
        kwok_file.write_text(yaml.safe_dump(KWOK))
        with running_control_plane(folder, minor, {**FAST, "kwok": (f"--config={kwok_file}", POD_NETWORK)}) as plane:
            async with connected(plane.admin) as api:
                bench = Bench(plane, api, count)
                await create_all(api, objects.nodes(count))
                await create_all(api, objects.namespaces())
                yield bench


async def create_all(api: Api, manifests: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Create everything, CREATORS at a time; return when each create was answered, by name."""
    waiting = iter(manifests)
    answered: dict[str, float] = {}

    async def creator() -> None:
        for manifest in waiting:
            await api.create(dict(manifest))
            answered[manifest["metadata"]["name"]] = time.monotonic()

    async with asyncio.TaskGroup() as group:
        for _ in range(CREATORS):
            group.create_task(creator())
    return answered


async def install_crds(api: Api, files: Iterable[Path]) -> None:
    """Create CRDs and wait until they are served."""
    names = []
    for path in sorted(files):
        manifest = yaml.safe_load(path.read_text())
        names.append((await api.create(manifest))["metadata"]["name"])
    base = collection("apiextensions.k8s.io/v1", "CustomResourceDefinition")
    for name in names:
        while True:
            conditions = (await api.request("GET", f"{base}/{name}")).get("status", {}).get("conditions") or ()
            if any(item["type"] == "Established" and item["status"] == "True" for item in conditions):
                break
            await asyncio.sleep(0.1)
    await asyncio.sleep(1.0)


async def create_account(bench: Bench, namespace: str, name: str) -> Path:
    """A service account that may do everything, so that the audit log tells its writes; returns its kubeconfig."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
    await bench.api.create(account)
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    }
    await bench.api.create(binding)
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 86_400}}
    answer = await bench.api.request("POST", f"{collection_of(account)}/{name}/token", request)
    return bench.plane.access(answer["status"]["token"]).write_kubeconfig(bench.folder / f"{name}.json")


# -- the floor ---------------------------------------------------------------------------------------------------------


async def measure_floor(bench: Bench) -> dict[str, Any]:
    """The children alone: how fast the control plane itself is."""
    await create_all(bench.api, objects.tenant_children(bench.count))
    per_service = objects.service_children(bench.count, bench.count)
    deployments = Sightings()
    async with watching(bench, ("apps/v1", "Deployment"), deployments, whole=True, accept=is_available):
        meter = bench.meter()
        started = time.monotonic()
        waiting = iter(per_service)

        async def creator() -> None:
            for children in waiting:
                for child in children:
                    await bench.api.create(child)

        async with asyncio.TaskGroup() as group:
            for _ in range(CREATORS):
                group.create_task(creator())
        created_s = time.monotonic() - started
        complete = await deployments.until(lambda: len(deployments.accepted) >= bench.count, BURST_TIMEOUT_S)
        return {
            "complete": complete,
            "create_s": round(created_s, 2),
            "ready_s": round(max(deployments.accepted.values()) - started, 2),
            "children": sum(len(children) for children in per_service),
            **meter.read(),
        }


def is_available(deployment: Mapping[str, Any]) -> bool:
    """Whether a Deployment has what it asks for."""
    status = deployment.get("status", {})
    return bool(
        status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
        and status.get("availableReplicas", 0) >= deployment["spec"]["replicas"] > 0
    )


@contextlib.asynccontextmanager
async def watching(
    bench: Bench,
    kind: tuple[str, str],
    sightings: Sightings,
    *,
    whole: bool,
    accept: Callable[[Mapping[str, Any]], bool] = bool,
    name_of: Callable[[Mapping[str, Any]], str] = own_name,
) -> AsyncIterator[None]:
    """Watch a kind in the background."""
    path = collection(*kind)
    task = asyncio.create_task(bench.api.watch(path, sightings.taker(accept, name_of), whole=whole))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# -- our operator ------------------------------------------------------------------------------------------------------

OPERATOR = "system:serviceaccount:windlass-system:windlass-operator"


async def started_windlass(bench: Bench) -> OperatorProcess:
    """Our operator, leading, with tenants and a GPUClass."""
    await install_crds(bench.api, (ROOT / "crds").glob("*.yaml"))
    kubeconfig = await create_account(bench, "windlass-system", "windlass-operator")
    await bench.api.create(objects.gpu_class())
    await create_all(bench.api, objects.tenants(bench.count))
    operator = OperatorProcess(kubeconfig, bench.folder / "operator.log")
    operator.start()
    await bench.settle(OPERATOR)
    return operator


async def measure_windlass(bench: Bench, plan: argparse.Namespace) -> dict[str, Any]:
    """Burst, edits, idleness, restarts."""
    operator = await started_windlass(bench)
    try:
        profile = profiling(plan.profile, operator.pid, "burst")
        with profile:
            figures: dict[str, Any] = {"burst": await burst_windlass(bench, operator)}
        figures["edits"] = await edit_windlass(bench, plan.edits)
        figures |= await rest(bench, operator, plan)
        return figures
    finally:
        keep_log(operator.log, plan.logs)
        operator.stop()


async def burst_windlass(bench: Bench, operator: OperatorProcess) -> dict[str, Any]:
    """Create all services at once and wait until all are Ready."""
    services, deployments = Sightings(), Sightings()
    mark = bench.mark()
    burst = [objects.inference_service(index) for index in range(bench.count)]
    async with (
        watching(bench, (objects.API, "InferenceService"), services, whole=True, accept=of_burst(is_ready)),
        watching(bench, ("apps/v1", "Deployment"), deployments, whole=False),
    ):
        run = await run_burst(bench, burst, objects.inference_service(0), operator.pid, services, deployments.seen)
        await bench.settle(OPERATOR)
    writes = bench.writes_of(OPERATOR, mark)
    return {
        **run,
        "spec_to_first_child_s": spread(first_child_delays(read_writes(bench.plane.audit_log, mark))),
        "children": sum(write.created for write in writes),
        "writes": count_by_resource(writes),
        "refusals": dict(read_refusals(bench.plane.audit_log, OPERATOR, mark)),
        "reconciles": operator.metric("windlass_reconcile_duration_seconds_count"),
    }


async def run_burst(
    bench: Bench,
    burst: Sequence[dict[str, Any]],
    single: dict[str, Any],
    pid: int,
    ready: Sightings,
    children: Mapping[str, float],
) -> dict[str, Any]:
    """Create everything at once and wait until all of it is accepted; `children`: when the child of each was seen.

    Meanwhile a tenant that takes no part creates a single object now and then.
    """
    with MemoryWatch(pid) as memory:
        meter = bench.meter(operator=pid)
        started = time.monotonic()
        async with neighbouring(bench, single, children) as neighbour:
            answered = await create_all(bench.api, random.Random(1).sample(burst, len(burst)))
            complete = await ready.until(lambda: len(ready.accepted) >= len(burst), BURST_TIMEOUT_S)
            used = meter.read()
    known = [name for name in answered if name in children]
    return {
        "complete": complete,
        "create_s": round(max(answered.values()) - started, 2),
        "children_s": round(max((children[name] for name in known), default=math.nan) - started, 2),
        "ready_s": round(max(ready.accepted.values(), default=math.nan) - started, 2),
        "spec_to_child_s": spread([children[name] - answered[name] for name in known]),
        "spec_to_ready_s": spread([seen - answered[name] for name, seen in ready.accepted.items()]),
        "neighbour_spec_to_child_s": spread(neighbour.delays()),
        "rss_peak_mb": memory.peak_mb,
        **used,
    }


def is_ready(service: Mapping[str, Any]) -> bool:
    """Whether an InferenceService is Ready as it stands."""
    status = service.get("status", {})
    current = status.get("observedGeneration") == service["metadata"]["generation"]
    return current and any(item["type"] == "Ready" and item["status"] == "True" for item in status["conditions"])


def of_burst(holds: Callable[[Mapping[str, Any]], bool]) -> Callable[[Mapping[str, Any]], bool]:
    """The same condition, for objects of the burst alone."""
    return lambda manifest: manifest["metadata"]["namespace"] != objects.NEIGHBOUR and holds(manifest)


class Neighbour:
    """What became of the single objects of a tenant that takes no part in the burst."""

    def __init__(self, seen: Mapping[str, float]) -> None:
        self.answered: dict[str, float] = {}
        self._seen = seen

    def delays(self) -> list[float]:
        """Seconds from the answer to each create to the sight of its child."""
        return [self._seen[name] - answered for name, answered in self.answered.items() if name in self._seen]


@contextlib.asynccontextmanager
async def neighbouring(bench: Bench, manifest: dict[str, Any], seen: Mapping[str, float]) -> AsyncIterator[Neighbour]:
    """Create a single object of another tenant now and then; `seen` tells when its child was."""
    neighbour = Neighbour(seen)

    async def create() -> None:
        for number in itertools.count():
            await asyncio.sleep(NEIGHBOUR_S)
            single = objects.for_neighbour(manifest, number)
            await bench.api.create(single)
            neighbour.answered[single["metadata"]["name"]] = time.monotonic()

    task = asyncio.create_task(create())
    try:
        yield neighbour
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def first_child_delays(writes: Sequence[Write]) -> list[float]:
    """Seconds from the answer to a service's create to the answer to the first create of a child, by the server."""
    created = {
        write.name: write.answered_s for write in writes if write.resource == "inferenceservices" and write.created
    }
    first: dict[str, float] = {}
    for write in writes:
        if write.user == OPERATOR and write.created:
            first.setdefault(write.name.removesuffix("-runtime"), write.answered_s)
    return [first[name] - created[name] for name in first if name in created and name.startswith("chat-")]


async def edit_windlass(bench: Bench, edits: int) -> dict[str, Any]:
    """Change, then create, one service at a time among all the others; time until its Deployment follows."""
    if not edits:
        return {}
    pick = random.Random(2)
    deployments = Sightings()
    changes: list[float] = []
    creates: list[float] = []
    async with watching(bench, ("apps/v1", "Deployment"), deployments, whole=False):
        await deployments.until(lambda: len(deployments.seen) >= bench.count, 60.0)
        for number, index in enumerate(pick.sample(range(bench.count), edits)):
            service = objects.inference_service(index)
            name, before = service["metadata"]["name"], deployments.generations[objects.service_name(index)]
            await bench.api.merge(service, {"spec": {"limits": {"maxRunningRequests": 17}}})
            answered = time.monotonic()
            followed = await deployments.until(
                lambda name=name, before=before: deployments.generations[name] > before, 60.0
            )
            changes.append(time.monotonic() - answered if followed else 60.0)
            extra = objects.inference_service(bench.count + number)
            name = extra["metadata"]["name"]
            await bench.api.create(extra)
            answered = time.monotonic()
            followed = await deployments.until(lambda name=name: name in deployments.seen, 60.0)
            creates.append(deployments.seen[name] - answered if followed else 60.0)
            await asyncio.sleep(pick.random() * 0.4)
    await bench.settle(OPERATOR)
    return {"change_s": spread(changes), "create_s": spread(creates), "each": edits}


async def rest(bench: Bench, operator: OperatorProcess, plan: argparse.Namespace) -> dict[str, Any]:
    """Idleness and restarts, with whatever exists."""
    figures: dict[str, Any] = {}
    if plan.idle_s:
        figures["idle"] = await idle(bench, operator, plan.idle_s)
    figures["restarts"] = [await restart(bench, operator, plan) for _ in range(plan.restarts)]
    return figures


async def idle(bench: Bench, operator: OperatorProcess, seconds: float) -> dict[str, Any]:
    """Nobody changes anything."""
    mark = bench.mark()
    reconciles = operator.metric("windlass_reconcile_duration_seconds_count")
    with MemoryWatch(operator.pid) as memory:
        meter = bench.meter(operator=operator.pid)
        await asyncio.sleep(seconds)
        used = meter.read()
    writes = bench.writes_of(OPERATOR, mark)
    return {
        "writes_per_minute": round(len(writes) * 60 / seconds, 2),
        "writes": count_by_resource(writes),
        "reconciles": operator.metric("windlass_reconcile_duration_seconds_count") - reconciles,
        "operator_cpu_percent": round(100 * used["cpu_s"]["operator"] / used["wall_s"], 1),
        "rss_peak_mb": memory.peak_mb,
        "rss_mb": memory.last_mb,
        **used,
    }


async def restart(bench: Bench, operator: OperatorProcess, plan: argparse.Namespace) -> dict[str, Any]:
    """Stop by SIGTERM, start again: time until it is ready and leads, and until every object was reconciled."""
    stopped = time.monotonic()
    operator.stop()
    stop_s = time.monotonic() - stopped
    mark, started = bench.mark(), time.monotonic()
    operator.launch()
    with MemoryWatch(operator.pid) as memory, profiling(plan.profile, operator.pid, "restart"):
        meter = bench.meter(operator=operator.pid)
        operator.wait_ready()
        ready_s = time.monotonic() - started
        await until(operator.leads)
        leading_s = time.monotonic() - started
        await until(lambda: operator.metric("windlass_reconcile_duration_seconds_count") >= bench.count)
        reconciled_s = time.monotonic() - started
        used = meter.read()
        await bench.settle(OPERATOR)
    writes = bench.writes_of(OPERATOR, mark)
    own = {"inferenceservices/status", "tenants/status", "gpuclasses/status"}
    return {
        "stop_s": round(stop_s, 2),
        "ready_s": round(ready_s, 2),
        "leading_s": round(leading_s, 2),
        "reconciled_s": round(reconciled_s, 2),
        "child_writes": sum(write.resource not in own for write in writes),
        "writes": count_by_resource(writes),
        "rss_peak_mb": memory.peak_mb,
        "rss_mb": memory.last_mb,
        **used,
    }


async def until(holds: Callable[[], bool]) -> None:
    """Wait for another process."""
    while not holds():  # noqa: ASYNC110  (it has no event to wait for)
        await asyncio.sleep(0.1)


async def measure_idle(bench: Bench, plan: argparse.Namespace) -> dict[str, Any]:
    """As many services scaled to zero: all children exist, no pod does."""
    operator = await started_windlass(bench)
    try:
        services = Sightings()
        async with watching(bench, (objects.API, "InferenceService"), services, whole=True, accept=is_ready):
            started = time.monotonic()
            burst = [objects.inference_service(index, replicas=0) for index in range(bench.count)]
            await create_all(bench.api, burst)
            complete = await services.until(lambda: len(services.accepted) >= bench.count, BURST_TIMEOUT_S)
            filled_s = time.monotonic() - started
        await bench.settle(OPERATOR)
        filled = {"complete": complete, "ready_s": round(filled_s, 2), "rss_mb": rss_mb(operator.pid)}
        edits = await edit_windlass(bench, plan.edits)
        return {"fill": filled, "edits": edits, **await rest(bench, operator, plan)}
    finally:
        keep_log(operator.log, plan.logs)
        operator.stop()


def rss_mb(pid: int) -> float:
    """Resident memory now, in MB."""
    return round(float(psutil.Process(pid).memory_info().rss) / 1e6, 1)


@contextlib.contextmanager
def profiling(folder: Path | None, pid: int, name: str) -> Iterator[None]:
    """Record where a process spends its time with py-spy, where that is installed and asked for."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{name}-{int(time.time())}.txt"
    command = ["py-spy", "record", "--pid", str(pid), "--format", "raw", "--rate", "100", "--output", str(output)]
    recorder = subprocess.Popen([*command, "--duration", "3600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        recorder.send_signal(signal.SIGINT)  # py-spy writes what it has on an interrupt
        recorder.wait(60)


def keep_log(log: Path, folder: Path | None) -> None:
    """Copy an operator's log out of the scratch folder."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{log.stem}-{int(time.time())}.log").write_bytes(log.read_bytes())


# -- KubeRay -----------------------------------------------------------------------------------------------------------

KUBERAY = "system:serviceaccount:kuberay-system:kuberay-operator"


def build_kuberay() -> Path:
    """Build KubeRay's operator from its pinned module; minutes on a cold cache."""
    cache = Path(os.environ.get("WINDLASS_E2E_CACHE") or Path.home() / ".cache" / "windlass" / "e2e")
    binary = cache / f"kuberay-{go('list', '-m', '-f', '{{.Version}}', KUBERAY_MODULE)}" / "ray-operator"
    if not binary.exists():
        print(f"building {binary.name}, once; minutes on a cold cache", file=sys.stderr)
        go("build", "-trimpath", "-o", str(binary), KUBERAY_MODULE)
    return binary


def go(*arguments: str) -> str:
    """Run Go in the module that pins KubeRay; returns its output."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
    done = subprocess.run(
        ["go", *arguments], cwd=KUBERAY_TOOL, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip()


async def measure_kuberay(bench: Bench, raised: bool, workers: int, plan: argparse.Namespace) -> dict[str, Any]:
    """The burst as RayClusters, then idleness."""
    binary = build_kuberay()
    crds = Path(go("list", "-m", "-f", "{{.Dir}}", KUBERAY_MODULE)) / "config" / "crd" / "bases"
    await install_crds(bench.api, crds.glob("*.yaml"))
    await create_all(bench.api, objects.tenant_children(bench.count))
    kubeconfig = await create_account(bench, "kuberay-system", "kuberay-operator")
    metrics, probes = free_ports(2)
    command = [str(binary), f"--kubeconfig={kubeconfig}", "--leader-election-namespace=kuberay-system"]
    command += [f"--metrics-addr=127.0.0.1:{metrics}", f"--health-probe-bind-address=127.0.0.1:{probes}"]
    if raised:
        command += [f"--reconcile-concurrency={workers}", "--qps=5000", "--burst=10000"]
    log_path = bench.folder / "kuberay.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: ASYNC220  (returns at once)
    try:
        await asyncio.sleep(8.0)
        if process.poll() is not None:
            raise RuntimeError(f"KubeRay's operator ended; its log: {log_path.read_text()[-3000:]}")
        figures: dict[str, Any] = {"burst": await burst_kuberay(bench, process.pid)}
        if plan.idle_s:
            mark, meter = bench.mark(), bench.meter(operator=process.pid)
            await asyncio.sleep(plan.idle_s)
            used = meter.read()
            writes = bench.writes_of(KUBERAY, mark)
            figures["idle"] = {
                "writes_per_minute": round(len(writes) * 60 / plan.idle_s, 2),
                "operator_cpu_percent": round(100 * used["cpu_s"]["operator"] / used["wall_s"], 1),
                "rss_mb": rss_mb(process.pid),
                **used,
            }
        return figures
    finally:
        keep_log(log_path, plan.logs)
        process.terminate()
        process.wait(30)


async def burst_kuberay(bench: Bench, pid: int) -> dict[str, Any]:
    """Create all RayClusters at once and wait until all are ready."""
    clusters, heads = Sightings(), Sightings()
    mark = bench.mark()
    burst = [objects.ray_cluster(index) for index in range(bench.count)]
    async with (
        watching(bench, ("ray.io/v1", "RayCluster"), clusters, whole=True, accept=of_burst(is_ray_ready)),
        watching(bench, ("v1", "Pod"), heads, whole=False, name_of=ray_cluster_of),
    ):
        run = await run_burst(bench, burst, objects.ray_cluster(0), pid, clusters, heads.seen)
        await bench.settle(KUBERAY)
    writes = bench.writes_of(KUBERAY, mark)
    return {
        **run,
        "children": sum(write.created for write in writes),
        "writes": count_by_resource(writes),
        "refusals": dict(read_refusals(bench.plane.audit_log, KUBERAY, mark)),
    }


def ray_cluster_of(pod: Mapping[str, Any]) -> str:
    """Name of the RayCluster a pod belongs to."""
    return str((pod["metadata"].get("labels") or {}).get("ray.io/cluster", ""))


def is_ray_ready(cluster: Mapping[str, Any]) -> bool:
    """Whether KubeRay calls a RayCluster ready."""
    return bool(cluster.get("status", {}).get("state") == "ready")


# -- running and reporting ---------------------------------------------------------------------------------------------


async def measure(subject: str, plan: argparse.Namespace) -> dict[str, Any]:
    """One subject on a fresh control plane. Raises RuntimeError when one of its servers ends meanwhile."""
    count = plan.idle if subject == "idle" else plan.count
    await wait_for_quiet(plan.patience_s)
    async with started_bench(plan.kubernetes, count) as bench, asyncio.TaskGroup() as group:
        guard = group.create_task(guard_servers(bench))
        figures = await measure_on(bench, subject, plan)
        guard.cancel()
        return figures


async def measure_on(bench: Bench, subject: str, plan: argparse.Namespace) -> dict[str, Any]:
    """One subject on a control plane that runs."""
    if subject == "floor":
        return await measure_floor(bench)
    if subject == "windlass":
        return await measure_windlass(bench, plan)
    if subject == "idle":
        return await measure_idle(bench, plan)
    return await measure_kuberay(bench, subject == "kuberay-raised", plan.workers, plan)


async def guard_servers(bench: Bench) -> None:
    """Fail when a server of the control plane ends: waiting for the rest of a burst would be in vain."""
    while True:
        ended = [name for name, process in bench.plane.processes.items() if process.poll() is not None]
        if ended:
            raise RuntimeError(f"ended by itself: {', '.join(ended)}")
        await asyncio.sleep(1.0)


async def wait_for_quiet(patience_s: float) -> None:
    """Wait until others use little of the machine, at most this long."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and psutil.cpu_percent(interval=5.0) > QUIET_PERCENT:  # noqa: ASYNC110
        await asyncio.sleep(5.0)


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def print_table(runs: Sequence[Mapping[str, Any]]) -> None:
    """Medians over the repeats, one line per subject."""
    columns = (
        "subject",
        "all created, s",
        "all children, s",
        "all Ready, s",
        "spec to child p50 / p99, s",
        "of a neighbour, p50 / worst, s",
        "CPU of the operator, s",
        "its peak MB",
        "CPU of the rest, s",
        "CPU of others, s",
    )
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for subject in SUBJECTS:
        found = [run["figures"] for run in runs if run["subject"] == subject]
        bursts = [figures.get("burst", figures) for figures in found]
        if bursts:
            print(f"| {subject} | {' | '.join(_cells(bursts))} |")


def _cells(bursts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    def median(read: Callable[[Mapping[str, Any]], float | None]) -> str:
        values = [value for burst in bursts if (value := read(burst)) is not None]
        return f"{statistics.median(values):.1f}" if values else "-"

    def delay(burst: Mapping[str, Any], which: str) -> float | None:
        found = burst.get("spec_to_child_s")
        return found[which] if found else None

    def neighbour(burst: Mapping[str, Any], which: str) -> float | None:
        found = burst.get("neighbour_spec_to_child_s")
        return found[which] if found else None

    yield median(lambda burst: burst["create_s"])
    yield median(lambda burst: burst.get("children_s"))
    yield median(lambda burst: burst["ready_s"])
    yield f"{median(lambda burst: delay(burst, 'p50'))} / {median(lambda burst: delay(burst, 'p99'))}"
    yield f"{median(lambda burst: neighbour(burst, 'p50'))} / {median(lambda burst: neighbour(burst, 'worst'))}"
    yield median(lambda burst: burst["cpu_s"].get("operator"))
    yield median(lambda burst: burst.get("rss_peak_mb"))
    yield median(lambda burst: sum(used for name, used in burst["cpu_s"].items() if name != "operator"))
    yield median(lambda burst: burst["foreign_cpu_s"])


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="*", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--count", type=int, default=1000, help="services in the burst")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--edits", type=int, default=100, help="single changes and single creates after the burst")
    parser.add_argument("--idle-s", type=float, default=150.0, help="seconds of idleness to watch; 0 for none")
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--idle", type=int, default=0, help="services of the idle measurement; 0 for none")
    parser.add_argument("--workers", type=int, default=8, help="concurrency of kuberay-raised: our default")
    parser.add_argument("--patience-s", type=float, default=0.0, help="wait this long for a quiet machine each time")
    parser.add_argument("--kubernetes", default="", help="minor, such as 1.34; the newest pinned one by default")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--logs", type=Path, help="folder for the operators' logs")
    parser.add_argument("--profile", type=Path, help="folder for profiles of our operator; needs py-spy on the PATH")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    plan = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers must not outlive us
    runs: list[dict[str, Any]] = []
    for repeat in range(plan.repeats):
        for subject in [*plan.subjects, *(["idle"] if plan.idle and repeat == 0 else [])]:
            print(f"repeat {repeat + 1} of {plan.repeats}: {subject}", file=sys.stderr)
            figures = asyncio.run(measure(subject, plan))
            runs.append({"subject": subject, "repeat": repeat, "figures": figures})
            print(json.dumps(figures, indent=1), file=sys.stderr)
            if plan.output is not None:
                plan.output.parent.mkdir(parents=True, exist_ok=True)
                machine = describe_machine()
                plan.output.write_text(json.dumps({"machine": machine, "count": plan.count, "runs": runs}, indent=1))
    print_table(runs)


if __name__ == "__main__":
    main()
