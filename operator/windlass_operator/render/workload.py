"""Children of an InferenceService, complete and in the order they are applied: what pods need comes before pods."""

from __future__ import annotations

from typing import Any

from windlass_operator.domain import labels
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import Action, ServicePlan
from windlass_operator.domain.scaling import Scaler, ScalingPlan
from windlass_operator.domain.snapshot import Taking
from windlass_operator.render.autoscaler import render_autoscaler
from windlass_operator.render.claim import render_claim_template
from windlass_operator.render.disruption_budget import render_disruption_budget
from windlass_operator.render.launch import render_launch
from windlass_operator.render.manifest import Manifest, service_child
from windlass_operator.render.network_policy import render_service_policy
from windlass_operator.render.pod import render_pod_template
from windlass_operator.render.scaled_object import render_scaled_object
from windlass_operator.render.service import render_account, render_cluster_service
from windlass_operator.render.traffic import render_http_route, render_inference_pool, render_virtual_service

_PROGRESS_MARGIN_S = 600


def render_service(plan: ServicePlan, settings: FleetSettings) -> tuple[Manifest, ...]:
    """Objects of a plan whose action is Apply, none for Remove. A plan on Hold has no objects to render: ValueError."""
    if plan.action is Action.HOLD:
        raise ValueError(f"{plan.key}: expected a plan to apply or remove, found one on hold: {plan.refusal}")
    if plan.action is Action.REMOVE:
        return ()
    children = [
        render_account(plan),
        render_launch(plan),
        render_service_policy(plan, settings),
        render_cluster_service(plan),
        *([render_claim_template(plan, plan.gpu_class)] if plan.gpu_class and plan.gpu_class.alternatives else []),
        render_deployment(plan, settings),
    ]
    if plan.scaling is not None:
        children.append(_render_scaler(plan, plan.scaling, settings))
    if plan.rollout.min_available > 0:
        children.append(render_disruption_budget(plan))
    if plan.traffic.pools:
        children += [render_inference_pool(plan, share, settings) for share in plan.traffic.shares]
    if plan.traffic.http_route:
        children.append(render_http_route(plan, settings))
    if plan.traffic.virtual_service:
        children.append(render_virtual_service(plan, settings))
    return (*children, *(child for canary in plan.canaries for child in render_service(canary, settings)))


def _render_scaler(plan: ServicePlan, scaling: ScalingPlan, settings: FleetSettings) -> Manifest:
    if scaling.scaler is Scaler.SCALED_OBJECT:
        return render_scaled_object(plan, scaling, settings)
    return render_autoscaler(plan, scaling)


def render_deployment(plan: ServicePlan, settings: FleetSettings) -> Manifest:
    """The Deployment. While an autoscaler owns the number of replicas the field is absent: applying never resets it."""
    owned = {} if plan.replicas is None else {"replicas": plan.replicas}
    waiting = {"paused": True} if plan.rollout.paused else {}
    spec: dict[str, Any] = {
        **owned,
        **waiting,
        "revisionHistoryLimit": 3,
        "progressDeadlineSeconds": settings.startup_timeout_s + _PROGRESS_MARGIN_S,
        "selector": {"matchLabels": plan.selector},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": plan.rollout.max_surge, "maxUnavailable": plan.rollout.max_unavailable},
        },
        "template": render_pod_template(plan, settings),
    }
    deployment = service_child("apps/v1", "Deployment", plan.key.name, plan, spec=spec)
    if plan.queue:
        deployment["metadata"]["labels"][labels.QUEUE] = plan.queue
    if plan.takings:
        deployment["metadata"]["annotations"] = {labels.TAKINGS: render_takings(plan.takings)}
    return deployment


def render_takings(takings: tuple[Taking, ...]) -> str:
    """One word per taking, `seconds:replicas:left:cause`; written together with the replica count it explains."""
    return " ".join(f"{taking.at_s}:{taking.replicas}:{taking.left}:{taking.cause}" for taking in takings)
