"""The second implementation of the Cluster protocol: objects in memory, workloads as processes of this machine.

It stores what the reconcile loop applies exactly as it was rendered and carries out the one thing a single machine
can: the Deployment.
Autoscalers, quotas, network policies and priorities are kept for display and need a cluster to act.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence

from windlass_contract.endpoints import Replica
from windlass_operator.api.loaded import Loaded
from windlass_operator.api.v1alpha1.gpu_class import GPUClass, GPUClassStatus
from windlass_operator.api.v1alpha1.inference_service import InferenceService, InferenceServiceStatus
from windlass_operator.api.v1alpha1.tenant import Tenant, TenantStatus
from windlass_operator.cluster.local_processes import LIVE, Phase
from windlass_operator.cluster.local_replicas import LocalSettings, Replicas, ServiceView
from windlass_operator.cluster.local_workload import read_workload
from windlass_operator.cluster.protocol import Applied, Manifest
from windlass_operator.domain import labels
from windlass_operator.domain.canary_plan import canary_key, service_key
from windlass_operator.domain.snapshot import Key, Node, Snapshot, Workload

Object = InferenceService | Tenant | GPUClass

_NEEDS_A_CLUSTER = frozenset(
    {
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
        "ResourceClaimTemplate",
        "NetworkPolicy",
        "ResourceQuota",
        "LimitRange",
        "PriorityClass",
    }
)


class LocalCluster:
    """Objects, children and processes of one `windlass up`. Used from one event loop."""

    def __init__(self, settings: LocalSettings, node: Node, on_change: Callable[[Key], None]) -> None:
        self._objects: dict[Key, Object] = {}
        self._folders: dict[Key, pathlib.Path] = {}
        self._children: dict[Key, dict[str, Manifest]] = {}
        self._revisions: dict[Key, frozenset[Key]] = {}
        """Keys under which a service and its canaries run."""
        self._nodes = {node.name: node}
        self._on_change = on_change
        self._awake: dict[Key, int] = {}
        self.replicas = Replicas(settings, lambda key: on_change(service_key(key)))

    def load(self, loaded: Loaded) -> None:
        """Make the stored objects equal to what files hold. An object whose spec changed gets a new generation."""
        items: tuple[Object, ...] = (*loaded.gpu_classes, *loaded.tenants, *loaded.services)
        found = {Key(type(item).__name__, item.metadata.namespace, item.metadata.name): item for item in items}
        gone = [key for key in self._objects if key not in found]
        for key, item in found.items():
            folder = loaded.source_of(item).folder.resolve()
            if self._store(key, item) or self._folders.get(key) != folder:
                self._folders[key] = folder
                self._on_change(key)
        for key in gone:
            self._remove(key)

    def snapshot(self) -> Snapshot:
        """Return the whole picture."""
        services = {key: self._as_awake(key, item) for key, item in self.loaded_services().items()}
        revisions = {key: self._revisions.get(key, frozenset({key})) for key in services}
        running = {key: self.replicas.view(key) for keys in revisions.values() for key in keys}
        workloads = {key: self._workload(view) for key, view in running.items() if view is not None}
        return Snapshot(
            services=services,
            tenants={key.name: item for key, item in self._objects.items() if isinstance(item, Tenant)},
            gpu_classes={key.name: item for key, item in self._objects.items() if isinstance(item, GPUClass)},
            nodes=self._nodes,
            workloads=workloads,
        )

    def loaded_services(self) -> dict[Key, InferenceService]:
        """Return the services as their files have them."""
        return {key: item for key, item in self._objects.items() if isinstance(item, InferenceService)}

    def awake(self, key: Key) -> int:
        """Replicas that a service which may sleep is kept awake with; 0 while it sleeps."""
        return self._awake.get(key, 0)

    def keep_awake(self, key: Key, replicas: int) -> None:
        """Run so many replicas of a service whose minimum is 0."""
        self._awake[key] = replicas
        self._on_change(key)

    def _as_awake(self, key: Key, service: InferenceService) -> InferenceService:
        """The service as it is to be planned: one that is awake asks for the replicas it was woken to."""
        scaling, awake = service.spec.scaling, self.awake(key)
        if scaling is None or scaling.min_replicas > 0 or awake == 0:
            return service
        woken = scaling.model_copy(update={"min_replicas": min(awake, scaling.max_replicas)})
        return service.model_copy(update={"spec": service.spec.model_copy(update={"scaling": woken})})

    async def observe(self, key: Key) -> Snapshot:  # noqa: ARG002 - memory is always up to date, for every key
        """Return the newest picture."""
        return self.snapshot()

    async def apply(self, owner: Key, children: Sequence[Manifest]) -> Applied:
        """Store the children and let the processes follow."""
        if owner not in self._objects:
            return Applied()  # removed while its reconcile was under way
        before = self._children.get(owner, {})
        after = {_child_name(child): child for child in children}
        written = tuple(name for name, child in after.items() if before.get(name) != child)
        pruned = tuple(name for name in before if name not in after)
        self._children[owner] = after
        if owner.kind == "InferenceService":
            self._want(owner, children)
        return Applied(written, pruned)

    def _want(self, owner: Key, children: Sequence[Manifest]) -> None:
        """Run what the children ask for: the stable revision and each canary as a workload of its own."""
        folder = self._folders.get(owner, pathlib.Path())
        by_canary: dict[str, list[Manifest]] = {"": []}
        for child in children:
            by_canary.setdefault(child["metadata"]["labels"].get(labels.CANARY, ""), []).append(child)
        revisions = {canary_key(owner, name) if name else owner: found for name, found in by_canary.items()}
        for gone in self._revisions.get(owner, frozenset()) - revisions.keys():
            self.replicas.want(gone, None)
        self._revisions[owner] = frozenset(revisions)
        for key, found in revisions.items():
            self.replicas.want(key, read_workload(found, folder))

    async def report(self, owner: Key, status: Manifest) -> bool:
        """Store a status if it differs."""
        stored = self._objects.get(owner)
        if stored is None:
            return False
        fresh = _parse_status(stored, status)
        if fresh == stored.status:
            return False
        self._objects[owner] = stored.model_copy(update={"status": fresh})
        self._on_change(owner)
        return True

    @property
    def children(self) -> Mapping[Key, Mapping[str, Manifest]]:
        """What was applied: owner -> `kind/name` -> object."""
        return self._children

    def routable(self, service: Key) -> tuple[Replica, ...]:
        """Return the replicas that may take requests."""
        view = self.replicas.view(service)
        return view.routable if view is not None else ()

    def find_hopeless(self) -> str:
        """Return why some object can never become ready as things are; empty while there is hope."""
        for key, item in sorted(self._objects.items()):
            view = self.replicas.view(key)
            if view is not None and view.hopeless and view.last_failure is not None:
                return f"{key}: {view.last_failure.message}"
            stalled = next((condition for condition in item.status.conditions if condition.type == "Stalled"), None)
            if stalled is not None and item.status.observed_generation == item.metadata.generation:
                return f"{key}: {stalled.reason}: {stalled.message}"
        return ""

    def needs_a_cluster(self, owner: Key) -> tuple[str, ...]:
        """Kinds among an owner's children that are stored here and act only in a cluster."""
        return tuple(sorted({child["kind"] for child in self._children.get(owner, {}).values()} & _NEEDS_A_CLUSTER))

    def _store(self, key: Key, item: Object) -> bool:
        stored = self._objects.get(key)
        if stored is not None and stored.spec == item.spec:
            return False
        generation = stored.metadata.generation + 1 if stored is not None else 1
        metadata = item.metadata.model_copy(update={"generation": generation})
        status = stored.status if stored is not None else item.status
        self._objects[key] = item.model_copy(update={"metadata": metadata, "status": status})
        return True

    def _remove(self, key: Key) -> None:
        """Deletion cascades to the children, as owner references make it in a cluster."""
        del self._objects[key]
        self._folders.pop(key, None)
        self._awake.pop(key, None)
        self._children.pop(key, None)
        for revision in self._revisions.pop(key, frozenset({key})):
            self.replicas.want(revision, None)
        self._on_change(key)

    def _workload(self, view: ServiceView) -> Workload:
        live = [item for item in view.replicas if item.phase in LIVE]
        ready = [item for item in live if item.phase is Phase.READY]
        current = sum(item.current for item in live)
        # A replica that waits for its next start counts as a pod in its back-off does.
        backing_off = max(0, view.wanted.replicas - current) if view.last_failure is not None else 0
        return Workload(
            replicas=len(live) + backing_off,
            ready=len(ready),
            updated=current + backing_off,
            updated_ready=sum(item.current for item in ready),
            wanted=view.wanted.replicas,
            gpu_class=view.gpu_class,
            devices=max(view.wanted.replicas, len(live)) * view.devices if view.gpu_class else 0,
            devices_per_pod=view.devices if view.gpu_class else 0,
            unplaced=int(view.waiting_for_gpu),
            pending_reason="too few GPUs of this machine are free" if view.waiting_for_gpu else "",
            last_failure=view.last_failure,
        )


def _child_name(child: Manifest) -> str:
    return f"{child['kind']}/{child['metadata']['name']}"


def _parse_status(stored: Object, status: Manifest) -> InferenceServiceStatus | TenantStatus | GPUClassStatus:
    return type(stored.status).model_validate(status)
