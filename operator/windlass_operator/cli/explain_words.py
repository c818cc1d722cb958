"""What `windlass explain` says of one planned service, as data and in lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from windlass_operator.domain.batch_plan import BatchPlan
from windlass_operator.domain.decision import Decision
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import ServicePlan
from windlass_operator.domain.snapshot import Key
from windlass_operator.domain.suggestion import BY_PLATFORM, Suggestion
from windlass_operator.render.batch import render_batch
from windlass_operator.render.manifest import Manifest
from windlass_operator.render.workload import render_service


def explain_plan(plan: ServicePlan, settings: FleetSettings) -> dict[str, Any]:
    """Everything there is to say about one service, as data."""
    return _explain(plan.key, plan, plan.decisions, render_service(plan, settings))


def explain_batch(plan: BatchPlan, settings: FleetSettings) -> dict[str, Any]:
    """The same about one batch."""
    return _explain(plan.key, plan.workers, plan.decisions, render_batch(plan, settings))


def _explain(
    key: Key, plan: ServicePlan, decisions: Iterable[Decision], children: Iterable[Manifest]
) -> dict[str, Any]:
    explanation: dict[str, Any] = {
        "namespace": key.namespace,
        "name": key.name,
        "runs": plan.runnable,
        "decisions": [decision.model_dump() for decision in decisions],
        "creates": [{"kind": child["kind"], "name": child["metadata"]["name"]} for child in children],
    }
    if plan.refusal is not None:
        explanation["refusal"] = {
            "reason": plan.refusal.reason,
            "message": plan.refusal.message,
            "nextStep": plan.refusal.next_step,
        }
    if plan.quota is not None:
        explanation["quota"] = {
            "admitted": plan.quota.admitted,
            "reason": plan.quota.reason,
            "message": plan.quota.message,
        }
    if plan.suggestions:
        explanation["suggestions"] = [explain_suggestion(suggestion) for suggestion in plan.suggestions]
    return explanation


def explain_suggestion(suggestion: Suggestion) -> dict[str, Any]:
    """One change that would admit the service, with the merge patch that makes it."""
    explained: dict[str, Any] = {
        "remedy": suggestion.remedy.value,
        "order": suggestion.order,
        "devices": suggestion.devices,
        "by": "platform team" if suggestion.remedy in BY_PLATFORM else "tenant",
    }
    if suggestion.change is not None:
        key = suggestion.change.key
        explained["change"] = {
            "kind": key.kind,
            "namespace": key.namespace,
            "name": key.name,
            "patch": dict(suggestion.change.patch),
        }
    return explained


def tell(explanation: dict[str, Any], kind: str = "InferenceService") -> str:
    """The same in lines for a terminal."""
    lines = [f"{kind} {explanation['namespace']}/{explanation['name']}"]
    lines += [
        f"  {one['type']} {one['status']} ({one['reason']}): {one['message']}"
        for one in explanation.get("conditions", ())
        if one["message"]
    ]
    refusal = explanation.get("refusal")
    if refusal is not None:
        lines += [
            f"  {'limited' if explanation['runs'] else 'refused'} ({refusal['reason']}): {refusal['message']}",
            f"  next step: {refusal['nextStep']}",
        ]
    for suggestion in explanation.get("suggestions", ()):
        lines.append(f"  would admit it: {suggestion['order']} ({suggestion['by']})")
    width = max((len(decision["topic"]) for decision in explanation.get("decisions", ())), default=0)
    lines += [
        f"  {decision['topic']:<{width}}  {decision['choice']}\n  {'':<{width}}    {decision['reason']}"
        for decision in explanation.get("decisions", ())
    ]
    if "creates" not in explanation:
        return "\n".join(lines)
    created = ", ".join(f"{child['kind']} {child['name']}" for child in explanation["creates"])
    lines.append(f"  creates: {created or 'nothing'}")
    return "\n".join(lines)
