"""What the control-plane benchmark measures besides its own watches: the audit log, processor time and memory."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from support.audit_log import AuditLog, Write

WRITES = ("create", "update", "patch", "delete")
NOT_OBJECTS = frozenset({"events", "subjectaccessreviews", "tokenreviews", "serviceaccounts/token"})
"""Writes that change no object of anybody."""
SAMPLE_S = 0.25


def read_writes(audit_log: Path, since: int = 0) -> list[Write]:
    """Writes after a position of the file that changed an object of somebody."""
    return [write for write in AuditLog(audit_log).writes(since) if write.succeeded and _is_of_object(write)]


def read_refusals(audit_log: Path, user: str, since: int = 0) -> Counter[str]:
    """How often a user was answered with an error, by resource and code."""
    refused = [write for write in AuditLog(audit_log).writes(since, user) if write.code >= 300]
    return Counter(f"{write.resource} {write.code}" for write in refused)


def _is_of_object(write: Write) -> bool:
    return write.verb in WRITES and write.resource not in NOT_OBJECTS


def count_by_resource(writes: Iterable[Write]) -> dict[str, int]:
    """`resource verb` -> number, most frequent first."""
    return dict(Counter(f"{write.resource} {write.verb}" for write in writes).most_common())


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the worst."""
    return {"p50": percentile(values, 50), "p99": percentile(values, 99), "worst": max(values, default=math.nan)}


class Meter:
    """Processor time of named processes and of everything else on the machine, between two moments."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._processes["benchmark"] = psutil.Process()
        self._started = time.monotonic()
        self._before = self._seconds()
        self._busy_before = _busy_s()

    def read(self) -> dict[str, Any]:
        """Seconds since the start: wall, processor by process, and by processes that are not of this run."""
        after = self._seconds()
        used = {name: round(after[name] - self._before[name], 2) for name in after}
        foreign = _busy_s() - self._busy_before - sum(used.values())
        return {
            "wall_s": round(time.monotonic() - self._started, 2),
            "cpu_s": used,
            "foreign_cpu_s": round(max(0.0, foreign), 2),
            "load": [round(value, 2) for value in os.getloadavg()],
        }

    def _seconds(self) -> dict[str, float]:
        return {name: _cpu_s(process) for name, process in self._processes.items()}


def _cpu_s(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


class MemoryWatch:
    """Resident memory of one process, sampled in a thread of its own. Use as a context manager."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._samples: list[int] = []

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def peak_mb(self) -> float:
        """Largest sample, in MB of a million bytes."""
        return round(max(self._samples, default=0) / 1e6, 1)

    @property
    def last_mb(self) -> float:
        """Newest sample."""
        return round((self._samples or [0])[-1] / 1e6, 1)

    def _run(self) -> None:
        while not self._end.wait(SAMPLE_S):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._samples.append(self._process.memory_info().rss)
