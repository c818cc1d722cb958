"""Plan a service against the pod template that its own plan renders to. Pure.

How pods are replaced depends on whether the template is another than the live one, and the template follows from the
plan. So a plan is made, rendered, and made again; everything but the rollout comes out the same.
"""

from __future__ import annotations

from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.domain.fleet_view import FleetView
from windlass_operator.domain.plan import Action, ServicePlan, plan_in_view
from windlass_operator.domain.revision import fingerprint
from windlass_operator.domain.rollout_plan import RolloutClues
from windlass_operator.render.pod import render_pod_template


def plan_rendered(service: InferenceService, view: FleetView, refused_s: float) -> ServicePlan:
    """Decide for a service of the view's snapshot. `refused_s`: how long its pods have found no place."""
    plan = plan_in_view(service, view)
    if plan.action is not Action.APPLY:
        return plan
    template = fingerprint(render_pod_template(plan, view.settings))
    return plan_in_view(service, view, RolloutClues(template, refused_s))
