"""What requests did, from counters of replicas: increases within a window, added up over pods. Pure.

Counters start at zero with their process, and a series appears with its first event. So a series without a sample
before the window counts from zero: Prometheus' own `increase` would take the first failures of a new canary for its
beginning. A Prometheus that lost its data therefore counts a pod's whole life once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from windlass_contract import metric_names
from windlass_operator.domain.canary import RevisionReading

FIRST_TOKEN_BUCKET: Final = f"{metric_names.TIME_TO_FIRST_TOKEN}_bucket"
TOKEN_SUM: Final = f"{metric_names.TIME_PER_OUTPUT_TOKEN}_sum"
TOKEN_COUNT: Final = f"{metric_names.TIME_PER_OUTPUT_TOKEN}_count"
COUNTERS: Final = (metric_names.REQUESTS_TOTAL, FIRST_TOKEN_BUCKET, TOKEN_SUM, TOKEN_COUNT)
"""Names of the series that a reading is made of."""
ENDS: Final = ("stop", "length", "failed")
"""Outcomes that tell something about the replica; clients that leave and full queues do not."""


@dataclass(frozen=True, slots=True)
class Point:
    """One sample of a series, at seconds since the epoch."""

    at_s: float
    value: float


@dataclass(frozen=True, slots=True)
class Growth:
    """By how much one series grew."""

    name: str
    labels: Mapping[str, str]
    increase: float


def increase(points: Sequence[Point], since_s: float) -> float:
    """How much a counter grew after a moment, restarts of its process included. `points` rise in time."""
    before = [point.value for point in points if point.at_s <= since_s]
    last = before[-1] if before else 0.0
    grown = 0.0
    for point in points:
        if point.at_s > since_s:
            grown += point.value - last if point.value >= last else point.value
            last = point.value
    return grown


def fold_growth(growths: Iterable[Growth]) -> RevisionReading:
    """Add up what the pods of one revision did."""
    finished = failed = tokens = token_seconds = 0.0
    buckets: dict[float, float] = {}
    for growth in growths:
        if not math.isfinite(growth.increase):
            continue
        if growth.name == metric_names.REQUESTS_TOTAL and growth.labels.get("outcome") in ENDS:
            finished += growth.increase
            failed += growth.increase if growth.labels.get("outcome") == "failed" else 0.0
        elif growth.name == FIRST_TOKEN_BUCKET:
            bound = float(growth.labels.get("le", "nan"))
            if not math.isnan(bound):
                buckets[bound] = buckets.get(bound, 0.0) + growth.increase
        elif growth.name == TOKEN_COUNT:
            tokens += growth.increase
        elif growth.name == TOKEN_SUM:
            token_seconds += growth.increase
    return RevisionReading(finished, failed, tuple(sorted(buckets.items())), tokens, token_seconds)


SeriesKey = tuple[str, tuple[tuple[str, str], ...]]
"""Name and labels of a series."""


def parse_counters(text: str) -> dict[SeriesKey, float]:
    """Return our counters from one replica's exposition. Raises ValueError for text that is none."""
    ours = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] in COUNTERS]
    found: dict[SeriesKey, float] = {}
    for family in text_string_to_metric_families("\n".join(ours) + "\n"):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = float(sample.value)
    return found
