"""The scheduler alone: what planning costs per step, and what a flooding tenant does to another, against arrival order.

    python benchmarks/scheduler.py --output build/scheduler.json

Planning is timed in processor time of one thread, with every sequence decoding and with tenants that come and go. The
flood runs in virtual time on the figures of a simulated accelerator (`windlass-runtime simulate --profile`), so it does
not depend on the machine. Arrival order is the same scheduler with every request under one tenant. No GPU is needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import statistics
import time
from typing import Any

from windlass_runtime.kv.pages import PagePool
from windlass_runtime.scheduling.scheduler import Limits, Scheduler
from windlass_runtime.scheduling.sequence import Sequence
from windlass_runtime.simulate.profile import NAMED
from windlass_runtime.simulate.traces import build_flood
from windlass_runtime.simulate.virtual_time import Arrival, Served, quantile, run_trace

AIMS_MS = {64: 0.3, 256: 1.0}
"""Planning and recording one step, by sequences that run."""
PROFILE = "h200-8b"
LIMITS = Limits(step_tokens=512, max_running=64, page_tokens=64, max_sequence_tokens=8192)


def measure_steps(sequences: int, tenants: int, *, churn: bool) -> dict[str, Any]:
    """Milliseconds of processor per step; with churn answers are short, so sequences end and begin all the time."""
    scheduler = Scheduler(dataclasses.replace(LIMITS, max_running=sequences), PagePool(64 * sequences))
    made = 0

    def submit() -> None:
        nonlocal made
        output = 8 + made % 24 if churn else 1900
        scheduler.submit(Sequence(str(made), [1] * 100, 100 + output, tenant=f"tenant-{made % tenants}"))
        made += 1

    for _ in range(sequences):
        submit()
    times_ms = []
    for number in range(600):
        while scheduler.running_count + scheduler.waiting_count < sequences + (sequences // 2 if churn else 0):
            submit()
        started = time.thread_time()
        plan = scheduler.plan_step()
        planned = time.thread_time() - started
        tokens = {row.sequence_id: 1 for row in plan.rows if row.samples}
        started = time.thread_time()
        scheduler.apply_tokens(plan, tokens)
        if number >= 100:
            times_ms.append(1e3 * (planned + time.thread_time() - started))
    return {
        "sequences": sequences,
        "tenants": tenants,
        "churn": churn,
        "median_ms": statistics.median(times_ms),
        "p95_ms": quantile(times_ms, 0.95),
        "aim_ms": AIMS_MS[sequences],
    }


def measure_flood(factor: float, rate: float, seconds: float) -> dict[str, Any]:
    """The victim's time to first token alone, under a flood, and under the same flood in order of arrival."""
    profile = NAMED[PROFILE]
    victim, flood = build_flood(victim_requests_per_s=rate, flood_factor=factor, seconds=seconds, seed=1)
    everybody = [*victim, *flood]
    runs = {
        "alone": run_trace(victim, LIMITS, profile),
        "fair": run_trace(everybody, LIMITS, profile, until_s=seconds),
        "arrival order": run_trace([_anonymous(arrival) for arrival in everybody], LIMITS, profile, until_s=seconds),
    }
    marks = {_mark(arrival) for arrival in victim}
    figures: dict[str, Any] = {"factor": factor, "victim_requests_per_s": rate, "seconds": seconds, "victim": {}}
    for name, results in runs.items():
        waits_s = [served.time_to_first_token_s for served in results if _mark(served.arrival) in marks]
        figures["victim"][name] = {
            "p50_s": quantile(waits_s, 0.5),
            "p95_s": quantile(waits_s, 0.95),
            "p99_s": quantile(waits_s, 0.99),
            "unanswered": sum(wait_s == math.inf for wait_s in waits_s),
        }
        figures[f"tokens_{name.replace(' ', '_')}"] = _tokens(results)
    return figures


def _anonymous(arrival: Arrival) -> Arrival:
    return dataclasses.replace(arrival, tenant="")


def _mark(arrival: Arrival) -> tuple[float, int, int]:
    return arrival.at_s, arrival.prompt_tokens, arrival.output_tokens


def _tokens(results: list[Served]) -> int:
    """Prompt and output tokens of finished requests."""
    return sum(
        served.arrival.prompt_tokens + served.arrival.output_tokens for served in results if served.end_s < math.inf
    )


def render(figures: dict[str, Any]) -> str:
    """Both tables as Markdown."""
    lines = ["| sequences | tenants | | median, ms | p95, ms | aim, ms |", "|---|---|---|---|---|---|"]
    for row in figures["steps"]:
        kind = "coming and going" if row["churn"] else "all decode"
        lines.append(
            f"| {row['sequences']} | {row['tenants']} | {kind} | {row['median_ms']:.3f} | {row['p95_ms']:.3f} | "
            f"{row['aim_ms']} |"
        )
    for flood in figures["floods"]:
        lines += ["", f"Flood of {flood['factor']:g} times {flood['victim_requests_per_s']:g} requests/s:", ""]
        lines += ["| victim | p50, s | p95, s | p99, s | unanswered | tokens served |", "|---|---|---|---|---|---|"]
        for name, row in flood["victim"].items():
            tokens = flood[f"tokens_{name.replace(' ', '_')}"]
            lines.append(
                f"| {name} | {row['p50_s']:.3f} | {row['p95_s']:.3f} | {row['p99_s']:.3f} | {row['unanswered']} | "
                f"{tokens} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="length of the flood in virtual time")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for every figure")
    options = parser.parse_args()
    figures = {
        "load_average": os.getloadavg(),
        "profile": PROFILE,
        "steps": [
            measure_steps(sequences, tenants, churn=churn)
            for sequences in AIMS_MS
            for tenants, churn in ((1, False), (8, False), (8, True))
        ],
        "floods": [measure_flood(10, rate, options.seconds) for rate in (1.0, 2.0)],
    }
    print(render(figures))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
