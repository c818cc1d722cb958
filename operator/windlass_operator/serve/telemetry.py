"""What the adapter tells about itself."""

from __future__ import annotations

import prometheus_client
from prometheus_client.core import CollectorRegistry

from windlass_contract import metric_names


class Telemetry:
    """The adapter's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = prometheus_client.Counter(
            metric_names.ADAPTER_REQUESTS_TOTAL, "Requests by API and status.", ("api", "code"), registry=self.registry
        )
        self._reads = prometheus_client.Histogram(
            metric_names.ADAPTER_READ_DURATION,
            "Readings of pods and of metrics; each serves all autoscalers for an interval.",
            ("what", "result"),
            registry=self.registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self._expiry = prometheus_client.Gauge(
            metric_names.ADAPTER_CERTIFICATE_EXPIRY, "When the serving certificate ends.", registry=self.registry
        )

    def count_request(self, api: str, code: int) -> None:
        """Count one request; `api` is custom, external or other."""
        self._requests.labels(api, str(code)).inc()

    def observe_read(self, what: str, worked: bool, seconds: float) -> None:
        """Count one reading."""
        self._reads.labels(what, "ok" if worked else "failed").observe(seconds)

    def set_certificate_expiry(self, at_s: float) -> None:
        """Say when the serving certificate ends, in seconds since the epoch."""
        self._expiry.set(at_s)

    def text(self) -> bytes:
        """Return the exposition format."""
        return prometheus_client.generate_latest(self.registry)
