"""Values that no replica exports as such: tokens per second and the 95th percentile of the time to the first token.

From two readings of one replica's counters, or by a query where a Prometheus keeps them. Pure. What cannot be known is
absent: a counter that went back is a replica that began anew, and a replica at work without a first token lately has
no percentile. One that nobody asked has no such counters: it generated nothing and let nobody wait, which counts as 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from windlass_contract import metric_names
from windlass_operator.serve.samples import Sample

QUANTILE: Final = 0.95
_BUCKETS: Final = f"{metric_names.TIME_TO_FIRST_TOKEN}_bucket"
_AT_WORK: Final = (metric_names.REQUESTS_RUNNING, metric_names.REQUESTS_WAITING)
_READ: Final = (metric_names.GENERATED_TOKENS_TOTAL, _BUCKETS, *_AT_WORK)


@dataclass(frozen=True, slots=True)
class Counters:
    """One reading of a replica's counters, all tenants together."""

    at_s: float
    tokens: float
    buckets: Mapping[float, float]
    """Upper bound in seconds -> first tokens that came within it, since the replica began."""
    at_work: bool | None
    """Whether a request runs or waits; None: the page does not say, so it is not that of a replica."""


def parse_counters(text: str, at_s: float) -> Counters:
    """Read one replica's exposition. Raises ValueError where a line of one of these metrics is not in that format."""
    ours = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] in _READ]
    tokens = 0.0
    at_work: bool | None = None
    buckets: dict[float, float] = {}
    for family in text_string_to_metric_families("\n".join(ours) + "\n"):
        for series in family.samples:
            if series.name == _BUCKETS:
                bound = float(series.labels["le"])
                buckets[bound] = buckets.get(bound, 0.0) + float(series.value)
            elif series.name == metric_names.GENERATED_TOKENS_TOTAL:
                tokens += float(series.value)
            else:
                at_work = bool(at_work) or float(series.value) > 0
    return Counters(at_s, tokens, buckets, at_work)


def derive(readings: Iterable[Counters]) -> dict[str, Sample]:
    """Return what the oldest and the newest reading of a window tell; empty until there are two."""
    ordered = sorted(readings, key=lambda reading: reading.at_s)
    if len(ordered) < 2 or ordered[-1].tokens < ordered[0].tokens or ordered[-1].at_work is None:
        return {}
    older, newer = ordered[0], ordered[-1]
    rate = (newer.tokens - older.tokens) / (newer.at_s - older.at_s)
    found = {metric_names.GENERATED_TOKENS_PER_SECOND: Sample(rate, newer.at_s)}
    waited = _first_token_s(older, newer)
    if waited is not None:
        found[metric_names.TIME_TO_FIRST_TOKEN_P95] = Sample(waited, newer.at_s)
    return found


def keep_window(readings: Iterable[Counters], now_s: float, window_s: float) -> tuple[Counters, ...]:
    """The readings that a window needs: those within it, none of them from before the replica began anew."""
    kept: list[Counters] = []
    for reading in sorted(readings, key=lambda reading: reading.at_s):
        if kept and reading.tokens < kept[-1].tokens:
            kept = []
        kept.append(reading)
    return tuple(reading for reading in kept if now_s - reading.at_s <= window_s)


def _first_token_s(older: Counters, newer: Counters) -> float | None:
    grown = {bound: count - older.buckets.get(bound, 0.0) for bound, count in newer.buckets.items()}
    total = grown.get(math.inf, 0.0)
    if total > 0:
        return quantile(QUANTILE, grown)
    return None if newer.at_work else 0.0


def quantile(share: float, buckets: Mapping[float, float]) -> float:
    """Estimate a quantile from cumulative buckets, as Prometheus does: evenly spread within a bucket."""
    bounds = sorted(buckets)
    rank = share * buckets[bounds[-1]]
    below_bound, below_count = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if math.isinf(bound):
                return below_bound  # all that is known is that it took longer
            inside = buckets[bound] - below_count
            return below_bound + (bound - below_bound) * ((rank - below_count) / inside if inside else 1.0)
        below_bound, below_count = bound, buckets[bound]
    return below_bound


def tokens_query(by: str, matchers: str, window_s: int) -> str:
    """PromQL for tokens per second of each pod; 0 for those that have not generated any yet, and so have no counter."""
    rate = f"sum by ({by}) (rate({metric_names.GENERATED_TOKENS_TOTAL}{{{matchers}}}[{window_s}s]))"
    return f"{rate} or 0 * sum by ({by}) ({metric_names.REQUESTS_RUNNING}{{{matchers}}})"


def first_token_query(by: str, matchers: str, window_s: int) -> str:
    """PromQL for the percentile of each pod; 0 for those that have nothing to do."""
    rate = f"sum by ({by}, le) (rate({_BUCKETS}{{{matchers}}}[{window_s}s]))"
    at_work = " + ".join(f"sum by ({by}) ({name}{{{matchers}}})" for name in _AT_WORK)
    # Without a first token the quantile is NaN, which no comparison holds for.
    return f"(histogram_quantile({QUANTILE}, {rate}) >= 0) or (({at_work}) == 0)"
