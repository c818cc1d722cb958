"""Children of a Tenant: its namespaces, and in each of them quota, defaults, roles and isolation.

A Namespace holds the tenant's own objects, so it carries the annotation that keeps shells from owning or deleting it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from windlass_operator.api.meta import GROUP
from windlass_operator.api.v1alpha1.tenant import Isolation, Role, Subject, SubjectKind
from windlass_operator.domain import labels
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import TenantPlan
from windlass_operator.domain.quantity import canonical_quantity
from windlass_operator.render.manifest import Manifest, build_manifest, product_labels
from windlass_operator.render.network_policy import render_isolation

_READ: Final = ["get", "list", "watch"]
_WRITE: Final = ["create", "update", "patch", "delete"]
_RBAC: Final = "rbac.authorization.k8s.io"
_OWN: Final = ["inferenceservices", "batchinferences"]
_VIEWER_RULES: Final = (
    {"apiGroups": [GROUP], "resources": [*_OWN, *(f"{plural}/status" for plural in _OWN)], "verbs": _READ},
    {"apiGroups": [""], "resources": ["pods", "pods/log", "events", "services", "resourcequotas"], "verbs": _READ},
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": _READ},
    {"apiGroups": ["apps"], "resources": ["deployments", "replicasets"], "verbs": _READ},
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": _READ},
    {"apiGroups": ["autoscaling"], "resources": ["horizontalpodautoscalers"], "verbs": _READ},
)
_EDITOR_RULES: Final = (
    *_VIEWER_RULES,
    {"apiGroups": [GROUP], "resources": _OWN, "verbs": _WRITE},
    {"apiGroups": [GROUP], "resources": ["inferenceservices/scale"], "verbs": ["get", "update", "patch"]},
)
RULES: Final[Mapping[Role, Sequence[Mapping[str, Any]]]] = {Role.VIEWER: _VIEWER_RULES, Role.EDITOR: _EDITOR_RULES}
"""What each role may do; the operator must hold all of it, or Kubernetes forbids it to grant it."""


def render_tenant(plan: TenantPlan, settings: FleetSettings) -> tuple[Manifest, ...]:
    """Namespaces first, then what goes into each."""
    spaces = [_namespace(plan, namespace) for namespace in plan.namespaces]
    return (*spaces, *(child for namespace in plan.namespaces for child in _children(plan, namespace, settings)))


def _children(plan: TenantPlan, namespace: str, settings: FleetSettings) -> list[Manifest]:
    children = [_limit_range(plan, namespace, settings)]
    if plan.hard:
        children.append(_quota(plan, namespace))
    if plan.denied_priority_classes:
        children.append(_denied_tiers(plan, namespace))
    for role in Role:
        subjects = [subject for subject in plan.subjects if subject.role is role]
        if subjects:
            children += [_role(plan, namespace, role), _binding(plan, namespace, role, subjects)]
    if plan.isolation is Isolation.ISOLATED:
        children.append(render_isolation(plan, namespace, settings))
    return children


def _child(api_version: str, kind: str, name: str, plan: TenantPlan, namespace: str, **body: Any) -> Manifest:
    return build_manifest(
        api_version,
        kind,
        name,
        namespace=namespace,
        object_labels={**product_labels("tenancy"), labels.TENANT: plan.key.name},
        **body,
    )


def _namespace(plan: TenantPlan, namespace: str) -> Manifest:
    security = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    return build_manifest(
        "v1",
        "Namespace",
        namespace,
        object_labels={labels.TENANT: plan.key.name, **security},
        annotations={labels.PRUNE: labels.PRUNE_NEVER},
    )


def _quota(plan: TenantPlan, namespace: str) -> Manifest:
    hard = {name: canonical_quantity(amount) for name, amount in plan.hard.items()}
    return _child("v1", "ResourceQuota", "windlass-quota", plan, namespace, spec={"hard": hard})


def _denied_tiers(plan: TenantPlan, namespace: str) -> Manifest:
    """Refuse pods of tiers the tenant was not granted, whoever writes them."""
    return _child(
        "v1",
        "ResourceQuota",
        "windlass-denied-tiers",
        plan,
        namespace,
        spec={
            "hard": {"pods": "0"},
            "scopeSelector": {
                "matchExpressions": [
                    {"scopeName": "PriorityClass", "operator": "In", "values": list(plan.denied_priority_classes)},
                ]
            },
        },
    )


def _limit_range(plan: TenantPlan, namespace: str, settings: FleetSettings) -> Manifest:
    """Give containers that name no resources the requests a quota counts; a limit only where a quota demands one."""
    limit: dict[str, Any] = {
        "type": "Container",
        "defaultRequest": {
            "cpu": canonical_quantity(settings.default_cpu),
            "memory": canonical_quantity(settings.default_memory),
        },
    }
    if "limits.memory" in plan.hard:
        limit["default"] = {"memory": canonical_quantity(settings.default_memory_limit)}
    return _child("v1", "LimitRange", "windlass-defaults", plan, namespace, spec={"limits": [limit]})


def _role_name(role: Role) -> str:
    return f"windlass-{role.value.lower()}"


def _role(plan: TenantPlan, namespace: str, role: Role) -> Manifest:
    return _child(f"{_RBAC}/v1", "Role", _role_name(role), plan, namespace, rules=[dict(rule) for rule in RULES[role]])


def _binding(plan: TenantPlan, namespace: str, role: Role, subjects: Sequence[Subject]) -> Manifest:
    return _child(
        f"{_RBAC}/v1",
        "RoleBinding",
        _role_name(role),
        plan,
        namespace,
        roleRef={"apiGroup": _RBAC, "kind": "Role", "name": _role_name(role)},
        subjects=[_render_subject(subject) for subject in subjects],
    )


def _render_subject(subject: Subject) -> dict[str, str]:
    if subject.kind is SubjectKind.SERVICE_ACCOUNT:
        return {"kind": subject.kind.value, "name": subject.name, "namespace": subject.namespace}
    return {"kind": subject.kind.value, "name": subject.name, "apiGroup": _RBAC}
