"""Tenant: who may use the fleet, where, and how much of it. Cluster-scoped; the object platform teams write."""

from __future__ import annotations

import enum
from typing import Annotated, Final

from pydantic import ConfigDict, Field

from windlass_operator.api.meta import ApiModel, ByteQuantity, Conditions, DnsLabel, ObjectMeta, Quantity
from windlass_operator.api.patterns import DNS_LABEL_OR_EMPTY, SHA256
from windlass_operator.api.rules import constrained, rule
from windlass_operator.api.v1alpha1.cost import Cost
from windlass_operator.api.v1alpha1.inference_service import Tier

NAME_IS_A_LABEL: Final = rule(
    "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= 63",
    "a name of at most 63 lower-case letters, digits and dashes, because namespaces and metrics carry it as a label",
    found="self.metadata.name",
)
NAMESPACES_ARE_NOT_THE_SYSTEMS: Final = rule(
    "self.all(name, !name.startsWith('kube-'))",
    "namespaces outside kube-*, which belong to the cluster",
    found="self.filter(name, name.startsWith('kube-'))[0]",
)
ACCOUNT_HAS_A_NAMESPACE: Final = rule(
    "self.kind != 'ServiceAccount' || (has(self.namespace) && self.namespace != '')",
    "the namespace of the ServiceAccount",
    found="'none'",
    field=".namespace",
)
ONLY_ACCOUNTS_HAVE_A_NAMESPACE: Final = rule(
    "self.kind == 'ServiceAccount' || !has(self.namespace) || self.namespace == ''",
    "no namespace for a User or Group, which are cluster-wide",
    field=".namespace",
)
# An atomic list, not a map by kind, name and namespace: an absent namespace has no place in a key. Compared as a whole,
# because the API server refuses a schema for the estimated cost of comparing the fields; two roles simply add up.
SUBJECTS_ARE_DISTINCT: Final = rule(
    "self.all(item, self.exists_one(other, other == item))",
    "each subject once",
    found="'one subject twice'",
)
LENDING_IS_WITHIN_NOMINAL: Final = rule(
    "!has(self.lendingLimit) || self.lendingLimit <= self.nominal",
    "at most nominal, because a tenant lends only what is its own",
    found="string(self.lendingLimit) + ' with nominal ' + string(self.nominal)",
    field=".lendingLimit",
)
LIMITS_NEED_A_COHORT: Final = rule(
    "(has(self.cohort) && self.cohort != '') || !has(self.quota) || !has(self.quota.gpus) || "
    "self.quota.gpus.all(gpu, !has(gpu.borrowingLimit) && !has(gpu.lendingLimit))",
    "a cohort, because borrowingLimit and lendingLimit are about its other tenants",
    found="'none'",
    field=".cohort",
)
KEYS_ARE_DISTINCT: Final = rule(
    "self.all(key, self.exists_one(other, other.sha256 == key.sha256))",
    "keys with different digests",
    found="'one digest twice'",
)
SERVICE_RATES_LIMIT_SOMETHING: Final = rule(
    "has(self.requestsPerMinute) || has(self.tokensPerMinute) || has(self.concurrentRequests)",
    "requestsPerMinute, tokensPerMinute or concurrentRequests",
    found="'none of them'",
)

RATES_ARE_OF_OWN_SERVICES: Final = rule(
    "!has(self.rates) || !has(self.rates.services) || "
    "self.rates.services.all(item, self.namespaces.exists_one(name, name == item.namespace))",
    "rates of services in spec.namespaces",
    found="'another namespace'",
    field=".rates",
)

RequestsPerMinute = Annotated[int | None, Field(ge=1, le=10_000_000, description="Requests per minute, of any kind.")]
TokensPerMinute = Annotated[
    int | None,
    Field(
        ge=1,
        le=1_000_000_000,
        description="Tokens per minute, of prompts and answers together: estimated when a request comes, corrected "
        "once its answer is there.",
    ),
]
ConcurrentRequests = Annotated[
    int | None, Field(ge=1, le=1_000_000, description="Requests that may run or stream at once.")
]


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

    model_config = ConfigDict(json_schema_extra=constrained(LENDING_IS_WITHIN_NOMINAL))

    name: Annotated[DnsLabel, Field(description="GPUClass name.")]
    nominal: Annotated[
        int,
        Field(
            ge=0,
            le=100_000,
            description="GPUs that are the tenant's own, over all its namespaces.",
        ),
    ]
    borrowing_limit: Annotated[
        int | None,
        Field(
            ge=0,
            le=100_000,
            description="GPUs beyond nominal that the tenant may borrow from its cohort. Unset: as many as others "
            "lend. To borrow a class without owning any, list it with nominal 0.",
        ),
    ] = None
    lending_limit: Annotated[
        int | None,
        Field(
            ge=0,
            le=100_000,
            description="GPUs of nominal that the cohort may use while the tenant does not. Unset: all of them. They "
            "come back when the tenant wants them.",
        ),
    ] = None


class Quota(ApiModel):
    """Hard bounds; enforced by a ResourceQuota in each namespace and by the planner over all of them."""

    gpus: Annotated[
        list[GpuQuota],
        Field(
            max_length=32,
            description="GPUs per class; a class that is not listed may not be used.",
            json_schema_extra=constrained(list_type="map", keys=("name",)),
        ),
    ] = Field(default_factory=list)
    cpu: Annotated[Quantity | None, Field(description="Sum of CPU requests per namespace.")] = None
    memory: Annotated[ByteQuantity | None, Field(description="Sum of memory requests and limits per namespace.")] = None
    services: Annotated[int | None, Field(ge=0, le=10_000, description="InferenceServices per namespace.")] = None


class Preemption(ApiModel):
    """How much others' claims may take from the tenant."""

    max_replicas_per_hour: Annotated[
        int | None,
        Field(
            ge=1,
            le=10_000,
            description="Replicas of the tenant that may be stopped in any hour, so that lenders get their GPUs back "
            "or services of a higher tier run. Unset: no limit.",
        ),
    ] = None


class Subject(ApiModel):
    """Who gets access to the tenant's namespaces."""

    model_config = ConfigDict(json_schema_extra=constrained(ACCOUNT_HAS_A_NAMESPACE, ONLY_ACCOUNTS_HAVE_A_NAMESPACE))

    kind: Annotated[SubjectKind, Field(description="Kind of account, as in RBAC.")]
    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            description="Name of the account, as the API server knows it.",
        ),
    ]
    namespace: Annotated[
        str,
        Field(
            max_length=63,
            description="Only for ServiceAccount, and required there.",
        ),
    ] = ""
    role: Annotated[Role, Field(description="Viewer reads; Editor, also when unset, writes InferenceServices too.")] = (
        Role.EDITOR
    )


class AccessKey(ApiModel):
    """A key that clients present to the gateway as a bearer token. Only its digest is stored."""

    name: Annotated[DnsLabel, Field(description="Name for people, to tell which key to revoke.")]
    sha256: Annotated[
        str,
        Field(
            min_length=64,
            max_length=64,
            pattern=SHA256,
            description="SHA-256 of the key, in lower-case hex.",
        ),
    ]


class Access(ApiModel):
    """How clients prove that they belong to the tenant."""

    keys: Annotated[
        list[AccessKey],
        Field(
            max_length=32,
            description="Keys that open every service of the tenant; with none, nobody gets in.",
            json_schema_extra=constrained(KEYS_ARE_DISTINCT, list_type="map", keys=("name",)),
        ),
    ] = Field(default_factory=list)


class ServiceRates(ApiModel):
    """Limits of one service, beside those of the tenant."""

    model_config = ConfigDict(json_schema_extra=constrained(SERVICE_RATES_LIMIT_SOMETHING))

    namespace: Annotated[DnsLabel, Field(description="Namespace of the InferenceService.")]
    name: Annotated[DnsLabel, Field(description="Its name.")]
    requests_per_minute: RequestsPerMinute = None
    tokens_per_minute: TokensPerMinute = None
    concurrent_requests: ConcurrentRequests = None


class Rates(ApiModel):
    """How much the tenant's clients may ask of the gateway, over all services; a limit that is not set is none."""

    requests_per_minute: RequestsPerMinute = None
    tokens_per_minute: TokensPerMinute = None
    concurrent_requests: ConcurrentRequests = None
    burst_seconds: Annotated[
        int,
        Field(
            ge=1,
            le=3600,
            description="Seconds' worth of each rate that a tenant which was quiet for as long may use at once.",
        ),
    ] = 60
    services: Annotated[
        list[ServiceRates],
        Field(
            max_length=64,
            description="Limits of single services, beside those above: a request has to be within both.",
            json_schema_extra=constrained(list_type="map", keys=("namespace", "name")),
        ),
    ] = Field(default_factory=list)


class TenantSpec(ApiModel):
    """Desired state."""

    model_config = ConfigDict(json_schema_extra=constrained(LIMITS_NEED_A_COHORT, RATES_ARE_OF_OWN_SERVICES))

    namespaces: Annotated[
        list[DnsLabel],
        Field(
            min_length=1,
            max_length=64,
            description="Namespaces of the tenant; a namespace belongs to one tenant.",
            json_schema_extra=constrained(NAMESPACES_ARE_NOT_THE_SYSTEMS, list_type="set"),
        ),
    ]
    quota: Quota = Quota()
    cohort: Annotated[
        str,
        Field(
            max_length=63,
            pattern=DNS_LABEL_OR_EMPTY,
            description="Tenants with the same cohort lend each other GPUs they do not use. Empty: the tenant shares "
            "with nobody.",
        ),
    ] = ""
    weight: Annotated[
        int,
        Field(
            ge=1,
            le=1000,
            description="How large a part the tenant is due, against other tenants, of what the cohort lends and of a "
            "full gateway.",
        ),
    ] = 1
    local_queue: Annotated[
        str,
        Field(
            max_length=63,
            pattern=DNS_LABEL_OR_EMPTY,
            description="LocalQueue of Kueue, of this name in every namespace of the tenant, in which pods of its "
            "services wait to be admitted, within quota. A service's label kueue.x-k8s.io/queue-name goes first. "
            "Needs Kueue in the cluster with its integration for Deployments.",
        ),
    ] = ""
    preemption: Preemption = Preemption()
    allowed_tiers: Annotated[
        list[Tier],
        Field(
            min_length=1,
            max_length=3,
            description="Tiers that the tenant's services may ask for.",
            json_schema_extra=constrained(list_type="set"),
        ),
    ] = Field(default=[Tier.STANDARD, Tier.BATCH])
    subjects: Annotated[
        list[Subject],
        Field(
            max_length=64,
            description="Who may read or write the tenant's InferenceServices.",
            json_schema_extra=constrained(SUBJECTS_ARE_DISTINCT, list_type="atomic"),
        ),
    ] = Field(default_factory=list)
    access: Access = Access()
    rates: Rates = Rates()
    isolation: Annotated[
        Isolation,
        Field(
            description="Isolated: only the gateway, the metrics scraper and the tenant's own namespaces reach its "
            "pods. Open: no default-deny policy; services stay protected by their own.",
        ),
    ] = Isolation.ISOLATED


class GpuUse(ApiModel):
    """GPUs of one class in use."""

    name: Annotated[str, Field(max_length=63, description="GPUClass name.")]
    nominal: Annotated[int, Field(description="GPUs that are the tenant's own.")]
    used: Annotated[int, Field(description="GPUs its services hold.")]
    borrowed: Annotated[int, Field(description="GPUs among those that are its cohort's.")] = 0
    lent: Annotated[int, Field(description="GPUs of its own that its cohort holds.")] = 0


class TenantStatus(ApiModel):
    """Observed state."""

    observed_generation: Annotated[int, Field(description="metadata.generation this status was computed for.")] = 0
    conditions: Conditions = Field(default_factory=list)
    gpus: Annotated[
        list[GpuUse],
        Field(
            max_length=32,
            description="Use per GPU class.",
            json_schema_extra=constrained(list_type="map", keys=("name",)),
        ),
    ] = Field(default_factory=list)
    services: Annotated[int, Field(description="InferenceServices in the tenant's namespaces.")] = 0
    cost: Cost | None = None


class Tenant(ApiModel):
    """Who may use the fleet, where, and how much of it. Platform teams write it."""

    model_config = ConfigDict(json_schema_extra=constrained(NAME_IS_A_LABEL))

    metadata: ObjectMeta
    spec: TenantSpec
    status: TenantStatus = TenantStatus()
