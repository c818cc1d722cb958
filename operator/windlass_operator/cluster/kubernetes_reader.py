"""Read a cluster once and change nothing in it: the picture an operator has, as far as the reader's rights go.

What may not be read everywhere is read in the namespaces in question; what may not be read there either is named. The
only requests that are no reads are dry runs, which the server answers as if it had carried them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from windlass_operator import errors
from windlass_operator.cluster.kubernetes_cache import ObjectCache
from windlass_operator.cluster.kubernetes_client import APPLY, Forbidden, KubernetesClient, NotFound
from windlass_operator.cluster.kubernetes_discovery import Discovery
from windlass_operator.cluster.kubernetes_kinds import DEVICES, KINDS, OWNERS, WATCHED, ApiKind, Ref, selector_of
from windlass_operator.cluster.kubernetes_snapshot import SnapshotBuilder
from windlass_operator.cluster.protocol import Manifest
from windlass_operator.domain import labels
from windlass_operator.domain.capabilities import Capabilities
from windlass_operator.domain.snapshot import Key, Snapshot

OPERATORS: Final = f"{labels.PART_OF}={labels.PRODUCT},{labels.COMPONENT}=operator"
_DEPLOYMENTS: Final = KINDS["Deployment"]


@dataclass(frozen=True, slots=True)
class Gap:
    """A kind that the reader may not read."""

    kind: str
    namespaces: tuple[str, ...] = ()
    """Where it was read all the same; empty: nowhere."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What was read."""

    snapshot: Snapshot
    cache: ObjectCache
    gaps: tuple[Gap, ...] = ()
    environment: Mapping[str, str] | None = None
    """Variables of the operator that runs there; None when they cannot be read."""

    def reads(self, kind: str, namespace: str = "") -> bool:
        """Whether a kind was read, everywhere or in one namespace."""
        gap = next((gap for gap in self.gaps if gap.kind == kind), None)
        return gap is None or namespace in gap.namespaces

    def live(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """One object; None when it does not exist or was not read."""
        found = self.cache.get(Ref(kind, namespace, name))
        return None if found is None else found.manifest

    def children(self, owner: Key) -> dict[Ref, Manifest]:
        """What the operator made for an owner."""
        found = self.live(owner.kind, owner.namespace, owner.name)
        uid = str(found["metadata"].get("uid", "")) if found is not None else ""
        return {ref: cached.manifest for ref, cached in self.cache.children_of(uid)} if uid else {}


async def read_picture(client: KubernetesClient, namespaces: Iterable[str], operator_namespace: str) -> Picture:
    """Read everything that a plan depends on. Raises ClusterUnavailable without a server that knows our kinds."""
    wanted = tuple(sorted(set(namespaces)))
    cache, gaps = ObjectCache(), []
    builder = SnapshotBuilder(cache)
    for kind in WATCHED:
        gap = await _read_kind(client, kind, wanted, cache, builder)
        gaps += [] if gap is None else [gap]
    snapshot = builder.build()
    if {"Node", "Pod", "Deployment"} & {gap.kind for gap in gaps}:
        snapshot = replace(snapshot, nodes=None)  # a device that looks free could be held where we do not see it
    if {kind.kind for kind in DEVICES} & {gap.kind for gap in gaps}:
        snapshot = replace(snapshot, published=None)
    snapshot = replace(snapshot, capabilities=await _look(client, wanted))
    return Picture(snapshot, cache, tuple(gaps), await _read_environment(client, operator_namespace))


async def _read_kind(
    client: KubernetesClient, kind: ApiKind, namespaces: tuple[str, ...], cache: ObjectCache, builder: SnapshotBuilder
) -> Gap | None:
    try:
        await _take(client, kind, "", cache, builder)
    except NotFound as exc:
        if kind in OWNERS:
            raise errors.ClusterUnavailable(
                f"{client.access.server}: expected the CRD {kind.plural}.{kind.group}, found none; "
                "kubectl apply --server-side -f crds/"
            ) from exc
    except Forbidden:
        if not kind.namespaced:
            return Gap(kind.kind)
        return Gap(kind.kind, tuple([one for one in namespaces if await _may_take(client, kind, one, cache, builder)]))
    return None


async def _may_take(
    client: KubernetesClient, kind: ApiKind, namespace: str, cache: ObjectCache, builder: SnapshotBuilder
) -> bool:
    try:
        await _take(client, kind, namespace, cache, builder)
    except Forbidden:
        return False
    return True


async def _take(
    client: KubernetesClient, kind: ApiKind, namespace: str, cache: ObjectCache, builder: SnapshotBuilder
) -> None:
    async for item in client.list_items(kind.path(namespace), selector_of(kind.kind)):
        manifest = {**item, "apiVersion": kind.api_version, "kind": kind.kind}  # lists leave both out
        cache.absorb_reply(manifest)
        builder.touch_object(manifest)


async def _look(client: KubernetesClient, namespaces: tuple[str, ...]) -> Capabilities:
    """Discover what the operator would. Without the right to its dry runs nothing is known."""
    where = namespaces[0] if namespaces else "default"
    for kind in (_DEPLOYMENTS, KINDS["HorizontalPodAutoscaler"]):
        attributes = {"verb": "create", "group": kind.group, "resource": kind.plural, "namespace": where}
        if not await may(client, attributes):
            return Capabilities()
    try:
        return await Discovery(client, where).look()
    except errors.WindlassError:
        return Capabilities()


async def may(client: KubernetesClient, attributes: Mapping[str, str]) -> bool:
    """Ask the server whether we may do something."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": dict(attributes)},
    }
    answer = await client.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    return bool((answer.get("status") or {}).get("allowed"))


async def _read_environment(client: KubernetesClient, namespace: str) -> Mapping[str, str] | None:
    try:
        found = [item async for item in client.list_items(_DEPLOYMENTS.path(namespace), OPERATORS)]
    except (Forbidden, NotFound):
        return None
    if not found:
        return None
    containers = found[0]["spec"]["template"]["spec"]["containers"]
    return {item["name"]: item["value"] for one in containers for item in one.get("env") or () if "value" in item}


async def dry_run(client: KubernetesClient, manifest: Manifest, manager: str) -> Manifest:
    """Return the object as the server would store it. Raises ApplyRejected with the server's words."""
    kind, metadata = KINDS[manifest["kind"]], manifest["metadata"]
    return await client.request(
        "PATCH",
        kind.path(metadata.get("namespace", ""), metadata["name"]),
        manifest,
        content_type=APPLY,
        params={"dryRun": "All", "fieldManager": manager, "force": "true", "fieldValidation": "Strict"},
    )
