"""The table of `control_plane`, and the machine that its figures depend on."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil


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


def print_table(runs: Sequence[Mapping[str, Any]], subjects: Iterable[str]) -> None:
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
    for subject in subjects:
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
