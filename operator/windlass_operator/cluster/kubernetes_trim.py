"""Keep of an object what we use, and keep equal parts of objects once. Pure.

Children and pods are most of the operator's memory, and most of their changes (a counter in a status, a heartbeat)
concern nobody here: what is dropped is neither stored nor compared, so it wakes no reconcile. What is dropped here must
be read nowhere: `kubernetes_fold` and `kubernetes_compare` are the readers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from windlass_operator.cluster.kubernetes_kinds import CHILDREN, DELETION_COST, OWNER
from windlass_operator.domain import labels

Json = dict[str, Any]

LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
"""The object once more, as text: written by `kubectl apply`, read by nobody else."""
REVISION: Final = "deployment.kubernetes.io/revision"
CONDITIONS: Final[Mapping[str, frozenset[str]]] = {
    "Deployment": frozenset({"ReplicaFailure", "Progressing"}),
    "Job": frozenset({"Complete", "Failed"}),
    "HorizontalPodAutoscaler": frozenset({"AbleToScale", "ScalingActive", "ScalingLimited"}),
    "Node": frozenset({"Ready"}),
    "Pod": frozenset({"Ready", "PodScheduled"}),
}
"""Conditions that are read, by kind; of their times only when a pod became ready."""
IDENTITY: Final = ("name", "namespace", "uid", "resourceVersion", "generation", "labels", "deletionTimestamp")
CREATED: Final = "creationTimestamp"
CLAIM_RESULT: Final = ("request", "driver", "pool", "device", "adminAccess")
SLICE: Final = ("driver", "pool", "nodeName", "devices")
JOB_STATUS: Final = ("startTime", "completionTime", "succeeded", "failedIndexes", "completedIndexes")
CONTAINER_STATUS: Final = ("state", "lastState", "restartCount")
POOL_SIZE: Final = 8192
"""Different parts a pool remembers, before it begins anew: about 3 MB."""


def trim(manifest: Mapping[str, Any]) -> Json:
    """Return the part of an object that we use."""
    return _TRIMMERS.get(manifest["kind"], _trim_owner)(manifest)


def _trim_owner(manifest: Mapping[str, Any]) -> Json:
    return {**manifest, "metadata": _metadata(manifest)}


def _trim_child(manifest: Mapping[str, Any]) -> Json:
    """Everything we may have applied; of the status only what a fold reads."""
    trimmed = {**manifest, "metadata": _metadata(manifest)}
    status = trimmed.pop("status", None) or {}
    kept: Json = {key: status[key] for key in ("observedGeneration",) if key in status}
    conditions = _conditions(manifest["kind"], status)
    if conditions:
        kept["conditions"] = conditions
    if manifest["kind"] in CONDITIONS:
        trimmed["status"] = kept
    return trimmed


def _trim_job(manifest: Mapping[str, Any]) -> Json:
    """As any child; a Job's status tells how far a batch is."""
    status = manifest.get("status") or {}
    kept: Json = {key: status[key] for key in JOB_STATUS if key in status}
    times = {item.get("type"): item.get("lastTransitionTime") for item in status.get("conditions") or ()}
    dated = [{**item, "lastTransitionTime": times[item["type"]]} for item in _conditions("Job", status)]
    return {**_trim_child(manifest), "status": {**kept, "conditions": dated}}


def _trim_replica_set(manifest: Mapping[str, Any]) -> Json:
    return {
        **_head(manifest, REVISION, labels.TEMPLATE),
        "status": {"availableReplicas": (manifest.get("status") or {}).get("availableReplicas")},
    }


def _trim_pod(manifest: Mapping[str, Any]) -> Json:
    spec, status = manifest.get("spec") or {}, manifest.get("status") or {}
    created = {key: manifest["metadata"][key] for key in (CREATED,) if key in manifest["metadata"]}
    head = _head(manifest, DELETION_COST)
    return {
        **head,
        "metadata": {**head["metadata"], **created},
        "spec": {
            "containers": [{"resources": item.get("resources") or {}} for item in spec.get("containers") or ()],
            **({"nodeName": spec["nodeName"]} if spec.get("nodeName") else {}),
        },
        "status": {
            "phase": status.get("phase", "Pending"),
            "conditions": _dated(_conditions("Pod", status), status),
            **{
                key: [{part: item[part] for part in CONTAINER_STATUS if part in item} for item in status[key]]
                for key in ("initContainerStatuses", "containerStatuses")
                if status.get(key)
            },
        },
    }


def _trim_claim(manifest: Mapping[str, Any]) -> Json:
    allocation = (manifest.get("status") or {}).get("allocation") or {}
    results = (allocation.get("devices") or {}).get("results") or ()
    given = [{key: item[key] for key in CLAIM_RESULT if key in item} for item in results if "request" in item]
    return {**_head(manifest), "status": {"allocation": {"devices": {"results": given}}} if given else {}}


def _trim_slice(manifest: Mapping[str, Any]) -> Json:
    spec = manifest.get("spec") or {}
    return {**_head(manifest), "spec": {key: spec[key] for key in SLICE if key in spec}}


def _trim_device_class(manifest: Mapping[str, Any]) -> Json:
    return {**_head(manifest), "spec": {"selectors": (manifest.get("spec") or {}).get("selectors") or []}}


def _trim_node(manifest: Mapping[str, Any]) -> Json:
    status = manifest.get("status") or {}
    return {
        **_head(manifest),
        "spec": {"unschedulable": bool((manifest.get("spec") or {}).get("unschedulable"))},
        "status": {
            # Only extended resources: CPU and memory of a node play no part in a plan.
            "allocatable": {name: amount for name, amount in (status.get("allocatable") or {}).items() if "/" in name},
            "conditions": _conditions("Node", status),
        },
    }


def _head(manifest: Mapping[str, Any], *annotations: str) -> Json:
    """What tells an object and its owner, with a few annotations."""
    metadata = manifest["metadata"]
    kept = {key: metadata[key] for key in IDENTITY if key in metadata}
    given = metadata.get("annotations") or {}
    told = {key: given[key] for key in (OWNER, *annotations) if key in given}
    if told:
        kept["annotations"] = told
    return {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "metadata": kept}


def _metadata(manifest: Mapping[str, Any]) -> Json:
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "managedFields"}
    if LAST_APPLIED in (metadata.get("annotations") or {}):
        metadata["annotations"] = {key: text for key, text in metadata["annotations"].items() if key != LAST_APPLIED}
    return metadata


def _conditions(kind: str, status: Mapping[str, Any]) -> list[Json]:
    wanted = CONDITIONS.get(kind, frozenset())
    found: Iterable[Mapping[str, Any]] = status.get("conditions") or ()
    return [
        {key: condition[key] for key in ("type", "status", "reason", "message") if key in condition}
        for condition in found
        if condition.get("type") in wanted and not _is_progress(condition)
    ]


def _dated(kept: list[Json], status: Mapping[str, Any]) -> list[Json]:
    """With the time at which the pod became ready; nobody reads since when it is not."""
    times = {item.get("type"): item.get("lastTransitionTime") for item in status.get("conditions") or ()}
    return [
        {**item, "lastTransitionTime": times["Ready"]}
        if (item.get("type"), item.get("status")) == ("Ready", "True") and times.get("Ready")
        else item
        for item in kept
    ]


def _is_progress(condition: Mapping[str, Any]) -> bool:
    """Progress is told by pods; only its end is news, and its words change with every pod."""
    return condition.get("type") == "Progressing" and condition.get("status") != "False"


_TRIMMERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Json]]] = {
    **{kind.kind: _trim_child for kind in CHILDREN},
    "Job": _trim_job,
    "ReplicaSet": _trim_replica_set,
    "Pod": _trim_pod,
    "ResourceClaim": _trim_claim,
    "ResourceSlice": _trim_slice,
    "DeviceClass": _trim_device_class,
    "Node": _trim_node,
}


class Pool:
    """Stores equal parts of JSON values once: a thousand Deployments differ in a few names.

    Values that went through a pool must never be edited, for others may hold the same parts.
    """

    def __init__(self) -> None:
        self._parts: dict[tuple[Any, ...], Any] = {}

    def share(self, manifest: Json, earlier: Mapping[str, Any] | None = None) -> Json:
        """Return an equal object made of parts that equal objects share; `earlier` is its last version, shared before.

        Most updates change one part of an object, and comparing is far cheaper than looking for parts to share.
        """
        if len(self._parts) > POOL_SIZE:
            self._parts.clear()
        known = earlier or {}
        return {
            key: known[key] if key in known and known[key] == value else self._share(value)
            for key, value in manifest.items()
        }

    def _share(self, value: Any) -> Any:
        # What a part holds is shared already, so its own identity is which objects it holds, and they live as long as
        # the part does. Numbers may have several identities; then less is shared.
        if isinstance(value, str):
            return sys.intern(value)
        if isinstance(value, dict):
            held = {sys.intern(key): self._share(item) for key, item in value.items()}
            return self._parts.setdefault((dict, *held, *map(id, held.values())), held)
        if isinstance(value, list):
            items = [self._share(item) for item in value]
            return self._parts.setdefault((list, *map(id, items)), items)
        return value
