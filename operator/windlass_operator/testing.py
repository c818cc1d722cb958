"""Shipped fakes for tests of this package and of code that builds on it.

`InMemoryCluster` keeps the promises of cluster.protocol.Cluster without a cluster: objects in dictionaries, every write
recorded, failures on demand. Nothing runs in it; a test says what runs by setting workloads.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from windlass_operator.api.v1alpha1.batch_inference import BatchInference
from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.cluster.protocol import Applied, Manifest
from windlass_operator.domain import labels
from windlass_operator.domain.batch_workers import batch_key
from windlass_operator.domain.snapshot import BatchRun, Key, Node, Snapshot, Workload

T = TypeVar("T", InferenceService, Tenant, GPUClass, BatchInference)
ObjectId = tuple[str, str, str]
"""Kind, namespace, name."""


@dataclass
class InMemoryCluster:
    """A Cluster whose world is what the test put into it."""

    services: dict[Key, InferenceService] = field(default_factory=dict)
    tenants: dict[str, Tenant] = field(default_factory=dict)
    gpu_classes: dict[str, GPUClass] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    workloads: dict[Key, Workload] = field(default_factory=dict)
    batches: dict[Key, BatchInference] = field(default_factory=dict)
    runs: dict[Key, BatchRun] = field(default_factory=dict)
    """What the Jobs of batches tell."""
    children: dict[ObjectId, tuple[Key, Manifest]] = field(default_factory=dict)
    """What was applied, with its owner."""
    statuses: dict[Key, Manifest] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    """One line per write, oldest first: `apply Deployment/chat`, `status InferenceService a/b`."""
    refused: dict[str, str] = field(default_factory=dict)
    """`kind/name` -> reason: objects the cluster refuses, as a quota or a policy would."""
    failures: deque[Exception] = field(default_factory=deque)
    """Raised one by one by the next writes, before they do anything."""

    def put(self, *objects: InferenceService | Tenant | GPUClass | BatchInference | Node) -> None:
        """Create or replace objects."""
        for item in objects:
            if isinstance(item, InferenceService):
                self.services[service_key(item)] = item
            elif isinstance(item, BatchInference):
                self.batches[batch_key(item)] = item
            elif isinstance(item, Tenant):
                self.tenants[item.metadata.name] = item
            elif isinstance(item, GPUClass):
                self.gpu_classes[item.metadata.name] = item
            else:
                self.nodes[item.name] = item

    def delete(self, key: Key) -> None:
        """Delete one of our objects and, as the garbage collector does, the children it owns."""
        self.services.pop(key, None)
        self.batches.pop(key, None)
        self.runs.pop(key, None)
        self.workloads.pop(key, None)
        self.statuses.pop(key, None)
        if key.kind == "Tenant":
            self.tenants.pop(key.name, None)
        if key.kind == "GPUClass":
            self.gpu_classes.pop(key.name, None)
        for object_id, (owner, manifest) in list(self.children.items()):
            if owner == key and labels.is_prunable(manifest):
                del self.children[object_id]

    def children_of(self, owner: Key) -> dict[ObjectId, Manifest]:
        """Return what an owner has now."""
        return {object_id: manifest for object_id, (holder, manifest) in self.children.items() if holder == owner}

    async def observe(self, key: Key) -> Snapshot:  # noqa: ARG002  (signature of the protocol)
        """See Cluster.observe."""
        return Snapshot(
            dict(self.services),
            dict(self.tenants),
            dict(self.gpu_classes),
            dict(self.nodes),
            dict(self.workloads),
            batches=dict(self.batches),
            runs=dict(self.runs),
        )

    async def apply(self, owner: Key, children: Sequence[Manifest]) -> Applied:
        """See Cluster.apply."""
        if not self._exists(owner):
            return Applied()
        written, problems = [], {}
        wanted = {object_id_of(child): child for child in children}
        for object_id, child in wanted.items():
            name = f"{object_id[0]}/{object_id[2]}"
            if self.children.get(object_id, (None, None)) == (owner, child):
                continue
            if name in self.refused:
                problems[name] = self.refused[name]
                continue
            self._write(f"apply {name}")
            self.children[object_id] = (owner, copy.deepcopy(child))
            written.append(name)
        pruned = () if problems else tuple(self._prune(owner, wanted))
        return Applied(tuple(written), pruned, problems)

    async def report(self, owner: Key, status: Manifest) -> bool:
        """See Cluster.report."""
        if not self._exists(owner) or self.statuses.get(owner) == status:
            return False
        self._write(f"status {owner}")
        self.statuses[owner] = copy.deepcopy(status)
        self._store_status(owner, status)
        return True

    def _exists(self, owner: Key) -> bool:
        if owner.kind == "InferenceService":
            return owner in self.services
        if owner.kind == "BatchInference":
            return owner in self.batches
        return owner.name in (self.tenants if owner.kind == "Tenant" else self.gpu_classes)

    def _write(self, line: str) -> None:
        if self.failures:
            raise self.failures.popleft()
        self.writes.append(line)

    def _prune(self, owner: Key, wanted: Iterable[ObjectId]) -> Iterable[str]:
        keep = set(wanted)
        for object_id, manifest in self.children_of(owner).items():
            if object_id not in keep and labels.is_prunable(manifest):
                self._write(f"delete {object_id[0]}/{object_id[2]}")
                del self.children[object_id]
                yield f"{object_id[0]}/{object_id[2]}"

    def _store_status(self, owner: Key, status: Manifest) -> None:
        update: dict[str, Any] = {"status": status}
        if owner.kind == "InferenceService":
            self.services[owner] = _with_status(self.services[owner], update)
        elif owner.kind == "BatchInference":
            self.batches[owner] = _with_status(self.batches[owner], update)
        elif owner.kind == "Tenant":
            self.tenants[owner.name] = _with_status(self.tenants[owner.name], update)
        else:
            self.gpu_classes[owner.name] = _with_status(self.gpu_classes[owner.name], update)


def object_id_of(manifest: Manifest) -> ObjectId:
    """Return the identity of a rendered object."""
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata["name"]


def service_key(service: InferenceService) -> Key:
    """Return the key of a service."""
    return Key("InferenceService", service.metadata.namespace, service.metadata.name)


def _with_status(item: T, update: dict[str, Any]) -> T:
    return type(item).model_validate({**item.model_dump(by_alias=True), **update})
