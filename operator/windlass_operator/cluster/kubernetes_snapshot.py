"""Keeps the planner's Snapshot in step with the object cache: only what a change touches is parsed and folded again.

Most events change nothing that a plan reads. Then the picture stays the very same object, and whoever keeps look-ups
beside it (`domain.fleet_view`) keeps them.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from windlass_operator.api.v1alpha1.batch_inference import BatchInference
from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.cluster.kubernetes_cache import Cached, ObjectCache
from windlass_operator.cluster.kubernetes_devices import fold_allocation, fold_device_class, fold_slice
from windlass_operator.cluster.kubernetes_fold import (
    add_queue_words,
    fold_node,
    fold_remnants,
    fold_workload,
    is_ours,
    key_of_owner,
)
from windlass_operator.cluster.kubernetes_fold_batch import choose_job, fold_run, fold_workers
from windlass_operator.cluster.kubernetes_kinds import SUPPLY, Ref
from windlass_operator.domain import labels
from windlass_operator.domain.canary_plan import canary_key, canary_of
from windlass_operator.domain.capabilities import Capabilities
from windlass_operator.domain.published import DeviceId, DeviceSlice, Published
from windlass_operator.domain.snapshot import BatchRun, Key, Node, Snapshot, Workload
from windlass_operator.errors import InvalidInput, Problem

log = logging.getLogger(__name__)

T = TypeVar("T", InferenceService, Tenant, GPUClass, BatchInference)
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Table(Generic[K, V]):
    """Values by key. `view` stays as it was given out: the first change after it works on a copy."""

    def __init__(self) -> None:
        self._values: dict[K, V] = {}
        self._given_out = False

    def put(self, key: K, value: V | None) -> None:
        """Set a value, None to remove it; an equal value changes nothing."""
        if self._values.get(key) == value:
            return
        if self._given_out:
            self._values, self._given_out = self._values.copy(), False
        if value is None:
            del self._values[key]
        else:
            self._values[key] = value

    def get(self, key: K, default: V) -> V:
        """Return one value."""
        return self._values.get(key, default)

    def view(self) -> Mapping[K, V]:
        """Return the values of now; the same object until one changes."""
        self._given_out = True
        return self._values


class SnapshotBuilder:
    """Call `touch` for every changed object, `build` for the newest picture."""

    def __init__(self, cache: ObjectCache) -> None:
        self._cache = cache
        self._services = Table[Key, InferenceService]()
        self._tenants = Table[str, Tenant]()
        self._gpu_classes = Table[str, GPUClass]()
        self._nodes = Table[str, Node]()
        self._workloads = Table[Key, Workload]()
        self._slices = Table[str, DeviceSlice]()
        self._device_classes = Table[str, tuple[str, ...]]()
        self._allocated = Table[tuple[str, str], tuple[DeviceId, ...]]()
        self._published = Published({}, {}, {})
        self._canaries = Table[Key, frozenset[Key]]()
        self._batches = Table[Key, BatchInference]()
        self._runs = Table[Key, BatchRun]()
        self._invalid: dict[Key, tuple[Problem, ...]] = {}
        self._parsed: dict[Key, Cached] = {}
        """The version of each object that was parsed last; absent for objects that do not exist."""
        self._queue_words: dict[Key, str] = {}
        """Why Kueue holds pods of a service, as last read."""
        self._touched: set[Key] = set()
        self._built = Snapshot()
        self.capabilities = Capabilities()
        """What the cluster offers, as last discovered."""

    def touch(self, key: Key) -> None:
        """An object that concerns `key` changed."""
        self._touched.add(key)

    def note_queue(self, key: Key, words: str) -> None:
        """Take what Kueue says of a service's gated pods; empty: nothing."""
        if self._queue_words.get(key, "") == words:
            return
        if words:
            self._queue_words[key] = words
        else:
            del self._queue_words[key]
        self.touch(key)

    def touch_object(self, manifest: dict[str, Any]) -> Key | None:
        """An object changed; returns the key it concerns, None when it concerns nothing of ours."""
        key = key_of_owner(manifest)
        if manifest["kind"] in SUPPLY:
            metadata = manifest["metadata"]
            self.touch(Key(manifest["kind"], metadata.get("namespace", ""), metadata["name"]))
        if key is not None:
            self.touch(key)
        return key

    def build(self) -> Snapshot:
        """Return the picture of now; the same object while nothing in it changes."""
        while self._touched:
            self._refresh(self._touched.pop())
        parts = (
            self._services.view(),
            self._tenants.view(),
            self._gpu_classes.view(),
            self._nodes.view(),
            self._workloads.view(),
            self.capabilities,
            self._canaries.view(),
            self._publish(),
            self._batches.view(),
            self._runs.view(),
        )
        built = self._built
        before = (
            built.services,
            built.tenants,
            built.gpu_classes,
            built.nodes,
            built.workloads,
            built.capabilities,
            built.canaries,
            built.published,
            built.batches,
            built.runs,
        )
        if any(new is not old for new, old in zip(parts, before, strict=True)):
            self._built = Snapshot(*parts)
        return self._built

    def _publish(self) -> Published:
        parts, known = (self._slices.view(), self._device_classes.view(), self._allocated.view()), self._published
        before = known.slices, known.device_classes, known.allocated
        if any(new is not old for new, old in zip(parts, before, strict=True)):
            self._published = Published(*parts)
        return self._published

    def require_valid(self, key: Key) -> None:
        """Raise InvalidInput when the stored object of `key` is not one this version can read."""
        problems = self._invalid.get(key)
        if problems:
            raise InvalidInput(problems)

    def _refresh(self, key: Key) -> None:
        cached = self._cache.get(Ref(key.kind, key.namespace, key.name))
        manifest = cached.manifest if cached else None
        if key.kind == "InferenceService":
            self._fold_workloads(key)
        elif key.kind == "BatchInference":
            self._fold_batch(key)
        # Most touches come from pods and children; the object itself is parsed only when it is another one.
        if self._parsed.get(key) is cached:
            return
        if cached is None:
            self._parsed.pop(key, None)
        else:
            self._parsed[key] = cached
        self._invalid.pop(key, None)
        if key.kind == "InferenceService":
            self._services.put(key, self._parse(key, InferenceService, manifest))
        elif key.kind == "Tenant":
            self._tenants.put(key.name, self._parse(key, Tenant, manifest))
        elif key.kind == "GPUClass":
            self._gpu_classes.put(key.name, self._parse(key, GPUClass, manifest))
        elif key.kind == "BatchInference":
            self._batches.put(key, self._parse(key, BatchInference, manifest))
        elif key.kind == "Node":
            self._nodes.put(key.name, fold_node(manifest) if manifest else None)
        elif key.kind == "ResourceSlice":
            self._slices.put(key.name, fold_slice(manifest) if manifest else None)
        elif key.kind == "DeviceClass":
            self._device_classes.put(key.name, fold_device_class(manifest) if manifest else None)
        elif key.kind == "ResourceClaim":
            self._allocated.put((key.namespace, key.name), (fold_allocation(manifest) or None) if manifest else None)

    def _parse(self, key: Key, model: type[T], manifest: dict[str, Any] | None) -> T | None:
        if manifest is None:
            return None
        try:
            return model.model_validate(manifest)
        except ValidationError as exc:
            # The CRD's schema refuses such objects; one can still be stored when the CRD is older than the operator.
            self._invalid[key] = tuple(
                Problem(
                    ".".join(str(part) for part in error["loc"]),
                    repr(error.get("input"))[:80],
                    error["msg"],
                    subject=str(key),
                )
                for error in exc.errors()
            )
            log.warning(
                "Stored object cannot be read. object=%s problems=%d first=%s",
                key,
                len(self._invalid[key]),
                self._invalid[key][0],
            )
            return None

    def _fold_workloads(self, key: Key) -> None:
        """Fold what runs for a service and for each of its canaries, whatever its spec lists by now."""
        found = {canary_key(key, name) for name in self._canaries_of(key)}
        for gone in self._canaries.get(key, frozenset()) - found:
            self._workloads.put(gone, None)
        self._canaries.put(key, frozenset(found) or None)
        for revision in (key, *found):
            self._workloads.put(revision, self._fold_workload(key, canary_of(revision)))

    def _fold_batch(self, key: Key) -> None:
        """Fold the Job of a batch, and all of its pods: those of an earlier Job hold their devices too."""
        instance = f"{labels.BATCH_INSTANCE}{key.name}"
        jobs, pods, claims = (
            [one.manifest for one in self._cache.instances(kind, key.namespace, instance)]
            for kind in ("Job", "Pod", "ResourceClaim")
        )
        job = choose_job(jobs)
        self._runs.put(key, None if job is None else fold_run(job))
        self._workloads.put(key, fold_workers(job, pods, claims))

    def _canaries_of(self, key: Key) -> set[str]:
        parts = (self._cache.instances(kind, key.namespace, key.name) for kind in ("Deployment", "Pod"))
        return {name for objects in parts for one in objects if (name := _canary_label(one))}

    def _fold_workload(self, key: Key, canary: str) -> Workload | None:
        deployments = [
            one
            for one in self._cache.instances("Deployment", key.namespace, key.name)
            if key_of_owner(one.manifest) == key and _canary_label(one) == canary
        ]
        pods = [
            one.manifest
            for one in self._cache.instances("Pod", key.namespace, key.name)
            if _canary_label(one) == canary
        ]
        if not deployments:
            return fold_remnants(pods)
        autoscalers = [
            one
            for one in self._cache.instances("HorizontalPodAutoscaler", key.namespace, key.name)
            if key_of_owner(one.manifest) == key and not canary
        ]
        workload = fold_workload(
            deployments[0].manifest,
            [one.manifest for one in self._cache.instances("ReplicaSet", key.namespace, key.name)],
            pods,
            autoscalers[0].manifest if autoscalers else None,
            [
                one.manifest
                for one in self._cache.instances("ResourceClaim", key.namespace, key.name)
                if _canary_label(one) == canary and is_ours(one.manifest)
            ],
        )
        return add_queue_words(workload, self._queue_words.get(key, ""))


def _canary_label(cached: Cached) -> str:
    return str((cached.manifest["metadata"].get("labels") or {}).get(labels.CANARY, ""))
