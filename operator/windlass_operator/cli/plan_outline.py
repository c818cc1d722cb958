"""Say what applying some objects would do: the operator's own planner over the live picture with them put in.

Everything here is data for `windlass plan -o json`; `plan.py` turns it into lines. Pure but for what it is given.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from windlass_operator.api.v1alpha1.batch_inference import BatchInference
from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.cli.picture import notes_on, unread_kinds
from windlass_operator.cli.plan_changes import Change, child_changes, object_changes
from windlass_operator.cluster.kubernetes import PRUNED_KINDS, stamp
from windlass_operator.cluster.kubernetes_kinds import ref_of
from windlass_operator.cluster.kubernetes_reader import Picture
from windlass_operator.cluster.protocol import Manifest
from windlass_operator.domain import labels
from windlass_operator.domain.batch_plan import plan_batch
from windlass_operator.domain.decision import Refusal
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.fleet_view import FleetView
from windlass_operator.domain.plan import Action, ServicePlan, plan_tenant
from windlass_operator.domain.rollout import RolloutWay, observe_replacement
from windlass_operator.domain.rollout_steps import plan_rollout_status
from windlass_operator.domain.snapshot import Key, Snapshot
from windlass_operator.render.planned import plan_rendered
from windlass_operator.render.tenant import render_tenant
from windlass_operator.render.workload import render_service

_BLIND: Final = (
    "so children, GPUs, quota and rollout are not planned; ask the platform team for the right to list them, "
    "or to run this plan"
)


@dataclass(frozen=True, slots=True)
class Intent:
    """One object of the files, and what the server made of it in a dry run."""

    kind: str
    namespace: str
    name: str
    live: Manifest | None
    after: Manifest | None
    """None: the server refuses it."""
    problem: Mapping[str, str] = field(default_factory=dict)
    """`reason`, `message` and `nextStep` of a refusal."""

    @property
    def key(self) -> Key:
        """Its identity."""
        return Key(self.kind, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Two:
    """The plans of every service before and after."""

    before: Mapping[Key, ServicePlan]
    after: Mapping[Key, ServicePlan]
    view: FleetView
    """The picture after."""
    now: FleetView
    """The picture before."""


def outline(
    intents: Sequence[Intent], picture: Picture, settings: FleetSettings, now: datetime.datetime
) -> dict[str, Any]:
    """Everything there is to say, as data."""
    told: dict[str, Any] = {"objects": [_outline_object(intent) for intent in intents]}
    unread = unread_kinds(picture)
    if unread:
        told["notes"] = [f"{' and '.join(unread)} objects may not be read, {_BLIND}"]
        return told
    two = _plan_twice(intents, picture, settings, now)
    for intent, one in zip(intents, told["objects"], strict=True):
        if intent.after is not None and intent.kind == "InferenceService":
            one.update(_outline_service(intent, two, picture, settings))
        elif intent.after is not None and intent.kind == "BatchInference":
            one.update(_outline_batch(intent, two))
        elif intent.after is not None and intent.kind == "Tenant":
            one.update(_outline_tenant(intent, two, picture, settings))
    concerned = {intent.key for intent in intents}
    told["neighbours"] = _neighbours(two, concerned)
    told["quota"] = _quota(two, concerned)
    told["notes"] = notes_on(picture)
    return told


def is_change(told: Mapping[str, Any]) -> bool:
    """Whether applying would write anything, the operator's writes included."""
    return any(
        one["action"] != "unchanged" or any(child["action"] != "unchanged" for child in one.get("children", ()))
        for one in told["objects"]
    )


def is_refused(told: Mapping[str, Any]) -> bool:
    """Whether the server or the planner refuses something."""
    return any("refusal" in one for one in told["objects"])


def _outline_object(intent: Intent) -> dict[str, Any]:
    one: dict[str, Any] = {"kind": intent.kind, "name": intent.name}
    if intent.namespace:
        one["namespace"] = intent.namespace
    if intent.after is None:
        return {**one, "action": "refused", "refusal": dict(intent.problem)}
    changed = object_changes(intent.live, intent.after)
    action = "create" if intent.live is None else "update" if changed else "unchanged"
    return {**one, "action": action, "changes": [] if intent.live is None else changed}


def _plan_twice(intents: Sequence[Intent], picture: Picture, settings: FleetSettings, now: datetime.datetime) -> Two:
    before = FleetView(picture.snapshot, settings, now)
    after = FleetView(_put(picture.snapshot, intents), settings, now)
    return Two(_plan_all(before), _plan_all(after), after, before)


def _plan_all(view: FleetView) -> dict[Key, ServicePlan]:
    services = view.observed.services
    # A pod without a place counts: what the operator would still wait for is not known here.
    return {key: plan_rendered(services[key], view, float("inf")) for key in sorted(services)}


def _put(snapshot: Snapshot, intents: Iterable[Intent]) -> Snapshot:
    services, tenants, classes = dict(snapshot.services), dict(snapshot.tenants), dict(snapshot.gpu_classes)
    batches = dict(snapshot.batches)
    for intent in intents:
        if intent.after is None:
            continue
        if intent.kind == "InferenceService":
            services[intent.key] = InferenceService.model_validate(intent.after)
        elif intent.kind == "BatchInference":
            batches[intent.key] = BatchInference.model_validate(intent.after)
        elif intent.kind == "Tenant":
            tenants[intent.name] = Tenant.model_validate(intent.after)
        else:
            classes[intent.name] = GPUClass.model_validate(intent.after)
    return replace(snapshot, services=services, tenants=tenants, gpu_classes=classes, batches=batches)


def _outline_service(intent: Intent, two: Two, picture: Picture, settings: FleetSettings) -> dict[str, Any]:
    plan, earlier = two.after[intent.key], two.before.get(intent.key)
    told: dict[str, Any] = {"runs": plan.runnable, "decisions": [one.model_dump() for one in plan.decisions]}
    if plan.refusal is not None:
        told["refusal"] = _refusal(plan.refusal)
    if plan.action is Action.APPLY:
        told |= _outline_pods(plan, earlier, two)
    if plan.action is not Action.HOLD:
        then = render_service(earlier, settings) if earlier is not None and earlier.action is Action.APPLY else ()
        told["children"] = _outline_children(intent, render_service(plan, settings), then, picture)
    told["warnings"] = _warn(plan, told, two)
    return told


def _outline_batch(intent: Intent, two: Two) -> dict[str, Any]:
    plan = plan_batch(two.view.snapshot.batches[intent.key], two.view)
    told: dict[str, Any] = {
        "runs": plan.workers.runnable,
        "decisions": [one.model_dump() for one in plan.decisions],
    }
    if plan.workers.refusal is not None and not plan.over:
        told["refusal"] = _refusal(plan.workers.refusal)
    return told


def _outline_pods(plan: ServicePlan, earlier: ServicePlan | None, two: Two) -> dict[str, Any]:
    workload = two.view.workload_of(plan.key)
    bounds = [plan.scaling.min_replicas, plan.scaling.max_replicas] if plan.scaling else [plan.replicas or 0] * 2
    gpu = plan.gpu_class
    told: dict[str, Any] = {"replicas": {"least": bounds[0], "most": bounds[1]}}
    if gpu is not None:
        supply = two.view.supply
        free = supply.free(gpu.name)
        told["gpus"] = {
            "class": gpu.name,
            "perReplica": gpu.count,
            "devices": bounds[1] * gpu.count,
            "nodes": supply.nodes(gpu.name, gpu.count),
            "classDevices": supply.devices(gpu.name),
            "freeNow": None if free is None else max(0, free),
        }
    name, count = (gpu.name, gpu.count) if gpu is not None else ("", 0)
    replacement = observe_replacement(workload, plan.rollout.target, name)
    if plan.rollout.rolling and replacement is not None and bounds[1]:
        told["restarts"] = replacement.old
        replicas = workload.wanted if plan.replicas is None else plan.replicas
        status = plan_rollout_status(plan.rollout, replacement, replicas, count, None, "")
        if status is not None:
            told["rollout"] = status.model_dump(mode="json", by_alias=True, exclude={"started", "finished"})
    if earlier is not None and earlier.gpu_class is not None and name != earlier.gpu_class.name and workload.replicas:
        told["moves"] = {"from": earlier.gpu_class.name, "to": name or "CPU"}
    return told


def _outline_children(
    intent: Intent, wanted: Sequence[Manifest], earlier: Sequence[Manifest], picture: Picture
) -> list[dict[str, Any]]:
    assert intent.after is not None
    then = {ref_of(child): child for child in earlier}
    told, refs = [], set()
    for child in wanted:
        ref = ref_of(child)
        refs.add(ref)
        if not picture.reads(ref.kind, ref.namespace):
            continue
        live = picture.live(ref.kind, ref.namespace, ref.name)
        changed = child_changes(live, stamp(child, intent.key, intent.after), then.get(ref))
        action = "create" if live is None else "update" if changed else "unchanged"
        told.append(_child(ref.kind, ref.namespace, ref.name, action, changed))
    told += [
        _child(ref.kind, ref.namespace, ref.name, "delete", [])
        for ref, live in sorted(picture.children(intent.key).items())
        if ref not in refs and ref.kind in PRUNED_KINDS and labels.is_prunable(live)
    ]
    return told


def _child(kind: str, namespace: str, name: str, action: str, changed: list[Change]) -> dict[str, Any]:
    return {"kind": kind, "namespace": namespace, "name": name, "action": action, "changes": changed}


def _outline_tenant(intent: Intent, two: Two, picture: Picture, settings: FleetSettings) -> dict[str, Any]:
    plan = plan_tenant(two.view.snapshot.tenants[intent.name], two.view.snapshot, settings)
    before = two.now.snapshot.tenants.get(intent.name)
    earlier = render_tenant(plan_tenant(before, two.now.snapshot, settings), settings) if before is not None else ()
    told: dict[str, Any] = {"children": _outline_children(intent, render_tenant(plan, settings), earlier, picture)}
    if plan.problems:
        told["refusal"] = _refusal(plan.problems[0])
    return told


def _refusal(refusal: Refusal) -> dict[str, str]:
    return {"reason": refusal.reason, "message": refusal.message, "nextStep": refusal.next_step}


def _warn(plan: ServicePlan, told: Mapping[str, Any], two: Two) -> list[str]:
    workload, warnings = two.view.workload_of(plan.key), []
    if told.get("restarts"):
        warnings.append(f"restarts {_pods(told['restarts'])}, one after the other")
    if "moves" in told:
        warnings.append(f"moves pods from {told['moves']['from']} to {told['moves']['to']}")
    if plan.rollout.rolling and plan.rollout.way is RolloutWay.BLOCKED:
        warnings.append(f"the rollout would be blocked: {plan.rollout.reason}")
    if plan.rollout.rolling and plan.rollout.way is RolloutWay.EXCHANGE:
        warnings.append(f"one replica less serves meanwhile: {plan.rollout.reason}")
    if workload.replicas and (plan.action is Action.REMOVE or told.get("replicas", {}).get("most") == 0):
        warnings.append(f"stops {_pods(workload.replicas)}")
    if plan.action is Action.HOLD:
        warnings.append(f"{_pods(workload.replicas)} of the earlier revision keep running as they are")
    return warnings


def _pods(count: int) -> str:
    return "1 pod" if count == 1 else f"{count} pods"


def _neighbours(two: Two, concerned: set[Key]) -> list[dict[str, Any]]:
    """Services that are not in the files and come out otherwise."""
    told = []
    for key, after in two.after.items():
        before = two.before.get(key)
        if key not in concerned and before is not None and _outcome(before) != _outcome(after):
            one: dict[str, Any] = {"service": f"{key.namespace}/{key.name}"}
            told.append({**one, "before": _outcome(before), "after": _outcome(after)})
    return told


def _outcome(plan: ServicePlan) -> str:
    if plan.refusal is not None and not plan.runnable:
        return f"refused ({plan.refusal.reason})"
    bounds = f"{plan.scaling.min_replicas} to {plan.scaling.max_replicas}" if plan.scaling else str(plan.replicas)
    place = f" on {plan.gpu_class.name}" if plan.gpu_class else ""
    limited = f" ({plan.refusal.reason})" if plan.refusal is not None else ""
    return f"{bounds} replicas{place}{limited}"


def _quota(two: Two, concerned: set[Key]) -> list[dict[str, Any]]:
    """Devices that each tenant reserves of its quota, where the files touch the tenant or one of its services."""
    touched = {key.name for key in concerned if key.kind == "Tenant"}
    touched |= {two.after[key].tenant for key in concerned if key in two.after}
    told = []
    for name in sorted(touched & two.view.snapshot.tenants.keys()):
        before, after = _reserved(name, two.before), _reserved(name, two.after)
        granted = {gpu.name: gpu.nominal for gpu in two.view.snapshot.tenants[name].spec.quota.gpus}
        told += [
            {
                "tenant": name,
                "class": gpu_class,
                "nominal": granted.get(gpu_class, 0),
                "before": before.get(gpu_class, 0),
                "after": after.get(gpu_class, 0),
            }
            for gpu_class in sorted(granted.keys() | before.keys() | after.keys())
        ]
    return told


def _reserved(tenant: str, plans: Mapping[Key, ServicePlan]) -> dict[str, int]:
    held: dict[str, int] = {}
    for plan in plans.values():
        if plan.tenant == tenant and plan.action is Action.APPLY and plan.gpu_class is not None:
            replicas = plan.scaling.max_replicas if plan.scaling is not None else plan.replicas or 0
            held[plan.gpu_class.name] = held.get(plan.gpu_class.name, 0) + replicas * plan.gpu_class.count
    return held
