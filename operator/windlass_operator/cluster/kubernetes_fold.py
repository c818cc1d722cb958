"""Fold Kubernetes objects into what the planner reads: a Deployment, its pods and autoscaler become a Workload.
Pure.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from windlass_operator.api.v1alpha1.inference_service import Failure
from windlass_operator.cluster.kubernetes_compare import parse_quantity
from windlass_operator.cluster.kubernetes_kinds import DELETION_COST, OWNER, SUPPLY
from windlass_operator.domain import labels
from windlass_operator.domain.snapshot import Key, Node, Revision, Taking, TakingCause, Workload

Json = Mapping[str, Any]

REVISION: Final = "deployment.kubernetes.io/revision"
TEMPLATE_HASH: Final = "pod-template-hash"
FINISHED: Final = frozenset({"Succeeded", "Failed"})
STARTING: Final = frozenset({"ContainerCreating", "PodInitializing"})
"""Waiting reasons that are the normal way to start."""
GATED: Final = "SchedulingGated"
"""Reason of the scheduler for a pod that it is told not to look at."""
AMBIGUOUS: Final = "AmbiguousSelector"
"""Reason of an autoscaler that met another one on the same pods."""
_TAKING: Final = re.compile(rf"(\d{{1,12}}):(\d{{1,6}}):(\d{{1,6}}):({'|'.join(TakingCause)})")
SHRINKS_SOON: Final = "ScaleDownStabilized"
"""Reason of an autoscaler that would shrink, were it not for a higher recommendation of late."""
OWN_KINDS: Final = frozenset({"InferenceService", "Tenant", "GPUClass", "BatchInference"})


def key_of_owner(manifest: Json) -> Key | None:
    """Return whose reconcile an object concerns: itself for our kinds and for what there is for all, its owner for
    children, its service for pods and their claims.
    """
    metadata = manifest["metadata"]
    if manifest["kind"] in OWN_KINDS or (manifest["kind"] in SUPPLY and not is_ours(manifest)):
        return Key(manifest["kind"], metadata.get("namespace", ""), metadata["name"])
    owner = parse_owner((metadata.get("annotations") or {}).get(OWNER, ""))
    if owner is not None:
        return owner
    instance = str((metadata.get("labels") or {}).get(labels.INSTANCE, ""))
    if not instance or not metadata.get("namespace"):
        return None
    if instance.startswith(labels.BATCH_INSTANCE):
        return Key("BatchInference", metadata["namespace"], instance.removeprefix(labels.BATCH_INSTANCE))
    return Key("InferenceService", metadata["namespace"], instance)


def is_ours(manifest: Json) -> bool:
    """Whether an object carries our managed-by label."""
    return _labels(manifest).get(labels.MANAGED_BY) == labels.MANAGER


def render_owner(key: Key) -> str:
    """Return the value of the owner annotation."""
    return f"{key.kind}/{key.namespace}/{key.name}"


def parse_owner(text: str) -> Key | None:
    """Read the owner annotation; None when it is not one of ours."""
    parts = text.split("/")
    return Key(*parts) if len(parts) == 3 and parts[0] in OWN_KINDS else None


def fold_node(manifest: Json) -> Node:
    """Read a Node."""
    status = manifest.get("status", {})
    amounts = {
        name: parse_quantity(amount) for name, amount in (status.get("allocatable") or {}).items() if "/" in name
    }
    ready = any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in status.get("conditions") or ()
    )
    return Node(
        name=manifest["metadata"]["name"],
        labels=dict(manifest["metadata"].get("labels") or {}),
        allocatable={name: int(amount) for name, amount in amounts.items() if amount is not None},
        ready=ready and "deletionTimestamp" not in manifest["metadata"],
        schedulable=not manifest.get("spec", {}).get("unschedulable"),
    )


def fold_workload(
    deployment: Json,
    replica_sets: Sequence[Json] = (),
    pods: Sequence[Json] = (),
    autoscaler: Json | None = None,
    claims: Sequence[Json] = (),
) -> Workload:
    """Fold what runs for one service. Pods and ReplicaSets that the Deployment does not select are ignored."""
    selector = deployment["spec"].get("selector", {}).get("matchLabels", {})
    pods = [pod for pod in pods if _matches(pod, selector) and _phase(pod) not in FINISHED]
    staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    replica_sets = [one for one in replica_sets if _matches(one, selector)]
    newest = _newest_replica_set(deployment, replica_sets)
    updated = [pod for pod in staying if newest and _template_hash(pod) == _template_hash(newest)]
    wanted = int(deployment["spec"].get("replicas", 1))
    template = deployment["spec"].get("template", {})
    gpu_class = _labels(deployment).get(labels.GPU_CLASS) or _labels(template).get(labels.GPU_CLASS, "")
    held = _held(pods, gpu_class)
    queue = _labels(deployment).get(labels.QUEUE, "")
    return Workload(
        replicas=len(staying),
        ready=sum(is_ready(pod) for pod in staying),
        updated=len(updated),
        updated_ready=min(len(updated), int((newest or {}).get("status", {}).get("availableReplicas") or 0)),
        wanted=wanted,
        observed=_is_observed(deployment, newest),
        template=_our_template(deployment),
        revisions=_revisions(staying, replica_sets, newest),
        max_surge=_max_surge(deployment),
        paused=bool(deployment["spec"].get("paused")),
        unplaced=sum(_is_unplaced(pod) for pod in staying) + _is_kept_from_existing(deployment),
        leaving=len(pods) - len(staying),
        restarts=max((_restarts(pod) for pod in updated if not is_ready(pod)), default=0),
        overdue=_condition(deployment, "Progressing").get("status") == "False",
        gpu_class=gpu_class,
        # Pods that a quota keeps from existing still wait for their devices, and terminating ones still hold them.
        devices=max(held.pop(gpu_class, 0), wanted * _devices(template) - sum(held.values())),
        devices_per_pod=_devices(template),
        devices_left_behind=tuple(sorted(held.items())),
        placed=sum(_condition(pod, "PodScheduled").get("status") == "True" for pod in pods),
        devices_by_node=_devices_by_node(pods),
        claimed=_count_claimed(claims, _labels(template).get(labels.GPU_CLASS, "")),
        pending_reason=_pending_reason(deployment, staying),
        autoscaler_judged=bool(_condition(autoscaler or {}, "ScalingActive")),
        autoscaler_problem=_autoscaler_problem(autoscaler),
        foreign_scaler=_foreign_scaler(autoscaler),
        shrinks_soon=_condition(autoscaler or {}, "AbleToScale").get("reason") == SHRINKS_SOON,
        wants_more=_wants_more(autoscaler),
        startup_s=_startup_s(staying),
        last_failure=_last_failure(pods),
        takings=_takings(deployment),
        queue=queue,
        gated=sum(is_gated(pod) for pod in staying),
        unqueued=sum(labels.QUEUE_MANAGED not in _labels(pod) for pod in updated) if queue else 0,
    )


def is_gated(pod: Json) -> bool:
    """Whether the scheduler is told not to look at a pod that Kueue manages."""
    return labels.QUEUE_MANAGED in _labels(pod) and _condition(pod, "PodScheduled").get("reason") == GATED


def add_queue_words(workload: Workload, words: str) -> Workload:
    """The same workload with what Kueue says of its gated pods; the scheduler only says that it does not look."""
    if not workload.gated or not words:
        return workload
    pending = f"waits in LocalQueue {workload.queue} of Kueue: {words}"
    return replace(workload, queue_words=words, pending_reason=pending)


def words_of_queue(kueue_workload: Json) -> str:
    """Why Kueue has not admitted a Workload; empty once it has, or before it has looked."""
    for kind in ("QuotaReserved", "Admitted"):
        condition = _condition(kueue_workload, kind)
        if condition.get("status") == "False":
            return str(condition.get("message") or condition.get("reason", ""))
    return ""


def _wants_more(autoscaler: Json | None) -> bool:
    limited = _condition(autoscaler or {}, "ScalingLimited")
    return limited.get("status") == "True" and limited.get("reason") == "TooManyReplicas"


def fold_remnants(pods: Sequence[Json]) -> Workload | None:
    """Fold pods whose Deployment is gone: they hold their devices until they are gone too. None when they hold none."""
    held = [pod for pod in pods if _phase(pod) not in FINISHED and labels.GPU_CLASS in _labels(pod)]
    devices = sum(_devices(pod) for pod in held)
    return Workload(gpu_class=_labels(held[0])[labels.GPU_CLASS], devices=devices) if devices else None


def _takings(deployment: Json) -> tuple[Taking, ...]:
    """Read what `render.workload` wrote; words that say nothing to us are passed over."""
    text = str((deployment["metadata"].get("annotations") or {}).get(labels.TAKINGS, ""))
    found = (_TAKING.fullmatch(word) for word in text.split())
    return tuple(Taking(int(one[1]), int(one[2]), int(one[3]), TakingCause(one[4])) for one in found if one is not None)


def _labels(manifest: Json) -> Mapping[str, str]:
    return manifest.get("metadata", {}).get("labels") or {}


def _matches(manifest: Json, selector: Mapping[str, str]) -> bool:
    return bool(selector) and selector.items() <= _labels(manifest).items()


def _phase(pod: Json) -> str:
    return str(pod.get("status", {}).get("phase", "Pending"))


def _newest_replica_set(deployment: Json, replica_sets: Iterable[Json]) -> Json | None:
    """The ReplicaSet of the newest template, by the revision that the Deployment controller stamps on both."""
    revision = (deployment["metadata"].get("annotations") or {}).get(REVISION)
    return next(
        (
            one
            for one in replica_sets
            if revision and (one["metadata"].get("annotations") or {}).get(REVISION) == revision
        ),
        None,
    )


def _template_hash(manifest: Json) -> str:
    """The cluster's own fingerprint of a pod template, on ReplicaSets and their pods."""
    return _labels(manifest).get(TEMPLATE_HASH, "")


def _our_template(manifest: Json) -> str:
    """Our fingerprint of a pod template, on Deployments and their ReplicaSets."""
    return str((manifest["metadata"].get("annotations") or {}).get(labels.TEMPLATE, ""))


def _is_observed(deployment: Json, newest: Json | None) -> bool:
    """By template where both tell: a write that leaves the template alone spoils no figure until it is observed, and a
    paused Deployment that is observed still has the figures of an older one.
    """
    stamped = (_our_template(deployment), _our_template(newest) if newest else "")
    if all(stamped):
        return stamped[0] == stamped[1]
    seen = int(deployment.get("status", {}).get("observedGeneration") or 0)
    return seen >= int(deployment["metadata"].get("generation") or 0)


def _revisions(staying: Sequence[Json], replica_sets: Iterable[Json], newest: Json | None) -> tuple[Revision, ...]:
    """One entry per template that has pods. ReplicaSets that only differ in what others added to the template (a
    restart by kubectl) carry the same fingerprint and stay apart.
    """
    found = []
    for one in replica_sets:
        pods = [pod for pod in staying if _template_hash(pod) == _template_hash(one)]
        if pods:
            gpu_class = _labels(pods[0]).get(labels.GPU_CLASS, "")
            found.append(Revision(_our_template(one), len(pods), sum(map(is_ready, pods)), gpu_class, one is newest))
    return tuple(sorted(found, key=lambda revision: (revision.template, revision.newest)))


def _max_surge(deployment: Json) -> int:
    surge = ((deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}).get("maxSurge", 0)
    return surge if isinstance(surge, int) else 0  # a percentage is not ours


def _held(pods: Iterable[Json], gpu_class: str) -> dict[str, int]:
    """Devices of pods by the class they run on; a pod that names none counts to `gpu_class`."""
    held: dict[str, int] = {}
    for pod in pods:
        name = _labels(pod).get(labels.GPU_CLASS, gpu_class)
        devices = _devices(pod)
        if devices:
            held[name] = held.get(name, 0) + devices
    return held


def _is_unplaced(pod: Json) -> bool:
    return _condition(pod, "PodScheduled").get("status") == "False"


def _is_kept_from_existing(deployment: Json) -> bool:
    return _condition(deployment, "ReplicaFailure").get("status") == "True"


def _restarts(pod: Json) -> int:
    return max((int(status.get("restartCount") or 0) for status in _container_statuses(pod)), default=0)


def _condition(manifest: Json, kind: str) -> Mapping[str, Any]:
    conditions = manifest.get("status", {}).get("conditions") or ()
    return next((condition for condition in conditions if condition.get("type") == kind), {})


def is_ready(pod: Json) -> bool:
    """Whether a pod serves."""
    return _condition(pod, "Ready").get("status") == "True"


def deletion_cost_of(pod: Json) -> int:
    """A pod's deletion cost; 0 where it has none, or one that Kubernetes would not take."""
    text = (pod["metadata"].get("annotations") or {}).get(DELETION_COST, "0")
    return int(text) if text.removeprefix("-").isdecimal() else 0


def _devices_by_node(pods: Iterable[Json]) -> tuple[tuple[str, int], ...]:
    """Devices by node, of pods that have one."""
    counts: dict[str, int] = {}
    for pod in pods:
        node, devices = pod.get("spec", {}).get("nodeName"), _devices(pod)
        if node and devices:
            counts[node] = counts.get(node, 0) + devices
    return tuple(sorted(counts.items()))


def _count_claimed(claims: Iterable[Json], only_class: str) -> tuple[tuple[str, int], ...]:
    """Devices by class. A request with alternatives is answered as `gpu/class`, one without as `gpu`."""
    counts: dict[str, int] = {}
    for claim in claims:
        allocation = (claim.get("status") or {}).get("allocation") or {}
        for result in (allocation.get("devices") or {}).get("results") or ():
            name = str(result.get("request", "")).partition("/")[2] or only_class
            counts[name] = counts.get(name, 0) + 1
    return tuple(sorted(counts.items()))


def _devices(pod: Json) -> int:
    """Devices that a pod or template claims, or its extended resources, summed: it asks for one kind of device only."""
    claimed = _labels(pod).get(labels.DEVICES, "")
    if claimed.isdecimal():
        return int(claimed)
    total = 0
    for container in pod.get("spec", {}).get("containers") or ():
        resources = container.get("resources") or {}
        amounts = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
        total += sum(int(parse_quantity(amount) or 0) for name, amount in amounts.items() if "/" in name)
    return total


def _pending_reason(deployment: Json, pods: Iterable[Json]) -> str:
    """The first of: what keeps pods from existing (quota), from a node, and containers from starting."""
    if _is_kept_from_existing(deployment):
        failure = _condition(deployment, "ReplicaFailure")
        return str(failure.get("message") or failure.get("reason", ""))
    for pod in pods:
        scheduled = _condition(pod, "PodScheduled")
        if scheduled.get("status") == "False":
            return str(scheduled.get("message") or scheduled.get("reason", ""))
    for pod in pods:
        for waiting in _waiting(pod):
            reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
            if reason and reason not in STARTING:
                return f"{reason}: {message}" if message else reason
    return ""


def _waiting(pod: Json) -> Iterator[Json]:
    for status in _container_statuses(pod):
        waiting = (status.get("state") or {}).get("waiting")
        if waiting and not _failed(status):
            yield waiting


def _failed(status: Json) -> bool:
    """Whether a container waits only because it failed: its failure says more than the pause before the next try."""
    ended = (status.get("lastState") or {}).get("terminated") or {}
    waiting = (status.get("state") or {}).get("waiting") or {}
    return waiting.get("reason") == "CrashLoopBackOff" and ended.get("exitCode", 0) != 0


def _container_statuses(pod: Json) -> Iterator[Json]:
    status = pod.get("status", {})
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _autoscaler_problem(autoscaler: Json | None) -> str:
    if autoscaler is None:
        return ""
    for kind in ("AbleToScale", "ScalingActive"):
        condition = _condition(autoscaler, kind)
        if condition.get("status") == "False" and condition.get("reason") != "ScalingDisabled":
            return f"{condition.get('reason', kind)}: {condition.get('message', '')}"
    return ""


def _foreign_scaler(autoscaler: Json | None) -> str:
    """Words of the autoscaler's controller, which stops all of several that drive the same pods."""
    condition = _condition(autoscaler or {}, "ScalingActive")
    return str(condition.get("message", "")) if condition.get("reason") == AMBIGUOUS else ""


def _startup_s(pods: Iterable[Json]) -> int:
    """Seconds from creation to ready of the quickest pod: a node that was full or a later failure make others slow."""
    times = [
        _seconds_between(pod["metadata"].get("creationTimestamp"), _condition(pod, "Ready").get("lastTransitionTime"))
        for pod in pods
        if is_ready(pod)
    ]
    return min((time for time in times if time is not None), default=0)


def _seconds_between(earlier: str | None, later: str | None) -> int | None:
    if not earlier or not later:
        return None
    begin, end = (datetime.datetime.fromisoformat(text) for text in (earlier, later))
    return max(0, round((end - begin).total_seconds()))


def _last_failure(pods: Iterable[Json]) -> Failure | None:
    failures = [failure for pod in pods for failure in _failures(pod)]
    return max(failures, key=lambda failure: (failure.time, failure.pod), default=None)


def _failures(pod: Json) -> Iterator[Failure]:
    for status in _container_statuses(pod):
        for state in (status.get("state") or {}, status.get("lastState") or {}):
            ended = state.get("terminated")
            if ended and ended.get("exitCode", 0) != 0:
                yield Failure(
                    reason=str(ended.get("reason") or "Error")[:128],
                    message=str(ended.get("message") or "")[-2048:],  # the end of a traceback says what happened
                    pod=pod["metadata"]["name"],
                    exit_code=int(ended["exitCode"]),
                    time=str(ended.get("finishedAt") or ""),
                )
