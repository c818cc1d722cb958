"""Read how many tokens each replica has served since its start, for the operator's cost figures."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from windlass_contract import metric_names
from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.domain.cost import TokenCounters
from windlass_operator.domain.snapshot import Key
from windlass_operator.serve.readings import fresh_sample
from windlass_operator.serve.settings import PROMETHEUS, REPLICAS, AdapterSettings
from windlass_operator.serve.sources import (
    WITH_CANARIES,
    Clock,
    PrometheusSource,
    ReplicaDirectory,
    ReplicaSource,
    Source,
)
from windlass_operator.settings import OperatorSettings

COUNTERS: Final = (metric_names.PROMPT_TOKENS_TOTAL, metric_names.GENERATED_TOKENS_TOTAL)
_READ_AGAIN_S: Final = 0.5
"""The caller sets the pace; a reading is shared with nobody."""


class TokenUsage:
    """Counters of all replicas. Needs a running event loop; close it."""

    def __init__(self, client: KubernetesClient, settings: AdapterSettings, clock: Clock) -> None:
        self._settings = settings
        self._directory = ReplicaDirectory(client, settings, clock, selector=WITH_CANARIES)
        self._source: Source = (
            PrometheusSource(settings, clock, metrics=COUNTERS)
            if settings.source == PROMETHEUS
            else ReplicaSource(self._directory, settings, clock, time.time, metrics=COUNTERS)
        )

    async def read(self) -> TokenCounters:
        """Return what is known by service and pod; a pod without fresh counters has None."""
        prompts, answers = await asyncio.gather(*(self._source.samples(metric) for metric in COUNTERS))
        found: dict[Key, dict[str, float | None]] = {}
        for replica in await self._directory.replicas():
            samples = [
                fresh_sample(known, replica.key, now_s=time.time(), max_age_s=self._settings.max_age_s)
                for known in (prompts, answers)
            ]
            values = [sample.value for sample in samples if sample is not None]
            key = Key("InferenceService", replica.key.namespace, replica.service)
            # Prometheus clients export a counter with labels once it has counted; one of the two may be missing.
            found.setdefault(key, {})[replica.key.name] = sum(values) if values else None
        return found

    async def close(self) -> None:
        """End what runs."""
        await self._source.close()
        await self._directory.close()


@contextlib.asynccontextmanager
async def open_usage(
    client: KubernetesClient, settings: OperatorSettings
) -> AsyncIterator[Callable[[], Awaitable[TokenCounters]] | None]:
    """Yield what reads the tokens of replicas; None where the settings name no source."""
    if settings.usage_source not in (REPLICAS, PROMETHEUS):
        yield None
        return
    usage = TokenUsage(client, usage_settings(settings), asyncio.get_running_loop().time)
    try:
        yield usage.read
    finally:
        await usage.close()


def usage_settings(settings: OperatorSettings) -> AdapterSettings:
    """How the operator reads replicas: as the metrics adapter does, but seldom."""
    return AdapterSettings(
        namespaces=settings.namespaces,
        source=settings.usage_source,
        prometheus_url=settings.usage_prometheus_url,
        prometheus_token_file=settings.usage_prometheus_token_file,
        prometheus_ca_file=settings.usage_prometheus_ca_file,
        replica_url=settings.usage_replica_url,
        interval_s=_READ_AGAIN_S,
    )
