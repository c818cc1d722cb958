"""The Service that gives replicas one name, and the ServiceAccount they run as."""

from __future__ import annotations

from windlass_contract.endpoints import RUNTIME_PORT
from windlass_operator.domain.plan import ServicePlan
from windlass_operator.render.manifest import Manifest, service_child

PORT_NAME = "http"


def account_name(plan: ServicePlan) -> str:
    """Name of the ServiceAccount; never `default`, whatever the service is called."""
    return f"{plan.key.name}-runtime"


def render_cluster_service(plan: ServicePlan) -> Manifest:
    """A ClusterIP Service on the runtime's port."""
    return service_child(
        "v1",
        "Service",
        plan.key.name,
        plan,
        spec={
            "type": "ClusterIP",
            "selector": plan.selector,
            "ports": [{"name": PORT_NAME, "port": RUNTIME_PORT, "protocol": "TCP", "targetPort": PORT_NAME}],
        },
    )


def render_account(plan: ServicePlan) -> Manifest:
    """An account without a token: a replica never speaks to the API server."""
    return service_child("v1", "ServiceAccount", account_name(plan), plan, automountServiceAccountToken=False)
