"""What is true for a whole fleet and comes from the operator's own settings, not from any object.

Built once in the composition root; plans and renderers take it by argument.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Platform(enum.StrEnum):
    """Where replicas run."""

    KUBERNETES = "Kubernetes"
    LOCAL = "Local"
    """Processes of this machine, as `windlass up` starts them: no autoscaler, no volumes, no scheduler."""


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """Defaults equal the chart's values."""

    platform: Platform = Platform.KUBERNETES
    runtime_image: str = "ghcr.io/windlass/windlass-runtime:0.1.0"
    """Image of every replica. A new value rolls every service, so an operator upgrade alone does not change it."""
    gateway_namespace: str = "windlass-system"
    """Namespace of Windlass itself: its gateway and its metrics adapter may reach replicas."""
    power_agent_namespace: str = ""
    """Namespace whose power agents may read the tokens that replicas count. Empty: there is no agent."""
    metrics_namespace: str = "monitoring"
    """Namespace whose pods may scrape replicas."""
    dns_namespace: str = "kube-system"
    """Namespace of the cluster's DNS servers: the one place every replica may talk to."""
    cluster_domain: str = "cluster.local"
    currency: str = "USD"
    """Of every price in the fleet, an ISO 4217 code: prices are compared with each other, so there is one."""
    operator_reads_replicas: bool = False
    """Whether the operator reads metrics of replicas itself, and policies must let it in."""
    realtime_priority: int = 1_000_000
    standard_priority: int = 100_000
    batch_priority: int = 1_000
    startup_timeout_s: int = 1800
    """Longest time from container start to ready: download, load and warm-up of the largest model."""
    default_cpu: str = "1"
    """CPU request of a replica that names none; utilisation metrics need one to divide by."""
    default_memory: str = "4Gi"
    """Memory that a tenant's LimitRange requests for a container that names none."""
    default_memory_limit: str = "16Gi"
    """Memory limit of such a container where the tenant has a memory quota, which demands one."""
    scratch_limit: str = "2Gi"
    """Size limit of `/tmp`."""
    model_cache_limit: str = "200Gi"
    """Size limit of the download cache of `hf://` models."""
    autoscaler: str = ""
    """Which object drives the number of replicas: HorizontalPodAutoscaler or ScaledObject (KEDA). Empty: chosen by what
    the cluster has."""
    http_route_gateway: str = ""
    """Gateway, as namespace/name, to which an HTTPRoute per service attaches. Replicas let it in without a key, so it
    decides who may come. Empty: none are made.
    """
    endpoint_picker: str = ""
    """Service and port of an endpoint picker beside each service, such as `{name}-epp:9002`: HTTPRoutes then send to
    InferencePools, whose picker chooses the replica. Empty: none are made.
    """
    mesh_routes: str = ""
    """Istio: services with canaries get a VirtualService for callers inside the mesh. Empty: none are made."""
    prometheus_url: str = ""
    """Address of a Prometheus that KEDA may ask, such as http://prometheus.monitoring:9090. Empty: KEDA is not used."""
