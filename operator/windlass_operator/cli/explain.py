"""`windlass explain`: say in words what was chosen for the services of some files, why, and what would be created."""

from __future__ import annotations

import json
from typing import Any

import click

from windlass_operator.cli.render import load_sound
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import ServicePlan, plan_services
from windlass_operator.domain.snapshot import snapshot_of
from windlass_operator.domain.suggestion import BY_PLATFORM, Suggestion
from windlass_operator.render.workload import render_service


def explain_plan(plan: ServicePlan, settings: FleetSettings) -> dict[str, Any]:
    """Everything there is to say about one service, as data."""
    explanation: dict[str, Any] = {
        "namespace": plan.key.namespace,
        "name": plan.key.name,
        "runs": plan.runnable,
        "decisions": [decision.model_dump() for decision in plan.decisions],
        "creates": [
            {"kind": child["kind"], "name": child["metadata"]["name"]} for child in render_service(plan, settings)
        ],
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


def tell(explanation: dict[str, Any]) -> str:
    """The same in lines for a terminal."""
    lines = [f"InferenceService {explanation['namespace']}/{explanation['name']}"]
    refusal = explanation.get("refusal")
    if refusal is not None:
        lines += [
            f"  {'limited' if explanation['runs'] else 'refused'} ({refusal['reason']}): {refusal['message']}",
            f"  next step: {refusal['nextStep']}",
        ]
    for suggestion in explanation.get("suggestions", ()):
        lines.append(f"  would admit it: {suggestion['order']} ({suggestion['by']})")
    width = max((len(decision["topic"]) for decision in explanation["decisions"]), default=0)
    lines += [
        f"  {decision['topic']:<{width}}  {decision['choice']}\n  {'':<{width}}    {decision['reason']}"
        for decision in explanation["decisions"]
    ]
    created = ", ".join(f"{child['kind']} {child['name']}" for child in explanation["creates"])
    lines.append(f"  creates: {created or 'nothing'}")
    return "\n".join(lines)


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--service",
    "wanted",
    metavar="NAMESPACE/NAME",
    help="Explain this service only; the others still count for quotas.",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def explain(files: tuple[str, ...], wanted: str | None, output: str) -> None:
    """Say what the operator would choose for the services of FILE..., and why."""
    settings, loaded = FleetSettings(), load_sound(files)
    snapshot = snapshot_of(loaded.services, loaded.tenants, loaded.gpu_classes)
    plans = plan_services(snapshot, settings)
    if wanted is not None:
        plans = tuple(plan for plan in plans if f"{plan.key.namespace}/{plan.key.name}" == wanted)
        if not plans:
            known = ", ".join(f"{key.namespace}/{key.name}" for key in sorted(snapshot.services)) or "none"
            raise click.ClickException(
                f"--service: expected one of the services in these files ({known}), found {wanted}"
            )
    explanations = [explain_plan(plan, settings) for plan in plans]
    if output == "json":
        click.echo(json.dumps({"services": explanations}, indent=2))
    elif not explanations:
        click.echo("no InferenceService in these files")
    else:
        click.echo("\n\n".join(tell(explanation) for explanation in explanations))
