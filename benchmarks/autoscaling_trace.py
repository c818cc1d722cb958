"""Our scaling against plain CPU scaling on the same trace: replica-seconds, and requests that waited too long.

A discrete-event simulation in virtual time: the service, its replicas and the autoscaler's algorithm are modelled
(`autoscaling_model`). Bounds, metrics and behaviour of ours are read from the objects that the operator renders. That
the real controller obeys them, which a model cannot show, is shown by tests/e2e.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoscaling_model import Autoscaler, Metric, Outcome, Replica, Service, Simulation

from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_service
from windlass_operator.domain.snapshot import Snapshot, Workload, snapshot_of
from windlass_operator.render.workload import render_service

HOURS = 4.0
MOST = 60
LEAST = 2
SEED = 7
DEFAULT_BEHAVIOR = {
    "scaleUp": {
        "stabilizationWindowSeconds": 0,
        "policies": [
            {"type": "Percent", "value": 100, "periodSeconds": 15},
            {"type": "Pods", "value": 4, "periodSeconds": 15},
        ],
    },
    "scaleDown": {
        "stabilizationWindowSeconds": 300,
        "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
    },
}
"""What an autoscaler without `behavior` does, from Kubernetes' documentation."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to scale."""

    name: str
    metrics: tuple[Metric, ...]
    behavior: Mapping[str, Any]
    coldest_first: bool


def rate_at(at_s: float) -> float:
    """Requests per second: a slow wave, and two bursts within seconds, as a release or a class of students makes."""
    wave = 5.0 + 4.0 * math.sin(2 * math.pi * at_s / (2 * 3600))
    bursts = sum(8.0 for begin_s in (0.9 * 3600, 2.6 * 3600) if begin_s <= at_s < begin_s + 600)
    return wave + bursts


def arrivals(hours: float, seed: int) -> Iterator[float]:
    """Poisson arrivals at `rate_at`, by thinning."""
    source, at_s, highest = random.Random(seed), 0.0, 20.0
    while at_s < hours * 3600:
        at_s += source.expovariate(highest)
        if source.random() * highest < rate_at(at_s):
            yield at_s


def rendered(startup_s: int) -> Mapping[str, Any]:
    """The autoscaler that the operator writes, for replicas that were seen to start in so many seconds."""
    scaling = {
        "minReplicas": LEAST,
        "maxReplicas": MOST,
        "metrics": [{"type": "QueueDepth", "target": 2}, {"type": "RunningRequests", "target": 6}],
    }
    service = InferenceService.model_validate(
        {
            "metadata": {"name": "chat", "namespace": "team"},
            "spec": {"model": {"uri": "hf://organisation/model"}, "scaling": scaling, "rollout": {"minAvailable": 1}},
        }
    )
    snapshot = snapshot_of([service], [], [])
    key = next(iter(snapshot.services))
    seen = replace(snapshot, workloads={key: Workload(replicas=2, ready=2, wanted=2, startup_s=startup_s)})
    assert isinstance(seen, Snapshot)
    settings = FleetSettings()
    children = render_service(plan_service(service, seen, settings), settings)
    return next(item["spec"] for item in children if item["kind"] == "HorizontalPodAutoscaler")


def ours(name: str, startup_s: int) -> Contender:
    """Ours, read from the rendered object."""
    spec = rendered(startup_s)
    reads = {
        "windlass_requests_waiting": lambda replica: float(len(replica.waiting)),
        "windlass_requests_running": lambda replica: float(replica.running),
    }
    metrics = tuple(
        Metric(reads[item["pods"]["metric"]["name"]], float(item["pods"]["target"]["averageValue"]))
        for item in spec["metrics"]
    )
    assert (spec["minReplicas"], spec["maxReplicas"]) == (LEAST, MOST)
    return Contender(name, metrics, spec["behavior"], coldest_first=True)


def of_cpu(name: str, idle: float) -> Contender:
    """Plain CPU scaling to 70 %. `idle`: share of the request that a replica uses without a request."""

    def use(replica: Replica) -> float:
        return idle + (1 - idle) * replica.running / replica.slots

    return Contender(name, (Metric(use, 0.7),), DEFAULT_BEHAVIOR, coldest_first=False)


def contenders(service: Service) -> list[Contender]:
    """Who runs against whom."""
    return [
        of_cpu("CPU 70 %, a processor that follows the load exactly", 0.0),
        of_cpu("CPU 70 %, half of it used when idle (a server that polls its GPU)", 0.5),
        ours("Windlass, growth not bounded by the start time", 0),
        ours("Windlass", int(service.startup_s)),
    ]


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def play(contender: Contender, service: Service, hours: float, seed: int) -> Outcome:
    """One run."""
    scaler = Autoscaler(LEAST, MOST, contender.metrics, contender.behavior)
    simulation = Simulation(service, scaler, LEAST, coldest_first=contender.coldest_first, seed=seed)
    return simulation.run(arrivals(hours, seed), hours * 3600)


def measure(service: Service, hours: float, seeds: list[int]) -> list[dict[str, Any]]:
    """All runs, with the means over the seeds."""
    rows = []
    for contender in contenders(service):
        runs = [play(contender, service, hours, seed) for seed in seeds]
        rows.append(
            {
                "name": contender.name,
                "replicaHours": sum(run.replica_s for run in runs) / len(runs) / 3600,
                "missPercent": 100 * sum(run.misses for run in runs) / sum(run.requests for run in runs),
                "waitP95S": sum(percentile(run.waits_s, 95) for run in runs) / len(runs),
                "waitP99S": sum(percentile(run.waits_s, 99) for run in runs) / len(runs),
                "started": sum(run.started for run in runs) / len(runs),
                "mostReplicas": max(number for run in runs for _, number, _ in run.timeline),
                "requests": sum(run.requests for run in runs) // len(runs),
                "timeline": runs[0].timeline,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| scaling | replica-hours | waited over 2 s | wait p95 / p99 s | replicas started | most at once |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        waits = f"{row['waitP95S']:.1f} / {row['waitP99S']:.1f}"
        lines.append(
            f"| {row['name']} | {row['replicaHours']:.1f} | {row['missPercent']:.2f} % | {waits} "
            f"| {row['started']:.0f} | {row['mostReplicas']} |"
        )
    return "\n".join(lines)


COLOURS = ("#888888", "#c44e52", "#dd8452", "#4c72b0")


def plot(rows: list[dict[str, Any]], hours: float) -> str:
    """Replicas over time as an SVG, with the load behind them."""
    width, height, left, top = 900, 320, 50, 20
    wide, high = width - left - 20, height - top - 40 - 18 * len(rows)

    def place(at_s: float, value: float, most: float) -> str:
        return f"{left + wide * at_s / (hours * 3600):.1f},{top + high * (1 - value / most):.1f}"

    load = " ".join(place(at_s, rate_at(at_s), 20) for at_s in range(0, int(hours * 3600), 30))
    frame = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {frame}>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<polygon points="{left},{top + high} {load} {left + wide},{top + high}" fill="#eeeeee"/>',
    ]
    for value in range(0, MOST + 1, 10):
        y = place(0, value, MOST).partition(",")[2]
        parts += [f'<text x="{left - 8}" y="{y}" text-anchor="end">{value}</text>']
    for hour in range(int(hours) + 1):
        x = place(hour * 3600, 0, MOST).partition(",")[0]
        parts += [f'<text x="{x}" y="{top + high + 16}" text-anchor="middle">{hour} h</text>']
    for index, row in enumerate(rows):
        points = " ".join(place(at_s, number, MOST) for at_s, number, _ in row["timeline"])
        line, key = top + high + 36 + 18 * index, f'x1="{left}" x2="{left + 24}" stroke-width="3"'
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[index]}" stroke-width="1.6"/>',
            f'<line {key} y1="{line - 4}" y2="{line - 4}" stroke="{COLOURS[index]}"/>',
            f'<text x="{left + 32}" y="{line}">{row["name"]}</text>',
        ]
    words = "grey: requests per second, up to 20"
    parts += [f'<text x="{left + wide}" y="{top + 12}" text-anchor="end" fill="#777777">{words}</text>']
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=HOURS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--startup", type=float, default=120.0, help="Seconds that a replica takes to start.")
    parser.add_argument("--output", type=Path, help="All figures as JSON.")
    parser.add_argument("--plot", type=Path, help="Replicas over time as an SVG.")
    arguments = parser.parse_args()
    service, begun = Service(startup_s=arguments.startup), time.monotonic()
    rows = measure(service, arguments.hours, list(range(SEED, SEED + arguments.seeds)))
    print(table(rows))
    took_s = time.monotonic() - begun
    print(f"{rows[0]['requests']} requests in {arguments.hours:g} h, {arguments.seeds} seeds, {took_s:.0f} s")
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.plot is not None:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        arguments.plot.write_text(plot(rows, arguments.hours))


if __name__ == "__main__":
    main()
