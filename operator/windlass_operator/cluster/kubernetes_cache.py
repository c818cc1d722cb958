"""What the cluster holds, as far as we watch it. Fed by watch events and by the replies to our own writes.

Replies enter at once: the echo of a write on the watch may lag behind the next reconcile, which would otherwise write
again. An older version never replaces a newer one, whichever way it came.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from windlass_operator.cluster.kubernetes_kinds import OPTIONAL, OWNER_UID, WATCHED, Ref, ref_of
from windlass_operator.cluster.kubernetes_trim import Pool, trim
from windlass_operator.domain import labels

Json = dict[str, Any]
X = TypeVar("X", bound=Hashable)

DELETED: Final = "DELETED"
REMEMBERED_DELETIONS: Final = 4096


@dataclass(frozen=True, slots=True)
class Cached:
    """One object without what we do not use."""

    manifest: Json
    version: str
    watched_version: str = ""
    """Newest version that came by the watch; empty while only a reply brought it. Tells whether the watch is alive."""
    replicas_managers: frozenset[str] = frozenset()
    """Field managers of `spec.replicas`; metadata.managedFields itself is not kept."""

    @property
    def uid(self) -> str:
        """metadata.uid."""
        return str(self.manifest["metadata"].get("uid", ""))

    @property
    def deleting(self) -> bool:
        """Whether the object only waits for its finalizers."""
        return "deletionTimestamp" in self.manifest["metadata"]


class ObjectCache:
    """All watched objects by identity, and children by their owner's uid."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Ref, Cached]] = {kind.kind: {} for kind in WATCHED + OPTIONAL}
        self._children: dict[str, set[Ref]] = defaultdict(set)
        self._instances: dict[tuple[str, str, str], set[Ref]] = defaultdict(set)
        self._pool = Pool()
        self._deleted_uids: dict[str, None] = {}  # newest last; tells a deletion from an object the watch missed

    def get(self, ref: Ref) -> Cached | None:
        """Return one object; None when it is not there."""
        return self._objects[ref.kind].get(ref)

    def all_of(self, kind: str) -> Mapping[Ref, Cached]:
        """Return all objects of a kind; a live view, not to be kept across an await."""
        return self._objects[kind]

    def instances(self, kind: str, namespace: str, instance: str) -> tuple[Cached, ...]:
        """Return the objects of a kind that carry an instance label, by name: the pods of one service."""
        objects = self._objects[kind]
        return tuple(objects[ref] for ref in sorted(self._instances.get((kind, namespace, instance), ())))

    def children_of(self, owner_uid: str) -> tuple[tuple[Ref, Cached], ...]:
        """Return the objects that carry the owner's uid label, by identity."""
        return tuple((ref, self._objects[ref.kind][ref]) for ref in sorted(self._children.get(owner_uid, ())))

    def absorb_event(self, event_type: str | None, manifest: Mapping[str, Any]) -> Ref | None:
        """Take one watch event; return the identity of what changed.

        None when nothing that we use did: an echo of our own write, an outdated event, a heartbeat.
        """
        ref = ref_of(manifest)
        if event_type == DELETED:
            return self.remove(ref, str(manifest["metadata"].get("uid", "")))
        version = str(manifest["metadata"].get("resourceVersion", ""))
        known = self.get(ref)
        if known is not None and not is_older(known.version, version):
            if is_older(known.watched_version, version):
                self._objects[ref.kind][ref] = Cached(known.manifest, known.version, version, known.replicas_managers)
            return None
        self._store(ref, manifest, version, watched_version=version)
        return (
            None if known is not None and same_content(known.manifest, self._objects[ref.kind][ref].manifest) else ref
        )

    def absorb_reply(self, manifest: Mapping[str, Any]) -> None:
        """Take the server's answer to a write or a read of ours."""
        ref = ref_of(manifest)
        version = str(manifest["metadata"].get("resourceVersion", ""))
        known = self.get(ref)
        if known is None or is_older(known.version, version):
            self._store(ref, manifest, version, watched_version=known.watched_version if known else "")

    def remove(self, ref: Ref, uid: str = "") -> Ref | None:
        """Forget an object; with a uid only if it is still that one. Returns the identity if something was removed."""
        if uid:
            self._remember_deletion(uid)
        known = self.get(ref)
        if known is None or (uid and known.uid and known.uid != uid):
            return None
        self._unindex(ref, known)
        del self._objects[ref.kind][ref]
        return ref

    def was_deleted(self, uid: str) -> bool:
        """Whether an object of that uid was seen to go lately."""
        return uid in self._deleted_uids

    def check(self) -> None:
        """Assert that the indexes agree with the objects; for tests."""
        by_owner: dict[str, set[Ref]] = defaultdict(set)
        for objects in self._objects.values():
            for ref, cached in objects.items():
                by_owner[owner_uid_of(cached.manifest)].add(ref)
                instance = instance_of(cached.manifest)
                assert not instance or ref in self._instances[ref.kind, ref.namespace, instance], (
                    f"{ref} is missing from its instance"
                )
        by_owner.pop("", None)
        assert dict(by_owner) == {uid: refs for uid, refs in self._children.items() if refs}, "the owner index is wrong"

    def _store(self, ref: Ref, manifest: Mapping[str, Any], version: str, watched_version: str) -> None:
        known = self.get(ref)
        if known is not None:
            self._unindex(ref, known)
        shared = self._pool.share(trim(manifest), known.manifest if known is not None else None)
        cached = Cached(shared, version, watched_version, replicas_managers(manifest))
        self._objects[ref.kind][ref] = cached
        owner, instance = owner_uid_of(cached.manifest), instance_of(cached.manifest)
        if owner:
            self._children[owner].add(ref)
        if instance:
            self._instances[ref.kind, ref.namespace, instance].add(ref)

    def _unindex(self, ref: Ref, cached: Cached) -> None:
        _discard(self._children, owner_uid_of(cached.manifest), ref)
        _discard(self._instances, (ref.kind, ref.namespace, instance_of(cached.manifest)), ref)

    def _remember_deletion(self, uid: str) -> None:
        self._deleted_uids[uid] = None
        if len(self._deleted_uids) > REMEMBERED_DELETIONS:
            del self._deleted_uids[next(iter(self._deleted_uids))]


def owner_uid_of(manifest: Mapping[str, Any]) -> str:
    """Return the owner-uid label; empty for objects that are not our children."""
    return str((manifest["metadata"].get("labels") or {}).get(OWNER_UID, ""))


def has_another_controller(manifest: Mapping[str, Any], owner_uid: str) -> bool:
    """Whether somebody else made the object and copied our labels to it, as KEDA does for its autoscalers."""
    references = manifest["metadata"].get("ownerReferences") or ()
    return any(reference.get("controller") and reference.get("uid") != owner_uid for reference in references)


def instance_of(manifest: Mapping[str, Any]) -> str:
    """Return the instance label: the service whose selector matches the object; empty without one."""
    return str((manifest["metadata"].get("labels") or {}).get(labels.INSTANCE, ""))


def same_content(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two versions of an object differ in nothing but their version."""

    def plain(manifest: Mapping[str, Any]) -> Json:
        metadata = {key: value for key, value in manifest["metadata"].items() if key != "resourceVersion"}
        return {**manifest, "metadata": metadata}

    return plain(one) == plain(other)


def _discard(index: dict[X, set[Ref]], key: X, ref: Ref) -> None:
    refs = index.get(key)
    if refs is not None:
        refs.discard(ref)
        if not refs:
            del index[key]


def is_older(known: str, other: str) -> bool:
    """Whether version `known` precedes `other`. Versions are decimal numbers; anything else differs or is equal."""
    if known.isdecimal() and other.isdecimal():
        return int(known) < int(other)
    return known != other


def replicas_managers(manifest: Mapping[str, Any]) -> frozenset[str]:
    """Return who owns `spec.replicas`, from metadata.managedFields."""
    return frozenset(
        entry.get("manager", "")
        for entry in _managed_fields(manifest)
        if "f:replicas" in (entry.get("fieldsV1", {}).get("f:spec") or {})
    )


def _managed_fields(manifest: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return manifest["metadata"].get("managedFields") or ()
