"""How fast quota decisions are at a thousand tenants.

    python benchmarks/quota_decisions.py [--tenants 1000] [--decisions 60] [--output FILE]

A decision is what one change costs: a new snapshot (a service was created, or pods of one went), a new view of it, the
books of the whole cohort shared anew, and the plan of one service, with its reasons. As in the operator, a view takes
over from the one before what no change touches. Two fleets: one cohort of all
tenants, which is the worst case, and cohorts of twenty. Every tenant owns GPUs; half of them lend theirs, half run more
than they own.

The alternative it is compared with is the naive planner: books rebuilt for every service. It differs where many
services are planned from one snapshot, as after a restart.

Figures are medians of single decisions in processor time: other work on the machine disturbs them least.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.fleet_view import FleetView
from windlass_operator.domain.plan import plan_in_view, plan_service
from windlass_operator.domain.snapshot import Key, Node, Snapshot, Workload

SETTINGS = FleetSettings()
NOMINAL = 4
CREATED = "2026-01-01T00:00:00Z"
COHORTS_OF = 20
NAIVE_SAMPLE = 20
"""Services of which the naive planner is measured; all of them would take minutes."""


def build_fleet(tenants: int, cohort_size: int) -> Snapshot:
    """Tenants in cohorts, each with one running service: every other one borrows what its neighbour leaves idle."""
    services, workloads, owners = {}, {}, {}
    for number in range(tenants):
        name = f"t{number:04}"
        gpus = [{"name": "h200", "nominal": NOMINAL, "borrowingLimit": NOMINAL}]
        spec = {"namespaces": [name], "cohort": f"c{number // cohort_size}", "quota": {"gpus": gpus}}
        owners[name] = Tenant.model_validate({"metadata": {"name": name, "creationTimestamp": CREATED}, "spec": spec})
        replicas = NOMINAL - 2 if number % 2 else NOMINAL + 1
        service = build_service("chat", name, replicas)
        key = Key("InferenceService", name, "chat")
        services[key] = service
        workloads[key] = Workload(replicas, replicas, replicas, replicas, replicas, gpu_class="h200", devices=replicas)
    nodes = {f"n{index}": Node(f"n{index}", {"gpu": "h200"}, {"nvidia.com/gpu": 8}) for index in range(tenants // 2)}
    gpu_class = GPUClass.model_validate(
        {
            "metadata": {"name": "h200"},
            "spec": {"nodeSelector": {"gpu": "h200"}, "memory": "141Gi", "computeCapability": "9.0"},
        }
    )
    return Snapshot(services, owners, {"h200": gpu_class}, nodes, workloads)


def build_service(name: str, namespace: str, replicas: int) -> InferenceService:
    """A GPU service of a fixed number of replicas."""
    spec = {"model": {"uri": "hf://o/m"}, "accelerator": {"classes": ["h200"]}, "replicas": replicas}
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": CREATED}
    return InferenceService.model_validate({"metadata": metadata, "spec": spec})


def arrivals(snapshot: Snapshot, count: int) -> Iterator[tuple[Snapshot, InferenceService]]:
    """One new service after another, each in its own world; their tenants take turns."""
    names = sorted(snapshot.tenants)
    for number in range(count):
        # Lenders ask for what is their own, borrowers for more than there is.
        newcomer = build_service("new", names[number * 7 % len(names)], 2)
        key = Key("InferenceService", newcomer.metadata.namespace, "new")
        yield replace(snapshot, services={**snapshot.services, key: newcomer}), newcomer


def time_decisions(worlds: Iterator[tuple[Snapshot, InferenceService]]) -> list[float]:
    """Seconds of each decision."""

    earlier = FleetView(Snapshot(), SETTINGS)

    def decide(world: Snapshot, service: InferenceService) -> None:
        nonlocal earlier
        view = FleetView(world, SETTINGS)
        view.inherit(earlier)
        plan_in_view(service, view)
        earlier = view

    return [timed(lambda world=world, service=service: decide(world, service)) for world, service in worlds]


def timed(act: Callable[[], Any]) -> float:
    """Processor seconds that a call takes: one thread computes, and other work on the machine should not count."""
    started = time.process_time()
    act()
    return time.process_time() - started


def measure(tenants: int, cohort_size: int, decisions: int) -> dict[str, Any]:
    """Figures of one fleet."""
    snapshot = build_fleet(tenants, cohort_size)
    gc.freeze()
    seconds = time_decisions(arrivals(snapshot, decisions))
    services = [snapshot.services[key] for key in sorted(snapshot.services)]
    view = FleetView(snapshot, SETTINGS)
    shared_s = timed(lambda: [plan_in_view(service, view) for service in services])
    naive = [
        timed(lambda service=service: plan_service(service, snapshot, SETTINGS)) for service in services[:NAIVE_SAMPLE]
    ]
    median_s = statistics.median(seconds)
    return {
        "tenants": tenants,
        "cohort_size": cohort_size,
        "decisions": decisions,
        "median_ms": round(median_s * 1000, 2),
        "worst_ms": round(max(seconds) * 1000, 2),
        "decisions_per_s": round(1 / median_s, 1),
        "plan_all_shared_ms_per_service": round(shared_s / len(services) * 1000, 3),
        "plan_all_naive_ms_per_service": round(statistics.median(naive) * 1000, 3),
        "shared_against_naive": round(statistics.median(naive) / (shared_s / len(services)), 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How fast quota decisions are.")
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--decisions", type=int, default=60)
    parser.add_argument("--output", type=pathlib.Path, help="Write the figures as JSON too.")
    options = parser.parse_args()
    results = [measure(options.tenants, size, options.decisions) for size in (options.tenants, COHORTS_OF)]
    report = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "results": results,
    }
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
