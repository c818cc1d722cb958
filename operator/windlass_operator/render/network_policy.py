"""Who may talk to replicas, and to whom they may talk.

Namespaces are named by `kubernetes.io/metadata.name`, which only the API server sets: nobody joins a tenant by label.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from windlass_contract.endpoints import RUNTIME_PORT
from windlass_operator.domain import labels
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.model_source import SourceKind
from windlass_operator.domain.plan import ServicePlan, TenantPlan
from windlass_operator.render.manifest import Manifest, build_manifest, product_labels, service_child

_NAMESPACE_NAME: Final = "kubernetes.io/metadata.name"
_METADATA_V4: Final = ["169.254.0.0/16"]
_METADATA_V6: Final = ["fe80::/10", "fd00:ec2::254/128"]
"""Cloud metadata services live here; a pod that reaches one may borrow its node's identity."""
_NODE_LOCAL_DNS: Final = "169.254.20.10/32"


def render_service_policy(plan: ServicePlan, settings: FleetSettings) -> Manifest:
    """Ingress from our own pods, metrics and the tenant's namespaces; egress to DNS, and to HTTPS for a download."""
    egress = [_to_dns(settings)]
    if plan.source.kind is SourceKind.HUB:
        egress.append(_TO_HTTPS)
    return service_child(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        plan.key.name,
        plan,
        spec={
            "podSelector": {"matchLabels": plan.selector},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [
                        *_trusted_peers(plan.neighbours, settings, probed=plan.probed),
                        *_power_agents(settings),
                    ],
                    "ports": [{"port": RUNTIME_PORT, "protocol": "TCP"}],
                }
            ],
            "egress": egress,
        },
    )


def render_isolation(plan: TenantPlan, namespace: str, settings: FleetSettings) -> Manifest:
    """Nobody outside the tenant connects to any of its pods, except gateway, metrics adapter and metrics."""
    return build_manifest(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        "windlass-tenant-isolation",
        namespace=namespace,
        object_labels={**product_labels("tenancy"), labels.TENANT: plan.key.name},
        spec={
            "podSelector": {},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": _trusted_peers(plan.namespaces, settings)}],
        },
    )


def _trusted_peers(namespaces: Iterable[str], settings: FleetSettings, *, probed: bool = False) -> list[dict[str, Any]]:
    components = [labels.GATEWAY, labels.METRICS_ADAPTER]
    if settings.operator_reads_replicas or probed:
        components.append(labels.OPERATOR)
    ours = {
        "matchLabels": {labels.PART_OF: labels.PRODUCT},
        "matchExpressions": [{"key": labels.COMPONENT, "operator": "In", "values": components}],
    }
    return [
        {"namespaceSelector": _named([settings.gateway_namespace]), "podSelector": ours},
        {"namespaceSelector": _named([settings.metrics_namespace])},
        {"namespaceSelector": _named(namespaces)},
        *_gateway_peers(settings),
    ]


def _power_agents(settings: FleetSettings) -> list[dict[str, Any]]:
    """Agents read how many tokens a replica made."""
    if not settings.power_agent_namespace:
        return []
    agents = {"matchLabels": {labels.PART_OF: labels.PRODUCT, labels.COMPONENT: labels.POWER_AGENT}}
    return [{"namespaceSelector": _named([settings.power_agent_namespace]), "podSelector": agents}]


def _gateway_peers(settings: FleetSettings) -> list[dict[str, Any]]:
    """The namespace of the Gateway that HTTPRoutes attach to: its proxies run there."""
    namespace = settings.http_route_gateway.partition("/")[0]
    return [{"namespaceSelector": _named([namespace])}] if namespace else []


def _named(namespaces: Iterable[str]) -> dict[str, Any]:
    return {"matchExpressions": [{"key": _NAMESPACE_NAME, "operator": "In", "values": sorted(namespaces)}]}


def _to_dns(settings: FleetSettings) -> dict[str, Any]:
    return {
        "to": [{"namespaceSelector": _named([settings.dns_namespace])}, {"ipBlock": {"cidr": _NODE_LOCAL_DNS}}],
        "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
    }


_TO_HTTPS: Final[dict[str, Any]] = {
    "to": [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": _METADATA_V4}},
        {"ipBlock": {"cidr": "::/0", "except": _METADATA_V6}},
    ],
    "ports": [{"port": 443, "protocol": "TCP"}],
}
