"""What `control_plane` measures of our operator: a burst, single edits, idleness, restarts."""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import control_plane_objects as objects
from control_plane_bench import (
    BURST_TIMEOUT_S,
    Bench,
    create_account,
    create_all,
    install_crds,
    keep_log,
    of_burst,
    profiling,
    rss_mb,
    run_burst,
    watching,
)
from control_plane_client import Sightings
from control_plane_figures import MemoryWatch, count_by_resource, read_refusals, read_writes, spread

from support.audit_log import Write
from support.operator_process import OperatorProcess

CRDS = Path(__file__).resolve().parents[1] / "crds"
OPERATOR = "system:serviceaccount:windlass-system:windlass-operator"


async def started_windlass(bench: Bench) -> OperatorProcess:
    """Our operator, leading, with tenants and a GPUClass."""
    await install_crds(bench.api, CRDS.glob("*.yaml"))
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


def is_ready(service: Mapping[str, Any]) -> bool:
    """Whether an InferenceService is Ready as it stands."""
    status = service.get("status", {})
    current = status.get("observedGeneration") == service["metadata"]["generation"]
    return current and any(item["type"] == "Ready" and item["status"] == "True" for item in status["conditions"])


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
