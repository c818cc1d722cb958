"""One small server for the kubelet and Prometheus: /healthz, /readyz, /metrics.

Liveness is not "the process answers": it fails when the queue stands still or a watch is dead, because a restart helps
then. Readiness says whether the caches are filled; a standby is ready, so that rollouts of the operator can finish.
"""

from __future__ import annotations

from collections.abc import Callable

import prometheus_client
from aiohttp import web
from prometheus_client.core import CollectorRegistry

from windlass_contract import metric_names
from windlass_operator.domain.snapshot import Key
from windlass_operator.reconcile.reconciler import Result

Check = Callable[[], tuple[str, ...]]
"""Returns what is wrong, one line per problem; empty while all is well."""


class Metrics:
    """The operator's metrics, in a registry of their own."""

    def __init__(self, queue_depth: Callable[[], int], is_leader: Callable[[], bool]) -> None:
        self.registry = CollectorRegistry()
        self._durations = prometheus_client.Histogram(
            metric_names.RECONCILE_DURATION,
            "Time of one reconcile.",
            ("kind", "result"),
            registry=self.registry,
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        self._writes = prometheus_client.Counter(
            metric_names.API_WRITES_TOTAL, "Writes to the API server.", ("kind", "verb"), registry=self.registry
        )
        depth = prometheus_client.Gauge(
            metric_names.RECONCILE_QUEUE_DEPTH, "Objects waiting for a reconcile.", registry=self.registry
        )
        depth.set_function(queue_depth)
        leader = prometheus_client.Gauge(
            metric_names.IS_LEADER, "1 while this process may write.", registry=self.registry
        )
        leader.set_function(lambda: float(is_leader()))

    def observe_reconcile(self, key: Key, result: Result, seconds: float) -> None:
        """Count one reconcile."""
        self._durations.labels(key.kind, result.value).observe(seconds)

    def count_write(self, kind: str, verb: str) -> None:
        """Count one write."""
        self._writes.labels(kind, verb).inc()

    def text(self) -> bytes:
        """Return the exposition format."""
        return prometheus_client.generate_latest(self.registry)


def build_app(live: Check, ready: Check, metrics: Metrics) -> web.Application:
    """Return the application; the caller runs it."""

    def probe(check: Check) -> Callable[[web.Request], object]:
        async def answer(_: web.Request) -> web.Response:
            problems = check()
            return web.Response(status=503 if problems else 200, text="\n".join(problems or ("ok",)) + "\n")

        return answer

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", probe(live))  # type: ignore[arg-type]
    app.router.add_get("/readyz", probe(ready))  # type: ignore[arg-type]
    app.router.add_get("/metrics", scrape)
    return app


async def serve(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Start serving; returns the runner to clean up and the port in use. Raises OSError when the port is taken."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError:
        await runner.cleanup()
        raise
    return runner, int(runner.addresses[0][1])
