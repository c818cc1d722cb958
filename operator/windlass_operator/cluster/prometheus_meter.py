"""Measure canaries by what a Prometheus scraped from their pods. One query per check covers both revisions."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from windlass_operator.cluster.canary_meter import Subject
from windlass_operator.cluster.quality_probe import QualityProbe
from windlass_operator.domain.canary import Reading
from windlass_operator.domain.canary_plan import object_name
from windlass_operator.domain.counters import COUNTERS, Growth, Point, fold_growth, increase

LOOK_BEFORE_S: Final = 120.0
"""How far before a window a sample may lie that says where its counters stood: a few scrapes."""
_POD_SUFFIX: Final = "-[a-z0-9]{1,10}-[a-z0-9]{5}"
"""What Deployments add to their name: the template's hash and five characters."""


@dataclass(frozen=True, slots=True)
class PrometheusPlace:
    """Where the Prometheus is, and how its series name pods."""

    url: str
    token_file: str = ""
    ca_file: str = ""
    matchers: str = ""
    namespace_label: str = "namespace"
    pod_label: str = "pod"
    timeout_s: float = 10.0


class PrometheusMeter:
    """A Meter. The client blocks, so each query runs in a thread."""

    def __init__(self, place: PrometheusPlace, probe: QualityProbe, wall_clock_s: Callable[[], float]) -> None:
        # Importing takes a second and 40 MB; only an operator with this source pays them.
        from prometheus_api_client import PrometheusConnect
        from urllib3.util import Retry

        self._place = place
        self._probe = probe
        self._wall_clock_s = wall_clock_s
        # No retries: the next check is one, and a thread that backs off would outlive its answer.
        self._prometheus: Any = PrometheusConnect(place.url.rstrip("/"), retry=Retry(total=0))
        if place.ca_file:
            self._prometheus._session.verify = place.ca_file

    async def read(self, subject: Subject) -> Reading:
        """See Meter.read."""
        reading = await self._read_counters(subject)
        return await self._probe.complete(reading, subject)

    async def close(self) -> None:
        """See Meter.close."""
        await self._probe.close()

    async def _read_counters(self, subject: Subject) -> Reading:
        query = render_query(subject, self._place)
        try:
            async with asyncio.timeout(self._place.timeout_s + 1):
                result = await asyncio.to_thread(self._ask, query)
            return fold_result(result, subject, self._place, self._wall_clock_s() - subject.window_s)
        except TimeoutError:
            return Reading(problem=f"{self._place.url}: no answer within {self._place.timeout_s:g} s")
        except Exception as exc:
            # The client lets out whatever its transport and parser raise; all of it means a check without data.
            return Reading(problem=f"{self._place.url}: {type(exc).__name__}: {exc}"[:300])

    def _ask(self, query: str) -> list[Any]:
        token = Path(self._place.token_file).read_text().strip() if self._place.token_file else ""
        self._prometheus.headers = {"Authorization": f"Bearer {token}"} if token else None
        found: list[Any] = self._prometheus.custom_query(query, timeout=self._place.timeout_s)
        return found


def render_query(subject: Subject, place: PrometheusPlace) -> str:
    """PromQL for the raw samples of both revisions' counters; unlike `increase` they show where a series begins."""
    names = [subject.service.name, object_name(subject.service.name, subject.canary)]
    matchers = [
        f'__name__=~"{"|".join(COUNTERS)}"',
        f'{place.namespace_label}="{subject.service.namespace}"',
        f'{place.pod_label}=~"{"|".join(f"{name}{_POD_SUFFIX}" for name in names)}"',
        *([place.matchers] if place.matchers else []),
    ]
    return f"{{{','.join(matchers)}}}[{math.ceil(subject.window_s + LOOK_BEFORE_S)}s]"


def fold_result(
    result: Iterable[Mapping[str, Any]], subject: Subject, place: PrometheusPlace, since_s: float
) -> Reading:
    """Tell the two revisions apart by the names of their pods, and add up each."""
    canary = re.compile(object_name(subject.service.name, subject.canary) + _POD_SUFFIX)
    series = list(result)
    ours = [item for item in series if canary.fullmatch(str(item["metric"].get(place.pod_label, "")))]
    others = [item for item in series if not canary.fullmatch(str(item["metric"].get(place.pod_label, "")))]
    reading = Reading(fold_growth(_growths(ours, since_s)), fold_growth(_growths(others, since_s)))
    return reading if ours else replace(reading, problem=f"Prometheus knows no series of {subject.canary}'s pods")


def _growths(series: Iterable[Mapping[str, Any]], since_s: float) -> Iterator[Growth]:
    for item in series:
        labels = item["metric"]
        points = [Point(float(at_s), float(value)) for at_s, value in item.get("values") or ()]
        yield Growth(str(labels.get("__name__", "")), labels, increase(points, since_s))
