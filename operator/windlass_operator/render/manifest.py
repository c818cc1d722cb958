"""The JSON form of Kubernetes objects, and the parts all of ours share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from windlass_operator.domain import labels
from windlass_operator.domain.plan import ServicePlan

Manifest = dict[str, Any]
"""apiVersion, kind, metadata and the rest; the same type as `cluster.protocol.Manifest`."""


def build_manifest(
    api_version: str,
    kind: str,
    name: str,
    *,
    namespace: str = "",
    object_labels: Mapping[str, str],
    annotations: Mapping[str, str] | None = None,
    **body: Any,
) -> Manifest:
    """One object. Owner references are absent: the cluster adds them, because only it knows the owner's uid."""
    metadata: dict[str, Any] = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    metadata["labels"] = dict(object_labels)
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}


def product_labels(component: str) -> dict[str, str]:
    """Labels of everything we make."""
    return {labels.COMPONENT: component, labels.PART_OF: labels.PRODUCT, labels.MANAGED_BY: labels.MANAGER}


def service_labels(plan: ServicePlan) -> dict[str, str]:
    """Labels of every child of a service. No version among them: an operator upgrade must not touch a pod template."""
    owner = {labels.TENANT: plan.tenant} if plan.tenant else {}
    whose = {labels.BATCH: plan.batch} if plan.batch else {labels.SERVICE: plan.service}
    return {
        labels.NAME: "windlass-runtime",
        **plan.selector,
        **product_labels(plan.selector[labels.COMPONENT]),
        **whose,
        **owner,
    }


def service_child(api_version: str, kind: str, name: str, plan: ServicePlan, **body: Any) -> Manifest:
    """One child of a service, in its namespace and with its labels."""
    return build_manifest(
        api_version,
        kind,
        name,
        namespace=plan.key.namespace,
        object_labels=service_labels(plan),
        **body,
    )
