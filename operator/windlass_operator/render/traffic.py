"""Weights for routers of the cluster: a Gateway API HTTPRoute, an Istio VirtualService.

Both send to the Services of replicas directly. Replicas ask for no key: whoever puts another Gateway in front of them
lets it decide who may come in.
"""

from __future__ import annotations

from typing import Any, Final

from windlass_contract.endpoints import RUNTIME_PORT
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import ServicePlan
from windlass_operator.domain.traffic import Share
from windlass_operator.render.manifest import Manifest, service_child

CANARY_HEADER: Final = "X-Windlass-Canary"
"""The same as our gateway's."""


def render_http_route(plan: ServicePlan, settings: FleetSettings) -> Manifest:
    """`/{namespace}/{service}/v1/...`, as at our own gateway; a canary asked for by header first."""
    namespace, _, gateway = settings.http_route_gateway.partition("/")
    path = {"type": "PathPrefix", "value": f"/{plan.key.namespace}/{plan.key.name}"}
    asked = [
        {
            "matches": [
                {"path": path, "headers": [{"type": "Exact", "name": CANARY_HEADER, "value": share.canary}]},
            ],
            "filters": [_strip_prefix()],
            "backendRefs": [_backend(share, 1)],
        }
        for share in plan.traffic.shares
        if share.canary
    ]
    usual = {
        "matches": [{"path": path}],
        "filters": [_strip_prefix()],
        "backendRefs": [_backend(share, share.weight) for share in plan.traffic.shares],
    }
    return service_child(
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        plan.key.name,
        plan,
        spec={"parentRefs": [{"namespace": namespace, "name": gateway}], "rules": [*asked, usual]},
    )


def render_virtual_service(plan: ServicePlan, settings: FleetSettings) -> Manifest:
    """For callers inside the mesh, who use the name of the service's Service."""
    asked = [
        {
            "match": [{"headers": {CANARY_HEADER.lower(): {"exact": share.canary}}}],
            "route": [_destination(share, plan, settings, 100)],
        }
        for share in plan.traffic.shares
        if share.canary
    ]
    usual = {"route": [_destination(share, plan, settings, share.weight) for share in plan.traffic.shares]}
    return service_child(
        "networking.istio.io/v1",
        "VirtualService",
        plan.key.name,
        plan,
        spec={"hosts": [_host(plan.key.name, plan, settings)], "http": [*asked, usual]},
    )


def _strip_prefix() -> dict[str, Any]:
    return {
        "type": "URLRewrite",
        "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}},
    }


def _backend(share: Share, weight: int) -> dict[str, Any]:
    return {"name": share.backend, "port": RUNTIME_PORT, "weight": weight}


def _destination(share: Share, plan: ServicePlan, settings: FleetSettings, weight: int) -> dict[str, Any]:
    host = _host(share.backend, plan, settings)
    return {"destination": {"host": host, "port": {"number": RUNTIME_PORT}}, "weight": weight}


def _host(name: str, plan: ServicePlan, settings: FleetSettings) -> str:
    return f"{name}.{plan.key.namespace}.svc.{settings.cluster_domain}"
