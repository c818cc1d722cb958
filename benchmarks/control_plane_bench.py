"""One started control plane, and what every measurement of `control_plane` does on it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import control_plane_objects as objects
import psutil
import yaml
from control_plane_client import Api, Sightings, collection, collection_of, connected, own_name
from control_plane_figures import MemoryWatch, Meter, read_writes, spread

from support.audit_log import Write
from support.control_plane import ControlPlane, running_control_plane

CREATORS = 16
"""Requests of the load generator under way at a time."""
BURST_TIMEOUT_S = 1200.0
NEIGHBOUR_S = 2.0
"""Between two single objects of a tenant that takes no part in the burst."""
QUIET_S = 10.0
"""An operator that wrote nothing for this long has settled."""
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
