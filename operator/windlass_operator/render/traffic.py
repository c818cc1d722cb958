"""Weights for routers of the cluster: a Gateway API HTTPRoute, with an InferencePool per revision where a picker is
named, and an Istio VirtualService.

Both send to the Services of replicas directly. Replicas ask for no key: whoever puts another Gateway in front of them
lets it decide who may come in.
"""

from __future__ import annotations

from typing import Any, Final

from windlass_contract.endpoints import RUNTIME_PORT
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.labels import canary_selector, selector_labels
from windlass_operator.domain.plan import ServicePlan
from windlass_operator.domain.traffic import Share, picker_of
from windlass_operator.render.manifest import Manifest, service_child

INFERENCE_GROUP: Final = "inference.networking.k8s.io"
POOL: Final = "InferencePool"
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
            "backendRefs": [_backend(share, 1, plan)],
        }
        for share in plan.traffic.shares
        if share.canary
    ]
    usual = {
        "matches": [{"path": path}],
        "filters": [_strip_prefix()],
        "backendRefs": [_backend(share, share.weight, plan) for share in plan.traffic.shares],
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


def render_inference_pool(plan: ServicePlan, share: Share, settings: FleetSettings) -> Manifest:
    """The replicas of one revision, and who picks among them. The picker itself is the platform's."""
    name, port = picker_of(share, settings)
    selector = canary_selector(plan.service, share.canary) if share.canary else selector_labels(plan.service)
    return service_child(
        f"{INFERENCE_GROUP}/v1",
        POOL,
        share.backend,
        plan,
        spec={
            "selector": {"matchLabels": selector},
            "targetPorts": [{"number": RUNTIME_PORT}],
            # Every replica can answer every request: without its picker a pool is slower, not broken.
            "endpointPickerRef": {"name": name, "port": {"number": port}, "failureMode": "FailOpen"},
        },
    )


def _backend(share: Share, weight: int, plan: ServicePlan) -> dict[str, Any]:
    if plan.traffic.pools:
        return {"group": INFERENCE_GROUP, "kind": POOL, "name": share.backend, "weight": weight}
    return {"name": share.backend, "port": RUNTIME_PORT, "weight": weight}


def _destination(share: Share, plan: ServicePlan, settings: FleetSettings, weight: int) -> dict[str, Any]:
    host = _host(share.backend, plan, settings)
    return {"destination": {"host": host, "port": {"number": RUNTIME_PORT}}, "weight": weight}


def _host(name: str, plan: ServicePlan, settings: FleetSettings) -> str:
    return f"{name}.{plan.key.namespace}.svc.{settings.cluster_domain}"
