"""Where values come from: the pods that there are, and their metrics from Prometheus or from the replicas themselves.

Both sources read once per interval for all autoscalers together. They hand out what they know; whether that is fresh
enough is decided in `readings`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp

from windlass_contract import metric_names
from windlass_operator import errors
from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.cluster.kubernetes_kinds import KINDS
from windlass_operator.domain import labels
from windlass_operator.serve.derived import (
    Counters,
    derive,
    first_token_query,
    keep_window,
    parse_counters,
    tokens_query,
)
from windlass_operator.serve.readings import Replica, keep_known, parse_replica
from windlass_operator.serve.samples import (
    DERIVED,
    GAUGES,
    PodKey,
    Sample,
    Samples,
    SeriesLabels,
    parse_exposition,
    parse_series,
    range_query,
)
from windlass_operator.serve.settings import PROMETHEUS, AdapterSettings
from windlass_operator.serve.shared_read import Observe, SharedRead

log = logging.getLogger(__name__)

SELECTOR: Final = f"{labels.MANAGED_BY}={labels.MANAGER},{labels.COMPONENT}={labels.RUNTIME}"
WITH_CANARIES: Final = (
    f"{labels.MANAGED_BY}={labels.MANAGER},{labels.COMPONENT} in ({labels.RUNTIME},{labels.CANARY_COMPONENT})"
)
MAX_EXPOSITION_BYTES: Final = 4 * 1024 * 1024
"""Longest page of metrics that is read; a replica is a tenant's process and may send anything."""

Clock = Callable[[], float]


class Source(Protocol):
    """Metrics of replicas."""

    async def samples(self, metric: str) -> Samples:
        """Return the newest samples known of a metric of GAUGES, DERIVED or of the GPUs."""
        ...

    def problem_of(self, metric: str) -> str:
        """Return why the last reading failed; empty after one that worked."""
        ...

    async def close(self) -> None:
        """End what runs."""
        ...


class ReplicaDirectory:
    """The pods of all InferenceServices, listed once per interval."""

    def __init__(
        self,
        client: KubernetesClient,
        settings: AdapterSettings,
        clock: Clock,
        observe: Observe = lambda *_: None,
        selector: str = SELECTOR,
    ) -> None:
        self._client, self._namespaces, self._selector = client, settings.namespaces, selector
        self._shared = SharedRead[tuple[Replica, ...]](
            "pods", self._list_all, (), interval_s=settings.interval_s, clock=clock, observe=observe
        )

    async def replicas(self) -> tuple[Replica, ...]:
        """Return the replicas last seen."""
        return await self._shared.get()

    @property
    def problem(self) -> str:
        """Why the last listing failed; empty after one that worked."""
        return self._shared.problem

    async def close(self) -> None:
        """End a running listing."""
        await self._shared.close()

    async def _list_all(self) -> tuple[Replica, ...]:
        return tuple(
            [
                parse_replica(pod)
                for namespace in self._namespaces or ("",)
                async for pod in self._client.list_items(KINDS["Pod"].path(namespace), self._selector)
            ]
        )


class PrometheusSource:
    """Asks a Prometheus: one query per metric and interval. The client blocks, so each query runs in a thread."""

    def __init__(
        self,
        settings: AdapterSettings,
        clock: Clock,
        observe: Observe = lambda *_: None,
        metrics: Sequence[str] = (*GAUGES, *DERIVED, metric_names.GPU_USE_RATIO),
    ) -> None:
        # Importing takes a second and 40 MB; only a process with this source pays them.
        from prometheus_api_client import PrometheusConnect
        from urllib3.util import Retry

        self._settings = settings
        # No retries: the next interval is one, and a thread that backs off would outlive its answer.
        self._prometheus: Any = PrometheusConnect(settings.prometheus_url.rstrip("/"), retry=Retry(total=0))
        if settings.prometheus_ca_file:
            self._prometheus._session.verify = settings.prometheus_ca_file
        self._shared = {
            metric: SharedRead[Samples](
                metric, self._reader(metric), {}, interval_s=settings.interval_s, clock=clock, observe=observe
            )
            for metric in metrics
        }

    async def samples(self, metric: str) -> Samples:
        return await self._shared[metric].get()

    def problem_of(self, metric: str) -> str:
        return self._shared[metric].problem

    async def close(self) -> None:
        await asyncio.gather(*(shared.close() for shared in self._shared.values()))

    def _reader(self, metric: str) -> Callable[[], Any]:
        return lambda: asyncio.to_thread(self._query, metric)

    def _query(self, metric: str) -> Samples:
        """Blocks. Raises RetryLater."""
        from prometheus_api_client.exceptions import PrometheusApiClientException
        from requests import RequestException

        settings = self._settings
        query = prometheus_query(metric, settings)
        try:
            self._prometheus.headers = _bearer(settings.prometheus_token_file)
            # requests bounds connecting and each read by this; Prometheus itself ends the query by `timeout`.
            result = self._prometheus.custom_query(
                query, {"timeout": f"{settings.request_timeout_s:g}s"}, timeout=settings.request_timeout_s
            )
        except (RequestException, PrometheusApiClientException, OSError, ValueError, KeyError, TypeError) as exc:
            raise errors.RetryLater(f"{settings.prometheus_url}: query {query}: {exc}") from exc
        return parse_series(
            metric, result, SeriesLabels(settings.prometheus_namespace_label, settings.prometheus_pod_label)
        )


class ReplicaSource:
    """Reads the metrics of every replica itself, for clusters without Prometheus."""

    def __init__(
        self,
        directory: ReplicaDirectory,
        settings: AdapterSettings,
        clock: Clock,
        wall_clock: Clock,
        observe: Observe = lambda *_: None,
        metrics: Sequence[str] = (*GAUGES, *DERIVED),
    ) -> None:
        self._directory, self._settings, self._wall_clock = directory, settings, wall_clock
        self._metrics = tuple(metrics)
        # Addresses of pods need no lookup, and nothing that a tenant answers may lead to another address.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=settings.scrape_concurrency),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.scrape_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._known: dict[str, dict[PodKey, Sample]] = {metric: {} for metric in metrics}
        self._counters: dict[PodKey, tuple[Counters, ...]] = {}
        self._shared = SharedRead[dict[str, dict[PodKey, Sample]]](
            "replicas", self._read_all, self._known, interval_s=settings.interval_s, clock=clock, observe=observe
        )
        self._failed = ""

    async def samples(self, metric: str) -> Samples:
        return (await self._shared.get()).get(metric, {})

    def problem_of(self, metric: str) -> str:
        if metric == metric_names.GPU_USE_RATIO:
            return "replicas do not report the use of their GPUs: it needs the source prometheus"
        return self._shared.problem or self._failed

    async def close(self) -> None:
        await self._shared.close()
        await self._session.close()

    async def _read_all(self) -> dict[str, dict[PodKey, Sample]]:
        replicas = await self._directory.replicas()
        places = asyncio.Semaphore(self._settings.scrape_concurrency)
        there = [replica for replica in replicas if replica.ip]
        pages = await asyncio.gather(*(self._read(replica, places) for replica in there))
        read: dict[PodKey, dict[str, Sample]] = {}
        failures: list[str] = []
        for replica, page in zip(there, pages, strict=True):
            if isinstance(page, str):
                failures.append(f"{replica.key.namespace}/{replica.key.name}: {page}")
            else:
                read[replica.key] = page
        self._note_failures(failures, len(there))
        self._known = {
            metric: keep_known(
                self._known[metric], {key: page[metric] for key, page in read.items() if metric in page}, replicas
            )
            for metric in self._metrics
        }
        self._counters = {key: kept for key, kept in self._counters.items() if key in {item.key for item in replicas}}
        return self._known

    def _note_failures(self, failures: list[str], asked: int) -> None:
        if failures and not self._failed:
            log.warning(
                "Replicas not read; their values age. failed=%d of=%d first=%s", len(failures), asked, failures[0]
            )
        elif self._failed and not failures:
            log.info("All replicas are read again. of=%d", asked)
        self._failed = f"{len(failures)} of {asked} replicas not read, such as {failures[0]}" if failures else ""

    async def _read(self, replica: Replica, places: asyncio.Semaphore) -> dict[str, Sample] | str:
        """Return the metrics of one replica, or in words why there are none: one that fails stops no other."""
        url = replica_url(self._settings.replica_url, replica)
        async with places:
            try:
                async with (
                    asyncio.timeout(self._settings.scrape_timeout_s),
                    self._session.get(url, allow_redirects=False) as answer,
                ):
                    if answer.status != 200:
                        return f"{url}: expected 200, found {answer.status}"
                    text = await _read_text(answer.content)
                derived = self._derive(replica.key, text) if set(DERIVED) & set(self._metrics) else {}
                return {**parse_exposition(text, self._wall_clock(), self._metrics), **derived}
            except TimeoutError:
                return f"{url}: no answer within {self._settings.scrape_timeout_s:g} s"
            except (aiohttp.ClientError, ValueError, OSError) as exc:
                return f"{url}: {exc}"

    def _derive(self, key: PodKey, text: str) -> dict[str, Sample]:
        newest = parse_counters(text, self._wall_clock())
        readings = (*self._counters.get(key, ()), newest)
        self._counters[key] = keep_window(readings, newest.at_s, self._settings.rate_window_s)
        return derive(self._counters[key])


def prometheus_query(metric: str, settings: AdapterSettings) -> str:
    """Return the query for a metric of every pod."""
    by = f"{settings.prometheus_namespace_label}, {settings.prometheus_pod_label}"
    matchers, window_s = settings.prometheus_matchers, math.ceil(settings.rate_window_s)
    if metric == metric_names.GENERATED_TOKENS_PER_SECOND:
        return tokens_query(by, matchers, window_s)
    if metric == metric_names.TIME_TO_FIRST_TOKEN_P95:
        return first_token_query(by, matchers, window_s)
    if metric == metric_names.GPU_USE_RATIO:
        return settings.gpu_use_query
    return range_query(metric, settings.max_age_s, matchers)


def build_source(
    settings: AdapterSettings,
    directory: ReplicaDirectory,
    clock: Clock,
    wall_clock: Clock,
    observe: Observe = lambda *_: None,
) -> Source:
    """Return the source that the settings name; needs a running event loop."""
    if settings.source == PROMETHEUS:
        return PrometheusSource(settings, clock, observe)
    return ReplicaSource(directory, settings, clock, wall_clock, observe)


def replica_url(template: str, replica: Replica) -> str:
    """Fill in a template's places; an IPv6 address in brackets."""
    ip = f"[{replica.ip}]" if ":" in replica.ip else replica.ip
    return template.format(ip=ip, namespace=replica.key.namespace, pod=replica.key.name)


async def _read_text(content: aiohttp.StreamReader) -> str:
    parts: list[bytes] = []
    size = 0
    async for part in content.iter_any():
        size += len(part)
        if size > MAX_EXPOSITION_BYTES:
            raise ValueError(f"expected at most {MAX_EXPOSITION_BYTES} bytes of metrics, found more")
        parts.append(part)
    return b"".join(parts).decode("utf-8", errors="replace")


def _bearer(token_file: str) -> dict[str, str] | None:
    return {"Authorization": f"Bearer {Path(token_file).read_text().strip()}"} if token_file else None
