"""What `control_plane` measures of its rival, KubeRay's operator: the same burst as RayClusters, and idleness."""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import control_plane_objects as objects
from control_plane_bench import (
    Bench,
    create_account,
    create_all,
    install_crds,
    keep_log,
    of_burst,
    rss_mb,
    run_burst,
    watching,
)
from control_plane_client import Sightings
from control_plane_figures import count_by_resource, read_refusals

from support.control_plane import free_ports

TOOL = Path(__file__).resolve().parents[1] / "tests" / "e2e" / "tools" / "kuberay"
MODULE = "github.com/ray-project/kuberay/ray-operator"
USER = "system:serviceaccount:kuberay-system:kuberay-operator"


def build_kuberay() -> Path:
    """Build KubeRay's operator from its pinned module; minutes on a cold cache."""
    cache = Path(os.environ.get("WINDLASS_E2E_CACHE") or Path.home() / ".cache" / "windlass" / "e2e")
    binary = cache / f"kuberay-{go('list', '-m', '-f', '{{.Version}}', MODULE)}" / "ray-operator"
    if not binary.exists():
        print(f"building {binary.name}, once; minutes on a cold cache", file=sys.stderr)
        go("build", "-trimpath", "-o", str(binary), MODULE)
    return binary


def go(*arguments: str) -> str:
    """Run Go in the module that pins KubeRay; returns its output."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
    done = subprocess.run(["go", *arguments], cwd=TOOL, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


async def measure_kuberay(bench: Bench, raised: bool, workers: int, plan: argparse.Namespace) -> dict[str, Any]:
    """The burst as RayClusters, then idleness."""
    binary = build_kuberay()
    crds = Path(go("list", "-m", "-f", "{{.Dir}}", MODULE)) / "config" / "crd" / "bases"
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
            writes = bench.writes_of(USER, mark)
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
        await bench.settle(USER)
    writes = bench.writes_of(USER, mark)
    return {
        **run,
        "children": sum(write.created for write in writes),
        "writes": count_by_resource(writes),
        "refusals": dict(read_refusals(bench.plane.audit_log, USER, mark)),
    }


def ray_cluster_of(pod: Mapping[str, Any]) -> str:
    """Name of the RayCluster a pod belongs to."""
    return str((pod["metadata"].get("labels") or {}).get("ray.io/cluster", ""))


def is_ray_ready(cluster: Mapping[str, Any]) -> bool:
    """Whether KubeRay calls a RayCluster ready."""
    return bool(cluster.get("status", {}).get("state") == "ready")
