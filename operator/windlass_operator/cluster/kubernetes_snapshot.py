"""Keeps the planner's Snapshot in step with the object cache: only what a change touches is parsed and folded again."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Any, TypeVar

from pydantic import ValidationError

from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.cluster.kubernetes_cache import Cached, ObjectCache
from windlass_operator.cluster.kubernetes_fold import fold_node, fold_workload, key_of_owner
from windlass_operator.cluster.kubernetes_kinds import Ref
from windlass_operator.domain.snapshot import Key, Node, Snapshot, Workload
from windlass_operator.errors import InvalidInput, Problem

log = logging.getLogger(__name__)

T = TypeVar("T", InferenceService, Tenant, GPUClass)
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SnapshotBuilder:
    """Call `touch` for every changed object, `build` for the newest picture."""

    def __init__(self, cache: ObjectCache) -> None:
        self._cache = cache
        self._services: dict[Key, InferenceService] = {}
        self._tenants: dict[str, Tenant] = {}
        self._gpu_classes: dict[str, GPUClass] = {}
        self._nodes: dict[str, Node] = {}
        self._workloads: dict[Key, Workload] = {}
        self._invalid: dict[Key, tuple[Problem, ...]] = {}
        self._parsed: dict[Key, Cached] = {}
        """The version of each object that was parsed last; absent for objects that do not exist."""
        self._touched: set[Key] = set()
        self._built: Snapshot | None = None

    def touch(self, key: Key) -> None:
        """An object that concerns `key` changed."""
        self._touched.add(key)
        self._built = None

    def touch_object(self, manifest: dict[str, Any]) -> Key | None:
        """An object changed; returns the key it concerns, None when it concerns nothing of ours."""
        key = key_of_owner(manifest)
        if key is not None:
            self.touch(key)
        return key

    def build(self) -> Snapshot:
        """Return the picture of now; the same object while nothing changes."""
        if self._built is None:
            for key in self._touched:
                self._refresh(key)
            self._touched.clear()
            self._built = Snapshot(
                dict(self._services),
                dict(self._tenants),
                dict(self._gpu_classes),
                dict(self._nodes),
                dict(self._workloads),
            )
        return self._built

    def require_valid(self, key: Key) -> None:
        """Raise InvalidInput when the stored object of `key` is not one this version can read."""
        problems = self._invalid.get(key)
        if problems:
            raise InvalidInput(problems)

    def _refresh(self, key: Key) -> None:
        cached = self._cache.get(Ref(key.kind, key.namespace, key.name))
        manifest = cached.manifest if cached else None
        if key.kind == "InferenceService":
            _put(self._workloads, key, self._fold_workload(key))
        # Most touches come from pods and children; the object itself is parsed only when it is another one.
        if self._parsed.get(key) is cached:
            return
        _put(self._parsed, key, cached)
        self._invalid.pop(key, None)
        if key.kind == "InferenceService":
            _put(self._services, key, self._parse(key, InferenceService, manifest))
        elif key.kind == "Tenant":
            _put(self._tenants, key.name, self._parse(key, Tenant, manifest))
        elif key.kind == "GPUClass":
            _put(self._gpu_classes, key.name, self._parse(key, GPUClass, manifest))
        elif key.kind == "Node":
            _put(self._nodes, key.name, fold_node(manifest) if manifest else None)

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

    def _fold_workload(self, key: Key) -> Workload | None:
        deployments = [
            one
            for one in self._cache.instances("Deployment", key.namespace, key.name)
            if key_of_owner(one.manifest) == key
        ]
        if not deployments:
            return None
        autoscalers = [
            one
            for one in self._cache.instances("HorizontalPodAutoscaler", key.namespace, key.name)
            if key_of_owner(one.manifest) == key
        ]
        return fold_workload(
            deployments[0].manifest,
            [one.manifest for one in self._cache.instances("ReplicaSet", key.namespace, key.name)],
            [one.manifest for one in self._cache.instances("Pod", key.namespace, key.name)],
            autoscalers[0].manifest if autoscalers else None,
        )


def _put(values: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        values.pop(key, None)
    else:
        values[key] = value
