"""The Cluster on Kubernetes: observe from a watched cache, apply server-side the narrowest field set, report on change.

Rules that keep other writers and people safe:
- The only field manager is `windlass`; what a plan leaves out (replicas under an autoscaler) is never claimed.
- Every child carries the owner's uid as a label; prune deletes only objects with that label, by uid, and never those
  marked `windlass.dev/prune: never`. Those get no owner reference either, so the garbage collector spares them too.
- Owner references do not block the owner's deletion: `blockOwnerDeletion` needs a permission on finalizers that
  hardened clusters refuse, and a service should disappear even while a child lingers.
- Every write goes through `Leadership.writing`, so a leader that lost its lease stops, in the middle of a request too.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from windlass_operator import errors
from windlass_operator.cluster.kubernetes_cache import (
    Cached,
    ObjectCache,
    has_another_controller,
    owner_uid_of,
    replicas_managers,
)
from windlass_operator.cluster.kubernetes_client import MERGE, KubernetesClient, NotFound
from windlass_operator.cluster.kubernetes_compare import applied_hash, differences, hash_manifest, merge_patch
from windlass_operator.cluster.kubernetes_events import EventRecorder, notes_of_status
from windlass_operator.cluster.kubernetes_fold import (
    deletion_cost_of,
    is_gated,
    is_ready,
    parse_owner,
    render_owner,
    words_of_queue,
)
from windlass_operator.cluster.kubernetes_kinds import (
    ACTIVATOR_MANAGER,
    APPLIED_HASH,
    CHILDREN,
    DELETION_COST,
    FIELD_MANAGER,
    FLEET_OWNER_UID,
    HANDOVER_MANAGER,
    KINDS,
    OPTIONAL,
    OWNER,
    OWNER_UID,
    ApiKind,
    Ref,
    ref_of,
)
from windlass_operator.cluster.kubernetes_lease import Leadership
from windlass_operator.cluster.kubernetes_snapshot import SnapshotBuilder
from windlass_operator.cluster.protocol import Applied, Manifest
from windlass_operator.domain import labels
from windlass_operator.domain.capabilities import Capabilities
from windlass_operator.domain.revision import fingerprint
from windlass_operator.domain.snapshot import Key, Snapshot

log = logging.getLogger(__name__)

PRUNED_KINDS: Final = frozenset(kind.kind for kind in CHILDREN + OPTIONAL)
WATCHED_KINDS: Final = frozenset(kind.kind for kind in CHILDREN)
PRUNED_FIRST: Final = frozenset({"HorizontalPodAutoscaler", "ScaledObject", "Job"})
"""Deleted before anything is applied: a running autoscaler would fight the replica count we are about to claim, and an
earlier Job's workers hold what the next one's need."""
QUEUED_UID: Final = "kueue.x-k8s.io/job-uid"
"""Label of a Workload of Kueue: uid of the pod that it stands for."""
OF_EACH_REVISION: Final = frozenset({"InferencePool"})
"""Optional kinds of which a service has one for every canary beside its own."""
WriteCounter = Callable[[str, str], None]
"""Called with kind and verb after every write."""


@dataclass(frozen=True, slots=True)
class _Settled:
    """What the server made of an apply: differences that it insists on are not drift."""

    hash: str
    differences: frozenset[str]


class KubernetesCluster:
    """Implements cluster.protocol.Cluster. One instance per process; its methods run on one event loop."""

    def __init__(
        self,
        client: KubernetesClient,
        leadership: Leadership,
        events: EventRecorder,
        count_write: WriteCounter,
    ) -> None:
        self.cache = ObjectCache()
        self._client = client
        self._leadership = leadership
        self._events = events
        self._count_write = count_write
        self._snapshots = SnapshotBuilder(self.cache)
        self._settled: dict[Ref, _Settled] = {}
        self._absent: set[Ref] = set()
        """Objects of optional kinds that are known not to be there."""
        self._filling: tuple[str, ...] = ("all kinds",)

    # -- feeding -------------------------------------------------------------------------------------------------------

    def absorb(self, event_type: str | None, manifest: Mapping[str, Any]) -> Key | None:
        """Take one watch event; return the key whose picture changed, None for echoes and strangers."""
        ref = self.cache.absorb_event(event_type, manifest)
        if ref is None:
            return None
        if event_type == "DELETED":
            self._settled.pop(ref, None)
        return self._snapshots.touch_object(dict(manifest))

    def absorb_repair(self, ref: Ref, manifest: Mapping[str, Any] | None) -> Key | None:
        """Take what an audit read as the watch missed it, None for an object that is gone; return the key concerned."""
        known = self.cache.get(ref)
        if manifest is None:
            if known is None or self.cache.remove(ref) is None:
                return None
            return self._snapshots.touch_object(known.manifest)
        self.cache.absorb_reply(manifest)
        return self._snapshots.touch_object(dict(manifest))

    def set_filling(self, waiting_for: tuple[str, ...]) -> None:
        """Name the kinds whose first listing is not complete; empty opens `observe`."""
        self._filling = waiting_for

    @property
    def filling(self) -> tuple[str, ...]:
        """Kinds whose first listing is not complete."""
        return self._filling

    def set_capabilities(self, found: Capabilities) -> bool:
        """Take what discovery found; return whether that is news."""
        if found == self._snapshots.capabilities:
            return False
        self._snapshots.capabilities = found
        return True

    def picture(self) -> Snapshot:
        """Return what is known now, complete or not; for deciding whom to wake."""
        return self._snapshots.build()

    # -- the protocol --------------------------------------------------------------------------------------------------

    async def observe(self, key: Key) -> Snapshot:
        """See Cluster.observe. Raises InvalidInput too, when this version cannot read the stored object of `key`."""
        if self._filling:
            raise errors.ClusterUnavailable(
                f"the first listing is not complete: waiting for {', '.join(self._filling)}"
            )
        if key.kind == "InferenceService" and self._snapshots.capabilities.kueue:
            await self._ask_queue(key)
        snapshot = self._snapshots.build()
        self._snapshots.require_valid(key)
        return snapshot

    async def _ask_queue(self, key: Key) -> None:
        """Read why Kueue holds the pod of a service that waits longest. Its Workloads are not watched: few services
        have one, and the reconciler looks again while a pod waits.
        """
        gated = [one.manifest for one in self.cache.instances("Pod", key.namespace, key.name) if is_gated(one.manifest)]
        words = ""
        if gated:
            pod = min(gated, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]))
            words = words_of_queue(await self._find_queued(key.namespace, pod["metadata"]["uid"]))
        self._snapshots.note_queue(key, words)

    async def _find_queued(self, namespace: str, pod_uid: str) -> Mapping[str, Any]:
        """The Workload that Kueue keeps for a pod; empty where there is none yet, or it may not be read."""
        path = f"/apis/{self._snapshots.capabilities.kueue}/namespaces/{namespace}/workloads"
        try:
            listed = await self._client.request("GET", path, params={"labelSelector": f"{QUEUED_UID}={pod_uid}"})
        except (NotFound, errors.ClusterUnavailable) as exc:
            log.warning("What Kueue says cannot be read. namespace=%s error=%s", namespace, exc)
            return {}
        found: Mapping[str, Any] = next(iter(listed.get("items") or ()), {})
        return found

    async def apply(self, owner: Key, children: Sequence[Manifest]) -> Applied:
        """See Cluster.apply. An owner that is gone or leaving gets nothing; the garbage collector takes its
        children.
        """
        cached = self.cache.get(Ref(owner.kind, owner.namespace, owner.name))
        if cached is None or cached.deleting:
            return Applied()
        return await self._apply_all(owner, cached.uid, [stamp(child, owner, cached.manifest) for child in children])

    async def apply_fleet(self, children: Sequence[Manifest]) -> Applied:
        """Apply objects that belong to the installation as a whole. Same rules and errors as `apply`."""
        return await self._apply_all(None, FLEET_OWNER_UID, [stamp_fleet(child) for child in children])

    async def scale(self, owner: Key, replicas: int) -> None:
        """Set the number of replicas of a service's Deployment, as an autoscaler does. Raises RetryLater."""
        ref = Ref("Deployment", owner.namespace, owner.name)
        live = await self._client.get(ref)
        if live is None or live["spec"].get("replicas") == replicas:
            return
        # The version makes the server refuse with a conflict if an autoscaler wrote since.
        metadata = {key: live["metadata"][key] for key in ("uid", "resourceVersion")}
        await self._patch(ref, {"metadata": metadata, "spec": {"replicas": replicas}}, "scale", ACTIVATOR_MANAGER)

    def deletion_costs(self, owner: Key) -> dict[str, int]:
        """Return the deletion costs of a service's ready pods; 0 where none is set, as Kubernetes counts."""
        found = [one.manifest for one in self.cache.instances("Pod", owner.namespace, owner.name) if not one.deleting]
        return {pod["metadata"]["name"]: deletion_cost_of(pod) for pod in found if is_ready(pod)}

    async def set_deletion_cost(self, owner: Key, pod: str, cost: int) -> None:
        """Write one pod's deletion cost. A pod that is gone is no error. Raises RetryLater."""
        body = {"metadata": {"annotations": {DELETION_COST: str(cost)}}}
        with contextlib.suppress(NotFound):
            await self._patch(Ref("Pod", owner.namespace, pod), body, "deletion-cost", FIELD_MANAGER)

    async def _patch(self, ref: Ref, body: Mapping[str, Any], verb: str, manager: str) -> None:
        async with self._leadership.writing():
            reply = await self._client.request(
                "PATCH",
                KINDS[ref.kind].path(ref.namespace, ref.name),
                body,
                content_type=MERGE,
                params={"fieldManager": manager},
            )
        self._count_write(ref.kind, verb)
        self._take_reply(reply)

    async def report(self, owner: Key, status: Manifest) -> bool:
        """See Cluster.report."""
        ref = Ref(owner.kind, owner.namespace, owner.name)
        cached = self.cache.get(ref)
        if cached is None or cached.deleting:
            return False
        stored = cached.manifest.get("status") or {}
        patch = merge_patch(stored, status)
        status_ref = Ref(owner.kind, owner.namespace, f"{owner.name}/status")
        if not patch or self._is_settled(status_ref, hash_manifest(status), _flatten(patch)):
            return False
        try:
            async with self._leadership.writing():
                reply = await self._client.patch_status(ref, {"metadata": {"uid": cached.uid}, "status": patch})
        except NotFound:
            return False
        except errors.ApplyRejected as exc:
            raise errors.RetryLater(f"status of {owner} refused: {exc}", after_s=60.0) from exc
        self._count_write(owner.kind, "status")
        self._take_reply(reply)
        # An older CRD prunes status fields it does not know; what stays different after a write is no reason for the
        # next one.
        self._settled[status_ref] = _Settled(
            hash_manifest(status), _flatten(merge_patch(reply.get("status") or {}, status))
        )
        for note in notes_of_status(stored, status):
            self._events.post(cached.manifest, note)
        return True

    # -- applying ------------------------------------------------------------------------------------------------------

    async def _apply_all(self, owner: Key | None, owner_uid: str, wanted: Sequence[Manifest]) -> Applied:
        refs = {ref_of(child) for child in wanted}
        if owner is not None and owner.kind == "InferenceService":
            await self._read_optional(owner, owner_uid, refs)
        pruned = [ref for ref in self._unwanted(owner_uid, refs) if ref.kind in PRUNED_FIRST and await self._prune(ref)]
        written: list[str] = []
        problems: dict[str, str] = {}
        for child in wanted:
            ref = ref_of(child)
            name = _name(ref, owner)
            try:
                if await self._apply_one(ref, child, owner_uid):
                    written.append(name)
            except errors.ApplyRejected as exc:
                problems[name] = f"{exc.reason}: {exc}"
        if not problems:
            # What a refused object would have replaced may still be in use, so nothing is deleted until all of them are
            # in place.
            pruned += [ref for ref in self._unwanted(owner_uid, refs) if await self._prune(ref)]
        if owner is not None:
            self._snapshots.touch(owner)
        return Applied(tuple(written), tuple(_name(ref, owner) for ref in pruned), problems)

    async def _read_optional(self, owner: Key, owner_uid: str, wanted: set[Ref]) -> None:
        """Learn what is there of kinds that are not watched. Raises RetryLater while one of them leaves.

        One that is not wanted is looked for once, and then until it is gone: two scalers must never meet.
        """
        for ref in self._optional_refs(owner, owner_uid, wanted):
            if ref not in wanted and ref in self._absent:
                continue
            live = await self._client.get_recent(ref)
            if live is None:
                self.cache.remove(ref)
                self._absent.add(ref)
                continue
            self._absent.discard(ref)
            self.cache.absorb_reply(live)
            leaves = "deletionTimestamp" in live["metadata"] and owner_uid_of(live) == owner_uid
            if leaves and ref.kind in PRUNED_FIRST:
                raise errors.RetryLater(f"{ref} is being deleted; another scaler takes over once it is gone", 2.0)

    def _optional_refs(self, owner: Key, owner_uid: str, wanted: set[Ref]) -> list[Ref]:
        """Where objects of optional kinds may be: at the service's name, and at the name of each of its Deployments."""
        deployments = {ref.name for ref, _ in self.cache.children_of(owner_uid) if ref.kind == "Deployment"}
        names = sorted({owner.name, *deployments})
        kinds = self._served_kinds()
        likely = [
            Ref(kind.kind, owner.namespace, name)
            for kind in kinds
            for name in (names if kind.kind in OF_EACH_REVISION else [owner.name])
        ]
        served = {kind.kind for kind in kinds}
        return likely + sorted(ref for ref in wanted if ref.kind in served and ref not in likely)

    def _served_kinds(self) -> list[ApiKind]:
        """Optional kinds that the cluster was found to serve."""
        found = self._snapshots.capabilities
        served = {
            "ScaledObject": found.has_keda,
            "HTTPRoute": found.has_http_routes,
            "InferencePool": found.has_inference_pools,
            "VirtualService": found.has_virtual_services,
        }
        return [kind for kind in OPTIONAL if served[kind.kind]]

    async def _apply_one(self, ref: Ref, wanted: Manifest, owner_uid: str) -> bool:
        cached = self.cache.get(ref)
        if cached is not None and cached.deleting:
            raise errors.RetryLater(f"{ref} is being deleted; it is created anew once it is gone", after_s=2.0)
        if cached is not None and self._is_in_sync(ref, wanted, cached):
            return False
        live = cached.manifest if cached is not None else await self._client.get_recent(ref)
        if live is not None:
            self._require_ours(ref, live, wanted, owner_uid)
        if live is not None and ref.kind == "Deployment" and "replicas" not in wanted["spec"]:
            await self._hand_over_replicas(ref)
        async with self._leadership.writing():
            reply = await self._client.apply(wanted)
        self._count_write(ref.kind, "apply")
        self._take_reply(reply)
        self._settled[ref] = _Settled(applied_hash(wanted), frozenset(differences(wanted, reply)))
        if self._settled[ref].differences:
            log.info(
                "The cluster keeps its own values. object=%s differences=%s",
                ref,
                "; ".join(sorted(self._settled[ref].differences)),
            )
        return True

    def _is_in_sync(self, ref: Ref, wanted: Manifest, cached: Cached) -> bool:
        if applied_hash(cached.manifest) != applied_hash(wanted):
            return False
        found = frozenset(differences(wanted, cached.manifest))
        if found and not self._is_settled(ref, applied_hash(wanted), found):
            log.info("Drift found. object=%s differences=%s", ref, "; ".join(sorted(found)))
            return False
        return True

    def _is_settled(self, ref: Ref, wanted_hash: str, found: frozenset[str]) -> bool:
        settled = self._settled.get(ref)
        return settled is not None and settled.hash == wanted_hash and found <= settled.differences

    def _require_ours(self, ref: Ref, live: Mapping[str, Any], wanted: Manifest, owner_uid: str) -> None:
        """Raise ApplyRejected when the object belongs to someone else. A tenant's namespaces may exist before it."""
        if not labels.is_prunable(wanted):
            return
        metadata = live["metadata"]
        if owner_uid in {reference.get("uid") for reference in metadata.get("ownerReferences") or ()}:
            return  # ours, whoever took our label away
        manager = (metadata.get("labels") or {}).get(labels.MANAGED_BY)
        if manager != labels.MANAGER:
            raise errors.ApplyRejected(
                f"{ref} exists and is not managed by Windlass (its label {labels.MANAGED_BY} is {manager!r}); "
                "rename one of the two",
                reason="NameTaken",
            )
        other = parse_owner((metadata.get("annotations") or {}).get(OWNER, ""))
        if owner_uid_of(live) in ("", owner_uid) or other is None:
            return
        holder = self.cache.get(Ref(other.kind, other.namespace, other.name))
        if holder is not None and holder.uid == owner_uid_of(live):
            raise errors.ApplyRejected(f"{ref} belongs to {other}; rename one of the two", "NameTaken")

    async def _hand_over_replicas(self, ref: Ref) -> None:
        """Keep the replica count when we stop claiming it.

        A field that its only owner drops is removed, and the server then defaults it to 1: a running fleet would shrink
        to one pod until the autoscaler acts. A second manager that claims the present value keeps it; the autoscaler
        takes it over from there.
        """
        live = await self._client.get(ref)
        if live is None or replicas_managers(live) != {FIELD_MANAGER}:
            return
        kind, metadata = KINDS[ref.kind], live["metadata"]
        claim = {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            # The version makes the server refuse with a conflict if someone scaled since we read the number.
            "metadata": {"name": ref.name, "namespace": ref.namespace, "resourceVersion": metadata["resourceVersion"]},
            "spec": {"replicas": live["spec"]["replicas"]},
        }
        async with self._leadership.writing():
            reply = await self._client.apply(claim, manager=HANDOVER_MANAGER)
        self._take_reply(reply)
        self._count_write(ref.kind, "handover")
        log.info("Replica count handed over. object=%s/%s replicas=%d", ref.namespace, ref, live["spec"]["replicas"])

    def _unwanted(self, owner_uid: str, wanted: set[Ref]) -> list[Ref]:
        return [
            ref
            for ref, cached in self.cache.children_of(owner_uid)
            if ref not in wanted
            and ref.kind in PRUNED_KINDS
            and labels.is_prunable(cached.manifest)
            and not cached.deleting
            and not has_another_controller(cached.manifest, owner_uid)
            and not self._may_make_pods(ref, cached)
        ]

    def _may_make_pods(self, ref: Ref, cached: Cached) -> bool:
        """Whether a ReplicaSet names a claim template: pods of an older revision that die are made anew from it."""
        if ref.kind != "ResourceClaimTemplate":
            return False
        instance = (cached.manifest["metadata"].get("labels") or {}).get(labels.INSTANCE, "")
        sets = self.cache.instances("ReplicaSet", ref.namespace, instance)
        named = ((one.manifest["metadata"].get("labels") or {}).get(labels.CLAIM_TEMPLATE) for one in sets)
        return ref.name in named

    async def _prune(self, ref: Ref) -> bool:
        cached = self.cache.get(ref)
        if cached is None:
            return False
        try:
            async with self._leadership.writing():
                deleted = await self._client.delete(ref, cached.uid)
        except errors.ApplyConflict:
            return False  # another object took the name; its watch event tells
        self.cache.remove(ref, cached.uid)
        self._settled.pop(ref, None)
        self._snapshots.touch_object(cached.manifest)
        self._count_write(ref.kind, "delete")
        if ref.kind in PRUNED_FIRST - WATCHED_KINDS and await self._client.get(ref) is not None:
            raise errors.RetryLater(f"{ref} is being deleted; another scaler takes over once it is gone", 2.0)
        return deleted

    def _take_reply(self, reply: Mapping[str, Any]) -> None:
        self.cache.absorb_reply(reply)
        self._snapshots.touch_object(dict(reply))


def _name(ref: Ref, owner: Key | None) -> str:
    """`kind/name`; with the namespace between them where the owner's does not tell it."""
    outside = ref.namespace and (owner is None or owner.namespace != ref.namespace)
    return f"{ref.kind}/{ref.namespace}/{ref.name}" if outside else str(ref)


def stamp(child: Manifest, owner: Key, owner_manifest: Mapping[str, Any]) -> Manifest:
    """Return a copy of a rendered child with the owner's marks and the hash of it all."""
    marked = _copy(child)
    uid = str(owner_manifest["metadata"].get("uid", ""))
    _mark(marked, uid, render_owner(owner))
    if marked["kind"] == "Deployment":
        marked["metadata"]["annotations"][labels.TEMPLATE] = fingerprint(marked["spec"]["template"])
    same_scope = not owner.namespace or marked["metadata"].get("namespace") == owner.namespace
    if labels.is_prunable(marked) and same_scope:
        marked["metadata"]["ownerReferences"] = [
            {
                "apiVersion": owner_manifest["apiVersion"],
                "kind": owner.kind,
                "name": owner.name,
                "uid": uid,
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ]
    return _with_hash(marked)


def stamp_fleet(child: Manifest) -> Manifest:
    """Return a copy of an object of the installation, marked without an owner: it outlives every Tenant and service."""
    marked = _copy(child)
    _mark(marked, FLEET_OWNER_UID, "")
    return _with_hash(marked)


def _copy(manifest: Manifest) -> Manifest:
    """Copy as deep as marks go; what lies below is shared and never edited."""
    return {**manifest, "metadata": dict(manifest["metadata"])}


def _mark(manifest: Manifest, owner_uid: str, owner: str) -> None:
    metadata = manifest["metadata"]
    metadata["labels"] = {**(metadata.get("labels") or {}), labels.MANAGED_BY: labels.MANAGER, OWNER_UID: owner_uid}
    if owner:
        metadata["annotations"] = {**(metadata.get("annotations") or {}), OWNER: owner}


def _with_hash(manifest: Manifest) -> Manifest:
    digest = hash_manifest(manifest)
    manifest["metadata"]["annotations"] = {**(manifest["metadata"].get("annotations") or {}), APPLIED_HASH: digest}
    return manifest


def _flatten(patch: Mapping[str, Any], path: str = "") -> frozenset[str]:
    """Return the leaves of a patch as text, to compare two patches by inclusion."""
    leaves: set[str] = set()
    for key, value in patch.items():
        where = f"{path}.{key}" if path else key
        leaves |= _flatten(value, where) if isinstance(value, Mapping) and value else {f"{where}={value!r}"}
    return frozenset(leaves)
