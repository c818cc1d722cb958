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
import json
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import control_plane_objects as objects
import psutil
from control_plane_bench import BURST_TIMEOUT_S, CREATORS, Bench, create_all, started_bench, watching
from control_plane_client import Sightings
from control_plane_kuberay import measure_kuberay
from control_plane_report import describe_machine, print_table
from control_plane_windlass import measure_idle, measure_windlass

SUBJECTS = ("floor", "windlass", "kuberay", "kuberay-raised")
QUIET_PERCENT = 15.0
"""A machine that is busier than this is not quiet."""


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
    print_table(runs, SUBJECTS)


if __name__ == "__main__":
    main()
