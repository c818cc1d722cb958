"""The metrics adapter's own settings: read once at start from WINDLASS_ADAPTER_* variables and flags.

Every field is one variable: `max_age_s` is WINDLASS_ADAPTER_MAX_AGE_S. Unknown keys and values out of range stop the
start. Defaults equal the chart's values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from windlass_contract import endpoints
from windlass_operator.api.meta import DNS_LABEL
from windlass_operator.cluster import gateways
from windlass_operator.settings import NAMESPACE
from windlass_operator.variables import Rules, parse_settings_class, unknown_places, variables_of, whole_fields

PREFIX: Final = "WINDLASS_ADAPTER_"
PROMETHEUS: Final = "prometheus"
REPLICAS: Final = "replicas"
CUSTOM: Final = "custom"
EXTERNAL: Final = "external"


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """What one adapter process is told."""

    kubeconfig: str = ""
    """Path of a kubeconfig. Empty: the pod's service account, else the default kubeconfig."""
    namespace: str = "windlass-system"
    """Namespace of the adapter's Service and Secret."""
    service_name: str = "windlass-metrics-adapter"
    """Service by which the API server reaches the adapter; the serving certificate is for this name."""
    secret_name: str = "windlass-metrics-adapter-certificate"
    """Secret through which the replicas of the adapter share one certificate. It must exist; its data is written."""
    namespaces: tuple[str, ...] = ()
    """Namespaces whose replicas are read, comma-separated. Empty: all of them."""
    apis: tuple[str, ...] = (CUSTOM,)
    """Which APIs are registered with the API server, comma-separated: custom, external."""
    host: str = "0.0.0.0"
    """Address of the API itself, over TLS."""
    port: int = 8443
    """Port of the API. 1 to 65535."""
    probe_host: str = "0.0.0.0"
    """Address of the server for /healthz, /livez, /readyz and the adapter's own /metrics."""
    probe_port: int = 8080
    """Port of that server; 0 picks a free one. 0 to 65535."""
    source: str = REPLICAS
    """Where values come from: `replicas` reads each replica's own metrics, `prometheus` asks a Prometheus."""
    prometheus_url: str = ""
    """Address of a Prometheus, such as http://prometheus.monitoring:9090. Needed by the source `prometheus`."""
    prometheus_token_file: str = ""
    """File with a bearer token for it, read before each query. Empty: none."""
    prometheus_ca_file: str = ""
    """File with the authority that signed its certificate. Empty: the system's."""
    prometheus_matchers: str = ""
    """Further label matchers for every query, such as `cluster="one"`."""
    prometheus_namespace_label: str = "namespace"
    """Label of a series that names the namespace of its pod."""
    prometheus_pod_label: str = "pod"
    """Label of a series that names its pod."""
    replica_url: str = f"http://{{ip}}:{endpoints.RUNTIME_PORT}{endpoints.METRICS_PATH}"
    """Where a replica's metrics are, with {ip}, {namespace} and {pod} filled in. Used by the source `replicas`."""
    gateway_url: str = gateways.GATEWAY_URL
    """Where a gateway's metrics are, with {ip} and {pod} filled in. Gateways run in the adapter's namespace."""
    rate_window_s: float = 60.0
    """Seconds over which rates and percentiles are taken. 10 to 600; with prometheus at least two of its scrapes."""
    gpu_use_query: str = "avg by (namespace, pod) (DCGM_FI_DEV_GPU_UTIL) / 100"
    """PromQL for the use of each pod's GPUs from 0 to 1, with its namespace and pod as labels."""
    scrape_concurrency: int = 64
    """Replicas that are read at once. 1 to 1000."""
    scrape_timeout_s: float = 3.0
    """Longest time to read one replica, in seconds. 0.1 to 60."""
    interval_s: float = 10.0
    """Seconds for which one reading is shared by all autoscalers. 0.5 to 300, below max_age_s."""
    max_age_s: float = 60.0
    """Seconds after which a value counts as absent. 2 to 3600."""
    access_ttl_s: float = 10.0
    """Seconds for which an answer of the API server on who may ask is kept. 0 to 300."""
    trust_interval_s: float = 60.0
    """Seconds between two looks at certificates and at who may vouch for users. 1 to 3600."""
    request_timeout_s: float = 10.0
    """Longest time of one request to the API server or Prometheus, in seconds. 1 to 120."""
    drain_timeout_s: float = 10.0
    """Seconds to finish running requests after SIGTERM. 0 to 300."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""


RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "port": (1, 65535),
    "probe_port": (0, 65535),
    "rate_window_s": (10, 600),
    "scrape_concurrency": (1, 1000),
    "scrape_timeout_s": (0.1, 60),
    "interval_s": (0.5, 300),
    "max_age_s": (2, 3600),
    "access_ttl_s": (0, 300),
    "trust_interval_s": (1, 3600),
    "request_timeout_s": (1, 120),
    "drain_timeout_s": (0, 300),
}
PATTERNS: Final[Mapping[str, tuple[str, str]]] = {
    "namespace": (DNS_LABEL, "a namespace name"),
    "service_name": (DNS_LABEL, "a Service name"),
    "secret_name": (r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "a Secret name"),
    "source": (f"^({REPLICAS}|{PROMETHEUS})$", f"{REPLICAS} or {PROMETHEUS}"),
    "prometheus_url": (r"^(https?://\S+)?$", "an http or https address"),
    "prometheus_namespace_label": (r"^[a-zA-Z_][a-zA-Z0-9_]*$", "a label name"),
    "prometheus_pod_label": (r"^[a-zA-Z_][a-zA-Z0-9_]*$", "a label name"),
    "replica_url": (r"^https?://\S+$", "an http or https address"),
    "gateway_url": (r"^https?://\S+$", "an http or https address"),
    "gpu_use_query": (r"^[^\r\n]+$", "one line of PromQL"),
    "log_level": (r"^(DEBUG|INFO|WARNING|ERROR)$", "DEBUG, INFO, WARNING or ERROR"),
}
LISTS: Final[Mapping[str, tuple[str, str]]] = {
    "namespaces": (NAMESPACE, "namespace names separated by commas"),
    "apis": (f"^({CUSTOM}|{EXTERNAL})$", f"{CUSTOM}, {EXTERNAL} or both separated by a comma"),
}
PLACES: Final = {"replica_url": ("ip", "namespace", "pod"), "gateway_url": ("ip", "pod")}
"""What addresses may name."""


def variable_of(name: str) -> str:
    """Return the environment variable of a field."""
    return PREFIX + name.upper()


def parse_adapter_settings(
    environment: Mapping[str, str], flags: Mapping[str, str | None] | None = None
) -> AdapterSettings:
    """Build the settings; `flags` (field name -> text, None where not given) win over the environment.

    Raises SettingsError that lists every wrong key.
    """
    rules = Rules(
        owner="the adapter",
        prefix=PREFIX,
        variables=variables_of(AdapterSettings, PREFIX),
        whole=whole_fields(AdapterSettings),
        ranges=RANGES,
        patterns=PATTERNS,
        lists=LISTS,
    )
    return parse_settings_class(AdapterSettings, environment, flags or {}, rules, _contradictions)


def _contradictions(settings: AdapterSettings) -> list[str]:
    problems = []
    if settings.source == PROMETHEUS and not settings.prometheus_url:
        problems.append(f"{variable_of('prometheus_url')}: expected an address for the source prometheus, found none")
    if settings.interval_s >= settings.max_age_s:
        problems.append(
            f"{variable_of('interval_s')}: expected less than {variable_of('max_age_s')} ({settings.max_age_s:g}), "
            f"found {settings.interval_s:g}"
        )
    return problems + [
        problem
        for name, known in PLACES.items()
        for problem in unknown_places(variable_of(name), getattr(settings, name), known)
    ]
