"""A KubernetesClient without a server: a dictionary with versions, field managers and merge semantics, just far enough.

It imitates what the Cluster's own rules depend on: ownership of `spec.replicas`, defaults, status isolation, conflicts.
The truth about server-side apply is tested on real binaries in tests/e2e.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from typing import Any

from windlass_operator import errors
from windlass_operator.cluster.kubernetes_client import NotFound
from windlass_operator.cluster.kubernetes_kinds import KINDS, Ref, ref_of

Json = dict[str, Any]


class FakeKubernetesClient:
    """Stores objects; `requests` lists every call as `verb Kind/name`."""

    def __init__(self) -> None:
        self.objects: dict[Ref, Json] = {}
        self.requests: list[str] = []
        self.failures: dict[str, deque[Exception]] = {}
        """`verb Kind/name` -> errors of the next such requests."""
        self.pruned_status_fields: set[str] = set()
        """Status fields that the stored CRD does not know."""
        self.overrides: dict[Ref, Json] = {}
        """What a mutating webhook makes of a spec, whatever is applied."""
        self.version = 100
        self._applied: dict[tuple[Ref, str], Json] = {}

    @property
    def writes(self) -> list[str]:
        return [line for line in self.requests if not line.startswith(("get", "list"))]

    async def get(self, ref: Ref) -> Json | None:
        self._request("get", ref)
        return copy.deepcopy(self.objects.get(ref))

    async def get_recent(self, ref: Ref) -> Json | None:
        return await self.get(ref)

    async def list_metadata(self, kind: Any, namespace: str, selector: str) -> list[Json]:
        self._request("list", Ref(kind.kind, "", "*"))
        label, _, value = selector.partition("=")
        found = (stored["metadata"] for ref, stored in self.objects.items() if ref.kind == kind.kind)
        return [copy.deepcopy(one) for one in found if not label or one.get("labels", {}).get(label) == value]

    async def apply(self, manifest: Mapping[str, Any], manager: str = "windlass") -> Json:
        ref = ref_of(manifest)
        self._request("apply" if manager == "windlass" else f"apply as {manager}", ref)
        stored = self.objects.get(ref)
        self._require_version(manifest, stored)
        before = self._applied.get((ref, manager), {})
        merged = merge(stored or {"metadata": {"uid": f"uid-{ref.kind}-{ref.name}", "generation": 0}}, manifest)
        drops_replicas = "replicas" in before.get("spec", {}) and "replicas" not in manifest.get("spec", {})
        if drops_replicas and len(self._managers_of_replicas(ref)) == 1:
            merged["spec"].pop("replicas", None)
        self._applied[ref, manager] = copy.deepcopy(dict(manifest))
        if ref.kind == "Deployment":
            merged["spec"].setdefault("replicas", 1)
        if ref in self.overrides:
            merged = merge(merged, {"spec": self.overrides[ref]})
        return self._store(ref, merged)

    async def patch_status(self, ref: Ref, patch: Mapping[str, Any]) -> Json:
        self._request("status", ref)
        if ref not in self.objects:
            raise NotFound(f"{ref} not found")
        status = apply_merge_patch(self.objects[ref].get("status", {}), patch["status"])
        status = {key: value for key, value in status.items() if key not in self.pruned_status_fields}
        return self._store(ref, {**self.objects[ref], "status": status})

    async def delete(self, ref: Ref, uid: str) -> bool:
        self._request("delete", ref)
        stored = self.objects.get(ref)
        if stored is None:
            return False
        if stored["metadata"]["uid"] != uid:
            raise errors.ApplyConflict(f"{ref}: uid differs")
        del self.objects[ref]
        return True

    def put(self, manifest: Mapping[str, Any]) -> Json:
        """Store an object as if somebody else had written it."""
        ref = ref_of(manifest)
        known = self.objects.get(ref, {"metadata": {"uid": f"uid-{ref.kind}-{ref.name}", "generation": 1}})
        stored = merge(known, manifest)
        return self._store(ref, stored)

    def fail(self, request: str, *failures: Exception) -> None:
        """Let the next requests of this kind fail, `apply Deployment/chat`."""
        self.failures.setdefault(request, deque()).extend(failures)

    def _request(self, verb: str, ref: Ref) -> None:
        line = f"{verb} {ref}"
        self.requests.append(line)
        if self.failures.get(line):
            raise self.failures[line].popleft()

    def _require_version(self, manifest: Mapping[str, Any], stored: Json | None) -> None:
        wanted = manifest["metadata"].get("resourceVersion")
        if wanted and stored and stored["metadata"]["resourceVersion"] != wanted:
            raise errors.ApplyConflict("the object has been modified")

    def _managers_of_replicas(self, ref: Ref) -> set[str]:
        return {
            manager
            for (one, manager), manifest in self._applied.items()
            if one == ref and "replicas" in manifest.get("spec", {})
        }

    def _store(self, ref: Ref, manifest: Json) -> Json:
        self.version += 1
        metadata = {**manifest["metadata"], "resourceVersion": str(self.version)}
        metadata["managedFields"] = [
            {"manager": manager, "operation": "Apply", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
            for manager in sorted(self._managers_of_replicas(ref))
        ]
        self.objects[ref] = {
            **manifest,
            "apiVersion": KINDS[ref.kind].api_version,
            "kind": ref.kind,
            "metadata": metadata,
        }
        return copy.deepcopy(self.objects[ref])


def merge(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> Json:
    """Lay `wanted` over `stored`: mappings merge, everything else is replaced."""
    merged = copy.deepcopy(dict(stored))
    for key, value in wanted.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else copy.deepcopy(value)
    return merged


def apply_merge_patch(stored: Mapping[str, Any], patch: Mapping[str, Any]) -> Json:
    """RFC 7386."""
    result = dict(stored)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            old = result.get(key)
            result[key] = apply_merge_patch(old if isinstance(old, dict) else {}, value)
        else:
            result[key] = value
    return result
