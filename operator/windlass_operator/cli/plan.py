"""`windlass plan`: say what applying some files to a live cluster would change, and write nothing.

Exit code 0, also when there are changes; with --exit-code 2 when there are. 1 when something would be refused, or when
no plan could be made.
"""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import click

from windlass_operator import errors
from windlass_operator.api.load import load_documents
from windlass_operator.api.loaded import Loaded
from windlass_operator.api.meta import API_VERSION
from windlass_operator.api.v1alpha1.batch_inference import BatchInference
from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.cli.output import cluster_options, output_option, print_json
from windlass_operator.cli.picture import settings_of
from windlass_operator.cli.plan_changes import LAST_APPLIED, without_removed
from windlass_operator.cli.plan_outline import Intent, is_change, is_refused, outline
from windlass_operator.cluster.kubernetes_access import AccessLoader, access_loader
from windlass_operator.cluster.kubernetes_client import Forbidden, KubernetesClient, NotFound
from windlass_operator.cluster.kubernetes_kinds import KINDS, Ref
from windlass_operator.cluster.kubernetes_reader import dry_run, read_picture
from windlass_operator.cluster.protocol import Manifest
from windlass_operator.errors import InvalidInput

EXIT_CHANGES: Final = 2
EXIT_REFUSED: Final = 1
REQUEST_TIMEOUT_S: Final = 30.0
OFFLINE: Final = "without a cluster, `windlass explain FILE...` says what the files amount to on their own"


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@cluster_options("Of objects that name none.")
@click.option(
    "--field-manager",
    metavar="NAME",
    default="kubectl",
    show_default=True,
    help="Who will apply: the manager of a server-side apply. Fields that others own stay.",
)
@click.option("--exit-code", is_flag=True, help="Exit with 2 when there are changes.")
@output_option("text", "json")
def plan(
    files: tuple[str, ...],
    kubeconfig: str,
    context: str,
    namespace: str,
    operator_namespace: str,
    field_manager: str,
    exit_code: bool,
    output: str,
) -> int:
    """Say what applying FILE... to a cluster would change: objects, children, GPUs, quota, rollout. Writes nothing."""
    loaded = load_documents(files)
    if loaded.problems:
        raise InvalidInput(loaded.problems)
    try:
        told = asyncio.run(
            _plan(loaded, access_loader(kubeconfig, context), namespace, operator_namespace, field_manager)
        )
    except errors.ClusterUnavailable as exc:
        raise errors.ClusterUnavailable(f"{exc}; {OFFLINE}") from exc
    if output == "json":
        print_json(told)
    else:
        click.echo("\n".join(tell(told)))
    if is_refused(told):
        return EXIT_REFUSED
    return EXIT_CHANGES if exit_code and is_change(told) else 0


async def _plan(
    loaded: Loaded, access: AccessLoader, namespace: str, operator_namespace: str, manager: str
) -> dict[str, Any]:
    wanted = _manifests(loaded, namespace)
    spaces = {one["metadata"]["namespace"] for one in wanted if "namespace" in one["metadata"]}
    coming = {space for tenant in loaded.tenants for space in tenant.spec.namespaces}
    async with KubernetesClient(access, REQUEST_TIMEOUT_S) as client:
        picture = await read_picture(client, spaces, operator_namespace)
        intents = [await _try(client, manifest, manager, coming) for manifest in wanted]
    return outline(intents, picture, settings_of(picture), datetime.datetime.now(datetime.UTC))


def _manifests(loaded: Loaded, namespace: str) -> list[Manifest]:
    """The objects as their author wrote them: classes first, then tenants, services and batches."""
    items: tuple[GPUClass | Tenant | InferenceService | BatchInference, ...] = (
        *loaded.gpu_classes,
        *loaded.tenants,
        *loaded.services,
        *loaded.batches,
    )
    manifests = []
    for item in items:
        body = item.model_dump(mode="json", by_alias=True, exclude_unset=True)
        metadata = {key: body["metadata"][key] for key in ("name", "labels", "annotations") if key in body["metadata"]}
        kind = type(item).__name__
        if KINDS[kind].namespaced:
            metadata["namespace"] = item.metadata.namespace or namespace
        manifests.append({"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": body["spec"]})
    return manifests


async def _try(client: KubernetesClient, manifest: Manifest, manager: str, coming: set[str]) -> Intent:
    """Ask the server what it would store. In a namespace that a Tenant of the files brings, the file is believed."""
    metadata = manifest["metadata"]
    kind, space, name = manifest["kind"], metadata.get("namespace", ""), metadata["name"]
    live = await _read_live(client, Ref(kind, space, name))
    try:
        result = await dry_run(client, manifest, manager)
    except NotFound as exc:
        if space in coming:
            return Intent(kind, space, name, live, manifest)
        step = f"Create the namespace {space} first, or add a Tenant that lists it to the files"
        return Intent(kind, space, name, live, None, _problem(exc, step))
    except errors.ApplyRejected as exc:
        step = "Correct the file, or ask for the right to write it"
        return Intent(kind, space, name, live, None, _problem(exc, step))
    last = ((live or {}).get("metadata", {}).get("annotations") or {}).get(LAST_APPLIED)
    if last:
        result = without_removed(result, json.loads(last), manifest)
    return Intent(kind, space, name, live, result)


async def _read_live(client: KubernetesClient, ref: Ref) -> Manifest | None:
    """The object as it is; None also where it may not be read, for then the dry run says what may be done."""
    try:
        return await client.get(ref)
    except Forbidden:
        return None


def _problem(exc: errors.ApplyRejected, next_step: str) -> dict[str, str]:
    return {"reason": exc.reason, "message": str(exc), "nextStep": next_step}


# -- words -------------------------------------------------------------------------------------------------------------


def tell(told: Mapping[str, Any]) -> list[str]:
    """The same in lines for a terminal."""
    lines = [line for one in told["objects"] for line in _tell_object(one)]
    quota = [one for one in told.get("quota", ()) if one["before"] != one["after"]]
    if quota:
        lines += ["", "Quota"]
        lines += [
            f"  {one['tenant']}: {one['class']} {one['before']} -> {one['after']} of {one['nominal']} devices"
            for one in quota
        ]
    if told.get("neighbours"):
        lines += ["", "Other services"]
        lines += [f"  {one['service']}: {one['before']} -> {one['after']}" for one in told["neighbours"]]
    lines += [f"note: {note}" for note in told.get("notes", ())]
    return [*lines, "", _sum_up(told["objects"])]


def _sum_up(objects: Iterable[Mapping[str, Any]]) -> str:
    actions = [one["action"] for one in objects]
    parts = [f"{actions.count(action)} to {action}" for action in ("create", "update") if action in actions]
    parts += [f"{actions.count(action)} {action}" for action in ("unchanged", "refused") if action in actions]
    return f"Plan: {', '.join(parts) or 'nothing to do'}. Nothing was written."


def _tell_object(one: Mapping[str, Any]) -> list[str]:
    name = f"{one['namespace']}/{one['name']}" if "namespace" in one else one["name"]
    lines = [f"{one['kind']} {name}: {one['action']}"]
    lines += [f"  {_tell_change(change)}" for change in one.get("changes", ())]
    if "refusal" in one:
        refusal = one["refusal"]
        word = "limited" if one.get("runs") else "refused"
        lines += [f"  {word} ({refusal['reason']}): {refusal['message']}", f"  next step: {refusal['nextStep']}"]
    if "gpus" in one:
        lines.append(f"  GPUs      {_tell_gpus(one['gpus'])}")
    lines += [f"  warning   {warning}" for warning in one.get("warnings", ())]
    for step in (one.get("rollout") or {}).get("steps", ()):
        uses = f", uses {step['freeDevices']} free" if step["freeDevices"] else ""
        why = f": {step['reason']}" if step["reason"] else ""
        lines.append(f"  rollout   {step['action']} x {step['replicas']} ({step['state']}{uses}){why}")
    lines += _tell_children(one.get("children", ()))
    return lines


def _tell_gpus(gpus: Mapping[str, Any]) -> str:
    known = gpus["freeNow"] is not None
    free = f"{gpus['freeNow']} of {gpus['classDevices']} free now" if known else "free devices unknown"
    nodes = "" if gpus["nodes"] is None else f" on {gpus['nodes']} nodes"
    return f"{gpus['devices']} x {gpus['class']} ({gpus['perReplica']} per replica); {free}{nodes}"


def _tell_children(children: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = []
    for child in children:
        if child["action"] != "unchanged":
            lines.append(f"  child     {child['kind']} {child['name']}: {child['action']}")
            lines += [f"              {_tell_change(change)}" for change in child["changes"]]
    return lines


def _tell_change(change: Mapping[str, Any]) -> str:
    if "before" not in change:
        return f"{change['path']}: added {_brief(change['after'])}"
    if "after" not in change:
        return f"{change['path']}: removed {_brief(change['before'])}"
    return f"{change['path']}: {_brief(change['before'])} -> {_brief(change['after'])}"


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."
