"""What the cluster offers beside what every cluster has. Found by discovery, handed to plans as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ApiOwner:
    """Who serves one metrics API."""

    service: str = ""
    """`namespace/name` of the Service behind it; empty: nobody serves it."""
    ours: bool = False
    """Whether that is a Windlass metrics adapter."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Defaults are what can be assumed of a cluster nobody has looked at."""

    known: bool = False
    """Whether somebody has looked."""
    scales_to_zero: bool = False
    """Whether its HorizontalPodAutoscaler takes a minimum of 0."""
    knows_tolerance: bool = False
    """Whether its HorizontalPodAutoscaler takes a tolerance of its own."""
    has_http_routes: bool = False
    """Whether it serves HTTPRoutes of the Gateway API."""
    has_inference_pools: bool = False
    """Whether it serves InferencePools of the Gateway API's inference extension."""
    has_virtual_services: bool = False
    """Whether it serves Istio's VirtualServices."""
    kueue: str = ""
    """API version of the Workloads of Kueue that it serves, `kueue.x-k8s.io/v1beta2`; empty: none."""
    has_keda: bool = False
    """Whether it serves ScaledObjects."""
    custom_metrics: ApiOwner = ApiOwner()
    """custom.metrics.k8s.io: values per pod and per service."""
    external_metrics: ApiOwner = ApiOwner()
    """external.metrics.k8s.io."""
    drops_image_volumes: str = ""
    """Version of a server that takes the image volume out of a pod and says nothing; empty: it keeps them."""
