"""What replicas report, as samples: read from one replica's exposition or from an answer of Prometheus. Pure.

What cannot be read is absent, never zero: an autoscaler that misses a value holds, one that reads zero shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from windlass_contract import metric_names

GAUGES: Final = (metric_names.REQUESTS_WAITING, metric_names.REQUESTS_RUNNING, metric_names.KV_USE_RATIO)
"""What replicas export as it is asked for."""
DERIVED: Final = (metric_names.GENERATED_TOKENS_PER_SECOND, metric_names.TIME_TO_FIRST_TOKEN_P95)
"""What comes from their counters."""
METRICS: Final = (*GAUGES, *DERIVED, metric_names.GPU_USE_RATIO, metric_names.SERVICE_DEMAND)
"""What autoscalers may ask for."""
RATIOS: Final = frozenset({metric_names.KV_USE_RATIO, metric_names.GPU_USE_RATIO, metric_names.TIME_TO_FIRST_TOKEN_P95})
"""Shares and times do not add up as counts do."""


class PodKey(NamedTuple):
    """Identity of one replica."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One value and when it was measured, in seconds since the epoch."""

    value: float
    at_s: float


Samples = Mapping[PodKey, Sample]
"""One metric of many replicas."""


@dataclass(frozen=True, slots=True)
class SeriesLabels:
    """Which labels of a Prometheus series name its pod."""

    namespace: str = "namespace"
    pod: str = "pod"


def parse_exposition(text: str, at_s: float, metrics: Collection[str] = GAUGES) -> dict[str, Sample]:
    """Return some of the metrics that one replica exports, by name; `at_s` is when it was read.

    Raises ValueError where a line of one of them is not in the exposition format.
    """
    # A replica exports hundreds of histogram lines per tenant; only a few names matter here.
    ours = [line for line in text.splitlines() if _name_of(line) in metrics]
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families("\n".join(ours) + "\n"):
        for series in family.samples:
            stamp = float(series.timestamp) if series.timestamp is not None else at_s
            found.setdefault(series.name, []).append(Sample(float(series.value), stamp))
    combined = {name: combine_series(name, samples) for name, samples in found.items()}
    return {name: sample for name, sample in combined.items() if sample is not None}


def parse_series(metric: str, result: Sequence[Any], labels: SeriesLabels) -> dict[PodKey, Sample]:
    """Return the newest sample of each pod from the result of a Prometheus query: an instant or a range vector.

    Series without the labels that name a pod are left out. Two series of one pod and one model are one series that two
    scrapers saw, so the newer one counts; those of several models add up.
    """
    newest: dict[PodKey, dict[str, Sample]] = {}
    for series in result:
        names = series.get("metric") or {}
        key = PodKey(names.get(labels.namespace, ""), names.get(labels.pod, ""))
        sample = _last_sample(series)
        if sample is None or not all(key):
            continue
        by_model = newest.setdefault(key, {})
        known = by_model.get(names.get("model", ""))
        if known is None or known.at_s < sample.at_s:
            by_model[names.get("model", "")] = sample
    combined = {key: combine_series(metric, list(by_model.values())) for key, by_model in newest.items()}
    return {key: sample for key, sample in combined.items() if sample is not None}


def combine_series(metric: str, samples: Iterable[Sample]) -> Sample | None:
    """One sample of several series of one replica: counts add up, of shares the largest counts; the oldest time.

    None where one of them is no number: the sum would be too low.
    """
    found = list(samples)
    if not found or not all(math.isfinite(sample.value) for sample in found):
        return None
    values = [sample.value for sample in found]
    return Sample(max(values) if metric in RATIOS else sum(values), min(sample.at_s for sample in found))


def range_query(metric: str, max_age_s: float, matchers: str = "") -> str:
    """PromQL for the raw samples of the last seconds: unlike an instant vector, they carry the time of the scrape."""
    return f"{metric}{{{matchers}}}[{math.ceil(max_age_s)}s]"


def _name_of(line: str) -> str:
    return line.partition("{")[0].partition(" ")[0]


def _last_sample(series: Mapping[str, Any]) -> Sample | None:
    points = series.get("values") or ([series["value"]] if series.get("value") else [])
    try:
        at_s, value = points[-1]
        return Sample(float(value), float(at_s))
    except (IndexError, TypeError, ValueError):
        return None
