"""`windlass explain`: say in words what was chosen for services, why, and what would be created or would admit them.

For files, as they are on their own; for the names of services, as a live cluster has them now.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any, Final

import click

from windlass_operator.cli.explain_live import explain_live
from windlass_operator.cli.explain_words import explain_batch, explain_plan, tell
from windlass_operator.cli.output import cluster_options, output_option, print_json
from windlass_operator.cli.render import load_sound
from windlass_operator.cluster.kubernetes_access import access_loader
from windlass_operator.domain.batch_plan import plan_batches
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_services
from windlass_operator.domain.snapshot import snapshot_of

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="SERVICE...|FILE...")
@click.option(
    "--service",
    "wanted",
    metavar="NAMESPACE/NAME",
    help="Of FILE..., explain this service only; the others still count for quotas.",
)
@cluster_options("Of SERVICE...")
@output_option("text", "json")
def explain(
    what: tuple[str, ...],
    wanted: str | None,
    kubeconfig: str,
    context: str,
    namespace: str,
    operator_namespace: str,
    output: str,
) -> None:
    """Say what the operator chooses, why, and the smallest change that would admit what it refuses.

    For each SERVICE of a live cluster, from what the cluster holds now; for the services and batches of each FILE, as
    if there were nothing else. What exists as a file or folder is taken for one.
    """
    live = [name for name in what if _NAME.fullmatch(name) and not Path(name).exists()]
    if live and (wanted is not None or len(live) < len(what)):
        raise click.UsageError(f"expected files or names of services, found both; {live[0]} is no file")
    if live:
        told = asyncio.run(explain_live(live, access_loader(kubeconfig, context), namespace, operator_namespace))
    else:
        told = _explain_files(what, wanted)
    if output == "json":
        print_json(told)
    elif not told["services"] and not told.get("batches"):
        click.echo("no InferenceService in these files")
    else:
        batches = (tell(explanation, "BatchInference") for explanation in told.get("batches", ()))
        click.echo("\n\n".join([*map(tell, told["services"]), *batches]))
        for note in told.get("notes", ()):
            click.echo(f"note: {note}")


def _explain_files(files: tuple[str, ...], wanted: str | None) -> dict[str, Any]:
    settings, loaded = FleetSettings(), load_sound(files)
    snapshot = snapshot_of(loaded.services, loaded.tenants, loaded.gpu_classes, batches=loaded.batches)
    plans = plan_services(snapshot, settings)
    if wanted is not None:
        plans = tuple(plan for plan in plans if f"{plan.key.namespace}/{plan.key.name}" == wanted)
        if not plans:
            known = ", ".join(f"{key.namespace}/{key.name}" for key in sorted(snapshot.services)) or "none"
            raise click.ClickException(
                f"--service: expected one of the services in these files ({known}), found {wanted}"
            )
    batches = [explain_batch(plan, settings) for plan in plan_batches(snapshot, settings)] if wanted is None else []
    told = {"services": [explain_plan(plan, settings) for plan in plans]}
    return {**told, **({"batches": batches} if batches else {})}
