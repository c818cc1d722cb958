"""The operator's own settings: read once at start from WINDLASS_* variables and flags, then passed down by argument.

Every field of OperatorSettings is one variable: `worker_count` is WINDLASS_WORKER_COUNT. A key nobody knows and a value
out of range stop the start; both would otherwise be found out in the middle of an incident.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from windlass_contract.endpoints import METRICS_PATH, RUNTIME_PORT
from windlass_operator.api.meta import DNS_LABEL, QUANTITY
from windlass_operator.cluster.gateways import GATEWAY_URL
from windlass_operator.domain.fleet import FleetSettings, Platform
from windlass_operator.errors import SettingsError
from windlass_operator.variables import Rules, parse_variables

PREFIX: Final = "WINDLASS_"
REPLICAS: Final = "replicas"
PROMETHEUS: Final = "prometheus"
FLEET_PREFIX: Final = "WINDLASS_FLEET_"
"""Fields of FleetSettings: `runtime_image` is WINDLASS_FLEET_RUNTIME_IMAGE."""


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """Defaults equal the chart's values."""

    kubeconfig: str = ""
    """Path of a kubeconfig. Empty: the pod's service account, else the default kubeconfig."""
    namespaces: tuple[str, ...] = ()
    """Namespaces to serve, comma-separated. Empty: all of them."""
    lease_namespace: str = "windlass-system"
    """Namespace of the leader election's Lease; the operator's own."""
    lease_name: str = "windlass-operator"
    """Name of the Lease."""
    routes_secret: str = ""
    """Secret in lease_namespace into which the gateway's routing table is written. It must exist. Empty: no gateway."""
    lease_duration_s: float = 15.0
    """Seconds after which a silent leader is replaced. 5 to 300."""
    lease_renew_s: float = 10.0
    """Seconds without renewal after which a leader stops writing. 2 to 250, below lease_duration_s."""
    lease_retry_s: float = 2.0
    """Seconds between two looks at the lease. 0.2 to 60, below lease_renew_s."""
    canary_prometheus_url: str = ""
    """Address of a Prometheus that scrapes the replicas, by which canaries are judged. Empty: canaries have no data."""
    canary_prometheus_token_file: str = ""
    """File with a bearer token for it, read before each query. Empty: none."""
    canary_prometheus_ca_file: str = ""
    """File with the authority that signed its certificate. Empty: the system's."""
    canary_prometheus_matchers: str = ""
    """Further label matchers for every query, such as `cluster="one"`."""
    canary_prometheus_namespace_label: str = "namespace"
    """Label of a series that names the namespace of its pod."""
    canary_prometheus_pod_label: str = "pod"
    """Label of a series that names its pod."""
    canary_probe_url: str = f"http://{{name}}.{{namespace}}:{RUNTIME_PORT}"
    """Where quality probes reach a revision, with {name} (its Service) and {namespace} filled in."""
    probe_host: str = "0.0.0.0"
    """Address of the server for /healthz, /readyz and /metrics."""
    probe_port: int = 8080
    """Port of that server; 0 picks a free one. 0 to 65535."""
    worker_count: int = 8
    """Reconciles that run at once. 1 to 64."""
    reconciles_per_s: float = 100.0
    """Reconciles that may start per second in the long run. 0.1 to 10000."""
    reconcile_burst: int = 200
    """Reconciles that may start at once after a quiet time. 1 to 100000."""
    backoff_first_s: float = 0.5
    """Seconds before the first retry of a failing object; doubles per failure. 0.01 to 60."""
    backoff_longest_s: float = 300.0
    """Longest wait between retries, in seconds. 1 to 3600."""
    resync_interval_s: float = 600.0
    """Seconds in which every object is reconciled at least once, spread evenly. 10 to 86400."""
    audit_interval_s: float = 140.0
    """Seconds between two comparisons of the watches with lists. 5 to 3600."""
    stuck_after_s: float = 300.0
    """Seconds the oldest due object may wait before the liveness probe fails. 10 to 3600."""
    request_timeout_s: float = 45.0
    """Longest time of one API request, in seconds. 1 to 300."""
    watch_timeout_s: int = 300
    """Seconds after which the server ends a watch, so that it is made anew. 30 to 3600."""
    gateway_url: str = GATEWAY_URL
    """Where a gateway's metrics are, with {ip} and {pod} filled in; they tell when a sleeping service is asked for."""
    page_size: int = 500
    """Objects per page of a listing. 10 to 10000."""
    usage_source: str = "none"
    """Where tokens come from for costs: `none`, `replicas` (each replica's own metrics) or `prometheus`."""
    usage_interval_s: float = 60.0
    """Seconds between two readings of them; nothing is read while no GPUClass has a price. 1 to 900."""
    usage_prometheus_url: str = ""
    """Address of a Prometheus, for the source `prometheus`."""
    usage_prometheus_token_file: str = ""
    """File with a bearer token for it, read before each query. Empty: none."""
    usage_prometheus_ca_file: str = ""
    """File with the authority that signed its certificate. Empty: the system's."""
    usage_replica_url: str = f"http://{{ip}}:{RUNTIME_PORT}{METRICS_PATH}"
    """Where a replica's metrics are, with {ip}, {namespace} and {pod} filled in, for the source `replicas`."""
    drain_timeout_s: float = 20.0
    """Seconds to finish running reconciles after SIGTERM; below terminationGracePeriodSeconds (30 in the chart). 0 to
    300.
    """
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
    fleet: FleetSettings = field(default_factory=FleetSettings)
    """Defaults of everything that is rendered; each field has its own variable with the prefix WINDLASS_FLEET_."""


_HIGHEST_PORT: Final = 65_535
NAMESPACE: Final = f"(?=.{{1,63}}$){DNS_LABEL}"
RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "lease_duration_s": (5, 300),
    "lease_renew_s": (2, 250),
    "lease_retry_s": (0.2, 60),
    "probe_port": (0, 65535),
    "worker_count": (1, 64),
    "reconciles_per_s": (0.1, 10_000),
    "reconcile_burst": (1, 100_000),
    "backoff_first_s": (0.01, 60),
    "backoff_longest_s": (1, 3600),
    "resync_interval_s": (10, 86_400),
    "audit_interval_s": (5, 3600),
    "stuck_after_s": (10, 3600),
    "request_timeout_s": (1, 300),
    "watch_timeout_s": (30, 3600),
    "page_size": (10, 10_000),
    "drain_timeout_s": (0, 300),
    "usage_interval_s": (1, 900),
    "fleet.realtime_priority": (-1_000_000_000, 1_000_000_000),
    "fleet.standard_priority": (-1_000_000_000, 1_000_000_000),
    "fleet.batch_priority": (-1_000_000_000, 1_000_000_000),
    "fleet.startup_timeout_s": (30, 86_400),
}
PATTERNS: Final[Mapping[str, tuple[str, str]]] = {
    "lease_namespace": (DNS_LABEL, "a namespace name"),
    "lease_name": (DNS_LABEL, "a DNS label"),
    "routes_secret": (r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", "a Secret name"),
    "usage_source": (r"^(none|replicas|prometheus)$", "none, replicas or prometheus"),
    "usage_prometheus_url": (r"^(https?://\S+)?$", "an http or https address"),
    "usage_replica_url": (
        r"^https?://([^\s{}]|\{(ip|namespace|pod)\})+$",
        "an http or https address with no places but {ip}, {namespace} and {pod}",
    ),
    "gateway_url": (r"^https?://\S+$", "an http or https address"),
    "canary_prometheus_url": (r"^(https?://\S+)?$", "an http or https address"),
    "canary_prometheus_namespace_label": (r"^[a-zA-Z_][a-zA-Z0-9_]*$", "a label name"),
    "canary_prometheus_pod_label": (r"^[a-zA-Z_][a-zA-Z0-9_]*$", "a label name"),
    "canary_probe_url": (r"^https?://([^\s{}]|\{name\}|\{namespace\})+$", "an address with {name} and {namespace}"),
    "log_level": (r"^(DEBUG|INFO|WARNING|ERROR)$", "DEBUG, INFO, WARNING or ERROR"),
    "fleet.runtime_image": (r"^[^\s]+$", "an image reference"),
    "fleet.gateway_namespace": (DNS_LABEL, "a namespace name"),
    "fleet.power_agent_namespace": (r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$", "a namespace name"),
    "fleet.metrics_namespace": (DNS_LABEL, "a namespace name"),
    "fleet.dns_namespace": (DNS_LABEL, "a namespace name"),
    "fleet.autoscaler": (
        r"^(|HorizontalPodAutoscaler|ScaledObject)$",
        "HorizontalPodAutoscaler, ScaledObject or nothing",
    ),
    "fleet.http_route_gateway": (
        r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$",
        "namespace/name",
    ),
    "fleet.endpoint_picker": (
        r"^(([a-z0-9]|\{name\})(-?([a-z0-9]|\{name\}))*:[1-9][0-9]{0,4})?$",
        "name:port of a Service, with no place but {name}",
    ),
    "fleet.mesh_routes": (r"^(|Istio)$", "Istio or nothing"),
    "fleet.prometheus_url": (r"^(https?://\S+)?$", "an http or https address"),
    "fleet.cluster_domain": (r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "a DNS domain"),
    "fleet.currency": (r"^[A-Z]{3}$", "a currency code such as USD"),
    "fleet.default_cpu": (QUANTITY, "a quantity such as 500m"),
    "fleet.default_memory": (QUANTITY, "a quantity such as 4Gi"),
    "fleet.default_memory_limit": (QUANTITY, "a quantity such as 16Gi"),
    "fleet.scratch_limit": (QUANTITY, "a quantity such as 2Gi"),
    "fleet.model_cache_limit": (QUANTITY, "a quantity such as 200Gi"),
}
LISTS: Final[Mapping[str, tuple[str, str]]] = {
    "namespaces": (NAMESPACE, "namespace names separated by commas"),
}
NOT_FROM_ENVIRONMENT: Final = frozenset({"fleet", "fleet.platform", "fleet.operator_reads_replicas"})


def parse_settings(environment: Mapping[str, str], flags: Mapping[str, Any] | None = None) -> OperatorSettings:
    """Build the settings; `flags` (field name -> text, None where not given) win over the environment.

    Raises SettingsError that lists every wrong key.
    """
    rules = Rules(
        owner="the operator",
        prefix=PREFIX,
        variables={name: variable_of(name) for name in _fields()},
        whole=frozenset(name for name, kind in _fields().items() if kind == "int"),
        ranges=RANGES,
        patterns=PATTERNS,
        lists=LISTS,
    )
    values, problems = parse_variables(environment, flags or {}, rules)
    problems += _order_problems(values)
    if problems:
        raise SettingsError("\n".join(problems))
    fleet = {name.removeprefix("fleet."): value for name, value in values.items() if name.startswith("fleet.")}
    own = {name: value for name, value in values.items() if "." not in name}
    reads = own.get("usage_source") == REPLICAS
    fleet_settings = FleetSettings(platform=Platform.KUBERNETES, operator_reads_replicas=reads, **fleet)
    return OperatorSettings(**own, fleet=fleet_settings)


def variable_of(name: str) -> str:
    """Return the environment variable of a field; `fleet.x` for fields of FleetSettings."""
    return FLEET_PREFIX + name.removeprefix("fleet.").upper() if name.startswith("fleet.") else PREFIX + name.upper()


def _fields() -> dict[str, str]:
    """Name and type of every field that a variable can set."""
    own = {item.name: str(item.type) for item in dataclasses.fields(OperatorSettings)}
    fleet = {f"fleet.{item.name}": str(item.type) for item in dataclasses.fields(FleetSettings)}
    return {name: kind for name, kind in (own | fleet).items() if name not in NOT_FROM_ENVIRONMENT}


def _order_problems(values: Mapping[str, Any]) -> list[str]:
    defaults = OperatorSettings()
    times = [
        (name, values.get(name, getattr(defaults, name)))
        for name in ("lease_retry_s", "lease_renew_s", "lease_duration_s")
    ]
    needs_address = values.get("usage_source") == PROMETHEUS and not values.get("usage_prometheus_url")
    url = variable_of("usage_prometheus_url")
    missing = [f"{url}: expected an address for the source prometheus, found none"] if needs_address else []
    return (
        missing
        + _picker_problems(values)
        + [
            f"{variable_of(short)}: expected less than {variable_of(long)} ({long_s:g}), found {short_s:g}"
            for (short, short_s), (long, long_s) in itertools.pairwise(times)
            if short_s >= long_s
        ]
    )


def _picker_problems(values: Mapping[str, Any]) -> list[str]:
    address = str(values.get("fleet.endpoint_picker", ""))
    picker, gateway = variable_of("fleet.endpoint_picker"), variable_of("fleet.http_route_gateway")
    problems = []
    if address and int(address.rpartition(":")[2]) > _HIGHEST_PORT:
        problems.append(f"{picker}: expected a port from 1 to {_HIGHEST_PORT}, found {address!r}")
    if address and not values.get("fleet.http_route_gateway"):
        problems.append(
            f"{gateway}: expected the Gateway whose routes send to pools, because {picker} is set, found none"
        )
    return problems
