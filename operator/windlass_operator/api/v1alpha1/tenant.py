"""Tenant: who may use the fleet, where, and how much of it. Cluster-scoped; the object platform teams write."""

from __future__ import annotations

import enum
from typing import Annotated

from pydantic import Field

from windlass_operator.api.meta import ApiModel, Condition, DnsLabel, ObjectMeta, Quantity
from windlass_operator.api.v1alpha1.inference_service import Tier


class Isolation(enum.StrEnum):
    """Who may open connections to the tenant's pods."""

    ISOLATED = "Isolated"
    """Only the gateway, the metrics scraper and the tenant's own namespaces."""
    OPEN = "Open"
    """No default-deny policy; services stay protected by their own."""


class SubjectKind(enum.StrEnum):
    """rbac.authorization.k8s.io subject kinds."""

    USER = "User"
    GROUP = "Group"
    SERVICE_ACCOUNT = "ServiceAccount"


class Role(enum.StrEnum):
    """What a subject may do in the tenant's namespaces."""

    VIEWER = "Viewer"
    EDITOR = "Editor"


class GpuQuota(ApiModel):
    """GPUs of one class."""

    name: Annotated[DnsLabel, Field(description="GPUClass name.")]
    nominal: Annotated[int, Field(ge=0, le=100_000, description="GPUs the tenant may hold at once, over all its namespaces.")]


class Quota(ApiModel):
    """Hard bounds; enforced by a ResourceQuota in each namespace and by the planner over all of them."""

    gpus: Annotated[list[GpuQuota], Field(max_length=32)] = Field(default_factory=list)
    cpu: Annotated[Quantity | None, Field(description="Sum of CPU requests per namespace.")] = None
    memory: Annotated[Quantity | None, Field(description="Sum of memory requests and limits per namespace.")] = None
    services: Annotated[int | None, Field(ge=0, le=10_000, description="InferenceServices per namespace.")] = None


class Subject(ApiModel):
    """Who gets access to the tenant's namespaces."""

    kind: SubjectKind
    name: Annotated[str, Field(min_length=1, max_length=253)]
    namespace: Annotated[str, Field(max_length=63, description="Only for ServiceAccount, and required there.")] = ""
    role: Role = Role.EDITOR


class AccessKey(ApiModel):
    """A key that clients present to the gateway as a bearer token. Only its digest is stored."""

    name: DnsLabel
    sha256: Annotated[str, Field(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, in hex.")]


class Access(ApiModel):
    """How clients prove that they belong to the tenant."""

    keys: Annotated[list[AccessKey], Field(max_length=32)] = Field(default_factory=list)


class TenantSpec(ApiModel):
    """Desired state."""

    namespaces: Annotated[list[DnsLabel], Field(min_length=1, max_length=64)]
    quota: Quota = Quota()
    allowed_tiers: Annotated[list[Tier], Field(min_length=1, max_length=3)] = Field(default_factory=lambda: [Tier.STANDARD, Tier.BATCH])
    subjects: Annotated[list[Subject], Field(max_length=64)] = Field(default_factory=list)
    access: Access = Access()
    isolation: Isolation = Isolation.ISOLATED


class GpuUse(ApiModel):
    """GPUs of one class in use."""

    name: Annotated[str, Field(max_length=63)]
    nominal: int
    used: int


class TenantStatus(ApiModel):
    """Observed state."""

    observed_generation: int = 0
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(default_factory=list)
    gpus: Annotated[list[GpuUse], Field(max_length=32)] = Field(default_factory=list)
    services: int = 0


class Tenant(ApiModel):
    """Who may use the fleet, where, and how much of it."""

    metadata: ObjectMeta
    spec: TenantSpec
    status: TenantStatus = TenantStatus()
