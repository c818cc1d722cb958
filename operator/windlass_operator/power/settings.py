"""The power agent's own settings: read once at start from WINDLASS_POWER_* variables and flags.

Every field is one variable: `interval_s` is WINDLASS_POWER_INTERVAL_S. Unknown keys and values out of range stop the
start. Defaults equal the chart's values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from windlass_contract import endpoints
from windlass_operator.settings import NAMESPACE
from windlass_operator.variables import Rules, parse_settings_class, unknown_places, variables_of, whole_fields

PREFIX: Final = "WINDLASS_POWER_"
APPLY: Final = "apply"
DRY_RUN: Final = "dry-run"


@dataclass(frozen=True, slots=True)
class PowerSettings:
    """What one agent process is told."""

    node: str = ""
    """Name of the node it runs on. Required by `run`."""
    kubeconfig: str = ""
    """Path of a kubeconfig. Empty: the pod's service account, else the default kubeconfig."""
    namespaces: tuple[str, ...] = ()
    """Namespaces whose replicas are looked at, comma-separated. Empty: all of them."""
    mode: str = APPLY
    """`apply`, or `dry-run`: say what would be written, and write nothing."""
    pod_resources_socket: str = "/var/lib/kubelet/pod-resources/kubelet.sock"
    """Socket of the kubelet's pod-resources API."""
    state_folder: str = "/var/lib/windlass/power"
    """Folder of the node that keeps what GPUs were like before."""
    interval_s: float = 15.0
    """Seconds between two looks. 1 to 600."""
    window_s: float = 300.0
    """Seconds over which joules per token are averaged. 10 to 86400."""
    replica_url: str = f"http://{{ip}}:{endpoints.RUNTIME_PORT}{endpoints.METRICS_PATH}"
    """Where a replica's metrics are, with {ip}, {namespace} and {pod} filled in. Empty: tokens are not counted."""
    request_timeout_s: float = 10.0
    """Longest time of one request to the API server, the kubelet or a replica, in seconds. 1 to 120."""
    probe_host: str = "0.0.0.0"
    """Address of the server for /healthz, /readyz and /metrics."""
    probe_port: int = 8080
    """Port of that server; 0 picks a free one. 0 to 65535."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""


RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "interval_s": (1, 600),
    "window_s": (10, 86400),
    "request_timeout_s": (1, 120),
    "probe_port": (0, 65535),
}
PATTERNS: Final[Mapping[str, tuple[str, str]]] = {
    "node": (r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", "a node name"),
    "mode": (f"^({APPLY}|{DRY_RUN})$", f"{APPLY} or {DRY_RUN}"),
    "pod_resources_socket": (r"^/.+$", "an absolute path"),
    "state_folder": (r"^/.+$", "an absolute path"),
    "replica_url": (r"^(https?://\S+)?$", "an http or https address"),
    "log_level": (r"^(DEBUG|INFO|WARNING|ERROR)$", "DEBUG, INFO, WARNING or ERROR"),
}
LISTS: Final[Mapping[str, tuple[str, str]]] = {"namespaces": (NAMESPACE, "namespace names separated by commas")}

PLACES: Final = ("ip", "namespace", "pod")
"""What `replica_url` may name."""


def variable_of(name: str) -> str:
    """Return the environment variable of a field."""
    return PREFIX + name.upper()


def parse_power_settings(
    environment: Mapping[str, str], flags: Mapping[str, str | None] | None = None
) -> PowerSettings:
    """Build the settings; `flags` (field name -> text, None where not given) win over the environment.

    Raises SettingsError that lists every wrong key.
    """
    rules = Rules(
        owner="the power agent",
        prefix=PREFIX,
        variables=variables_of(PowerSettings, PREFIX),
        whole=whole_fields(PowerSettings),
        ranges=RANGES,
        patterns=PATTERNS,
        lists=LISTS,
    )
    return parse_settings_class(PowerSettings, environment, flags or {}, rules, _contradictions)


def _contradictions(settings: PowerSettings) -> list[str]:
    problems = []
    if settings.window_s < settings.interval_s:
        least = f"{variable_of('interval_s')} ({settings.interval_s:g})"
        problems.append(f"{variable_of('window_s')}: expected at least {least}, found {settings.window_s:g}")
    return problems + unknown_places(variable_of("replica_url"), settings.replica_url, PLACES)
