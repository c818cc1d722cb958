"""The Kubernetes kinds we read or write: their paths, scope and what part of them we watch. Data only, no client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from windlass_operator.api.meta import API_VERSION
from windlass_operator.domain import labels

FIELD_MANAGER: Final = "windlass"
"""Field manager of every server-side apply. Changing it would orphan the fields of every object in every cluster."""
HANDOVER_MANAGER: Final = "windlass-handover"
"""Second field manager: keeps `spec.replicas` alive for the moment between our ownership and the autoscaler's."""

OWNER_UID: Final = "windlass.dev/owner-uid"
"""Label on every child: uid of the object that wanted it. Prune goes by it."""
OWNER: Final = "windlass.dev/owner"
"""Annotation on every child: `Kind/namespace/name`, for people and for children that carry no owner reference."""
ACTIVATOR_MANAGER: Final = "windlass-activator"
"""Field manager of the number of replicas that a sleeping service is woken to, as an autoscaler's would be."""
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
APPLIED_HASH: Final = "windlass.dev/applied-hash"

FLEET_OWNER_UID: Final = "fleet"
"""Stands in for the owner's uid on objects that belong to the installation, such as PriorityClasses."""


@dataclass(frozen=True, slots=True)
class ApiKind:
    """One kind of one API version."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        """API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """Version within the group."""
        return self.api_version.rpartition("/")[2]

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the URL path of the collection or, with a name, of one object."""
        parts = ["apis" if self.group else "api", self.api_version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/" + "/".join(parts)


class Ref(NamedTuple):
    """Identity of one object in the cluster. Cluster-scoped objects have an empty namespace."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


def ref_of(manifest: Mapping[str, Any]) -> Ref:
    """Return the identity of an object of a known kind; raises KeyError for others."""
    kind, metadata = KINDS[manifest["kind"]], manifest["metadata"]
    return Ref(kind.kind, metadata.get("namespace", "") if kind.namespaced else "", metadata["name"])


OWNERS: Final = (
    ApiKind(API_VERSION, "InferenceService", "inferenceservices"),
    ApiKind(API_VERSION, "Tenant", "tenants", namespaced=False),
    ApiKind(API_VERSION, "GPUClass", "gpuclasses", namespaced=False),
    ApiKind(API_VERSION, "BatchInference", "batchinferences"),
)
"""Our own kinds: watched whole."""

CHILDREN: Final = (
    ApiKind("apps/v1", "Deployment", "deployments"),
    ApiKind("batch/v1", "Job", "jobs"),
    ApiKind("v1", "Service", "services"),
    ApiKind("v1", "ConfigMap", "configmaps"),
    ApiKind("v1", "ServiceAccount", "serviceaccounts"),
    ApiKind("resource.k8s.io/v1", "ResourceClaimTemplate", "resourceclaimtemplates"),
    ApiKind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
    ApiKind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ApiKind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    ApiKind("v1", "ResourceQuota", "resourcequotas"),
    ApiKind("v1", "LimitRange", "limitranges"),
    ApiKind("rbac.authorization.k8s.io/v1", "Role", "roles"),
    ApiKind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings"),
    ApiKind("v1", "Namespace", "namespaces", namespaced=False),
    ApiKind("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", namespaced=False),
)
"""What we apply and prune: watched by the managed-by label."""

OPTIONAL: Final = (
    ApiKind("keda.sh/v1alpha1", "ScaledObject", "scaledobjects"),
    ApiKind("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes"),
    ApiKind("inference.networking.k8s.io/v1", "InferencePool", "inferencepools"),
    ApiKind("networking.istio.io/v1", "VirtualService", "virtualservices"),
)
"""What we apply and prune where the cluster serves it. Not watched: kopf would look for kinds that are not there, so
each is read whenever its owner is reconciled."""

WORKLOAD_PARTS: Final = (
    ApiKind("apps/v1", "ReplicaSet", "replicasets"),
    ApiKind("v1", "Pod", "pods"),
)
"""What Kubernetes makes from our Deployments: watched by the managed-by label of the templates, never written."""

NODES: Final = (ApiKind("v1", "Node", "nodes", namespaced=False),)
"""Machines: watched whole, never written."""

DEVICES: Final = (
    ApiKind("resource.k8s.io/v1", "ResourceSlice", "resourceslices", namespaced=False),
    ApiKind("resource.k8s.io/v1", "DeviceClass", "deviceclasses", namespaced=False),
    ApiKind("resource.k8s.io/v1", "ResourceClaim", "resourceclaims"),
)
"""What drivers offer for claims, and what claims were given, whoever made them: watched whole, never written."""
SUPPLY: Final = frozenset(kind.kind for kind in NODES + DEVICES)
"""Kinds that concern no object of ours, but what there is for all."""

WATCHED: Final = OWNERS + CHILDREN + WORKLOAD_PARTS + NODES + DEVICES
KINDS: Final = {kind.kind: kind for kind in WATCHED + OPTIONAL}
LABELLED: Final = frozenset(kind.kind for kind in CHILDREN + WORKLOAD_PARTS)
"""Kinds of which only objects with our managed-by label are watched."""

LEASE: Final = ApiKind("coordination.k8s.io/v1", "Lease", "leases")
EVENT: Final = ApiKind("events.k8s.io/v1", "Event", "events")


def selector_of(kind: str) -> str:
    """Return the label selector under which a kind is watched; empty for all objects."""
    return f"{labels.MANAGED_BY}={labels.MANAGER}" if kind in LABELLED else ""
