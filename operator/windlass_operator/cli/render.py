"""`windlass render`: print the objects the operator would apply for some files, without a cluster.

Standard output holds objects only, so it can be piped into `kubectl apply --server-side -f -` or committed. Files with
problems print nothing; a refused service is left out, its reason goes to standard error, and the exit code is 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import click

from windlass_operator.api.load import load_documents
from windlass_operator.api.loaded import Loaded
from windlass_operator.domain.batch_plan import plan_batches
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_services, plan_tenant
from windlass_operator.domain.snapshot import snapshot_of
from windlass_operator.errors import InvalidInput
from windlass_operator.render.batch import render_batch
from windlass_operator.render.fleet import render_fleet
from windlass_operator.render.manifest import Manifest
from windlass_operator.render.output import to_json, to_yaml
from windlass_operator.render.tenant import render_tenant
from windlass_operator.render.workload import render_service


@dataclass(frozen=True, slots=True)
class Rendering:
    """What some files amount to."""

    manifests: tuple[Manifest, ...]
    complaints: tuple[str, ...]
    """What the operator would refuse, one line each."""


def load_sound(files: tuple[str, ...]) -> Loaded:
    """Read files and show warnings. Raises InvalidInput when anything is wrong with any of them."""
    loaded = load_documents(files)
    if loaded.problems:
        raise InvalidInput(loaded.problems)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    return loaded


def render_loaded(loaded: Loaded, settings: FleetSettings) -> Rendering:
    """Plan and render every object: what the fleet needs, then tenants, services and batches."""
    snapshot = snapshot_of(loaded.services, loaded.tenants, loaded.gpu_classes, batches=loaded.batches)
    tenants = [
        plan_tenant(tenant, snapshot, settings)
        for tenant in sorted(loaded.tenants, key=lambda item: item.metadata.name)
    ]
    services = plan_services(snapshot, settings)
    batches = plan_batches(snapshot, settings)
    manifests = [
        *render_fleet(settings),
        *(manifest for plan in tenants for manifest in render_tenant(plan, settings)),
        *(manifest for plan in services for manifest in render_service(plan, settings)),
        *(manifest for batch in batches for manifest in render_batch(batch, settings)),
    ]
    complaints = [f"{plan.key}: {problem}" for plan in tenants for problem in plan.problems]
    complaints += [f"{plan.key}: {plan.refusal}" for plan in services if plan.refusal is not None]
    complaints += [f"{one.key}: {one.workers.refusal}" for one in batches if one.workers.refusal is not None]
    return Rendering(tuple(manifests), tuple(complaints))


_DEFAULTS = FleetSettings()


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
@click.option("--runtime-image", default=_DEFAULTS.runtime_image, show_default=True, help="Image of every replica.")
@click.option(
    "--gateway-namespace", default=_DEFAULTS.gateway_namespace, show_default=True, help="Where the gateway runs."
)
@click.option(
    "--metrics-namespace",
    default=_DEFAULTS.metrics_namespace,
    show_default=True,
    help="Where the metrics scraper runs.",
)
def render(
    files: tuple[str, ...], output: str, runtime_image: str, gateway_namespace: str, metrics_namespace: str
) -> None:
    """Print the objects the operator would apply for FILE... (files, folders, or - for standard input)."""
    settings = FleetSettings(
        runtime_image=runtime_image,
        gateway_namespace=gateway_namespace,
        metrics_namespace=metrics_namespace,
    )
    rendering = render_loaded(load_sound(files), settings)
    click.echo(to_json(rendering.manifests) if output == "json" else to_yaml(rendering.manifests), nl=False)
    for complaint in rendering.complaints:
        click.echo(complaint, err=True)
    if rendering.complaints:
        raise SystemExit(1)
