"""Decide which routers of the cluster share traffic out beside our own gateway, and with which weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from windlass_operator.api.v1alpha1.canary import CanaryPhase, CanaryStatus
from windlass_operator.domain.canary_plan import object_name
from windlass_operator.domain.capabilities import Capabilities
from windlass_operator.domain.decision import Decision, decide
from windlass_operator.domain.fleet import FleetSettings

ISTIO: Final = "Istio"


@dataclass(frozen=True, slots=True)
class Share:
    """One revision as a router sees it."""

    backend: str
    """Name of its Service."""
    weight: int
    """Percent of the requests."""
    canary: str = ""
    """Name of the canary; empty for the stable revision."""


@dataclass(frozen=True, slots=True)
class TrafficPlan:
    """What is written for other routers than ours."""

    shares: tuple[Share, ...] = ()
    """The stable revision first; weights add up to 100."""
    http_route: bool = False
    pools: bool = False
    """Whether each revision has an InferencePool, to which the HTTPRoute sends."""
    virtual_service: bool = False


NO_TRAFFIC: Final = TrafficPlan()


def plan_traffic(
    service: str, states: Sequence[CanaryStatus], settings: FleetSettings, capabilities: Capabilities
) -> TrafficPlan:
    """Share out what canaries get now. Other routers know no stand-in: nobody is sent to one that is not ready."""
    canaries = tuple(
        Share(object_name(service, state.name), state.traffic_percent, state.name)
        for state in states
        if state.phase not in (CanaryPhase.PENDING, CanaryPhase.ABORTED)
    )
    stable = Share(service, 100 - sum(share.weight for share in canaries))
    return TrafficPlan(
        (stable, *canaries),
        http_route=bool(settings.http_route_gateway) and capabilities.has_http_routes,
        pools=bool(settings.endpoint_picker) and capabilities.has_http_routes and capabilities.has_inference_pools,
        virtual_service=settings.mesh_routes == ISTIO and capabilities.has_virtual_services and len(canaries) > 0,
    )


def explain_traffic(plan: TrafficPlan, settings: FleetSettings, capabilities: Capabilities) -> tuple[Decision, ...]:
    """Say what became of the routers that the platform asked for; nothing where it asked for none."""
    if not capabilities.known:
        return ()
    decisions = []
    if settings.http_route_gateway:
        reason = f"the platform names Gateway {settings.http_route_gateway}"
        missing = f"{reason}, but the cluster serves no HTTPRoute of gateway.networking.k8s.io/v1"
        decisions.append(
            decide("http route", "HTTPRoute", reason) if plan.http_route else decide("http route", "none", missing)
        )
    if settings.endpoint_picker:
        decisions.append(_explain_pools(plan, settings, capabilities))
    if settings.mesh_routes == ISTIO and not capabilities.has_virtual_services:
        reason = "the platform asks for Istio, but the cluster serves no VirtualService of networking.istio.io/v1"
        decisions.append(decide("mesh route", "none", reason))
    elif settings.mesh_routes == ISTIO and plan.virtual_service:
        decisions.append(decide("mesh route", "VirtualService", "the platform asks for Istio, and there are canaries"))
    return tuple(decisions)


def _explain_pools(plan: TrafficPlan, settings: FleetSettings, capabilities: Capabilities) -> Decision:
    if plan.pools:
        pickers = ", ".join(picker_of(share, settings)[0] for share in plan.shares)
        return decide("inference pool", "InferencePool", f"the platform names an endpoint picker: Service {pickers}")
    missing = (
        "InferencePool of inference.networking.k8s.io/v1"
        if capabilities.has_http_routes
        else "HTTPRoute of gateway.networking.k8s.io/v1, which sends to pools"
    )
    return decide(
        "inference pool", "none", f"the platform names an endpoint picker, but the cluster serves no {missing}"
    )


def picker_of(share: Share, settings: FleetSettings) -> tuple[str, int]:
    """Name and port of the Service of a revision's endpoint picker, in the namespace of the service."""
    name, _, port = settings.endpoint_picker.replace("{name}", share.backend).rpartition(":")
    return name, int(port)
