"""Label and annotation keys that renderers write and cluster shells read.

`prune: never` marks objects that hold what others own (a tenant's Namespace): shells apply them, but give them no owner
reference and never delete them, so removing a Tenant never removes its users' data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from windlass_operator.api.meta import GROUP

NAME: Final = "app.kubernetes.io/name"
INSTANCE: Final = "app.kubernetes.io/instance"
COMPONENT: Final = "app.kubernetes.io/component"
PART_OF: Final = "app.kubernetes.io/part-of"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"

PRODUCT: Final = "windlass"
MANAGER: Final = "windlass-operator"
RUNTIME: Final = "runtime"
CANARY_COMPONENT: Final = "canary"
"""Component of canaries' pods: not `runtime`, so no selector of the stable revision catches them."""
BATCH_COMPONENT: Final = "batch"
GATEWAY: Final = "gateway"
METRICS_ADAPTER: Final = "metrics-adapter"
OPERATOR: Final = "operator"
POWER_AGENT: Final = "power-agent"

SERVICE: Final = f"{GROUP}/service"
TENANT: Final = f"{GROUP}/tenant"
GPU_CLASS: Final = f"{GROUP}/gpu-class"
"""On pod templates: the GPUClass they ask for; shells read `Workload.gpu_class` from it."""

CANARY: Final = f"{GROUP}/canary"
"""On everything of a canary: its name."""
BATCH: Final = f"{GROUP}/batch"
"""On everything of a batch: its name."""
BATCH_INSTANCE: Final = "batch."
"""Begins the instance of a batch; no service's name holds a dot, so the two never meet."""
DEVICES: Final = f"{GROUP}/devices"
"""On pod templates that claim devices: how many; extended resources tell it otherwise."""
CLAIM_TEMPLATE: Final = f"{GROUP}/claim-template"
"""On the same: name of their ResourceClaimTemplate, which must live as long as a ReplicaSet may make such pods."""

QUEUE: Final = "kueue.x-k8s.io/queue-name"
"""On services, by their authors, and on Deployments: the LocalQueue of Kueue in which their pods wait."""
QUEUE_MANAGED: Final = "kueue.x-k8s.io/managed"
"""On pods, by Kueue: that it holds and admits them."""
CONFIG_HASH: Final = f"{GROUP}/config-hash"
TAKINGS: Final = f"{GROUP}/takings"
"""On Deployments: replicas that quota decisions took; shells read `Workload.takings` from it."""
TEMPLATE: Final = f"{GROUP}/template"
"""On Deployments and, copied by their controller, on ReplicaSets: fingerprint of the pod template we rendered."""
PRUNE: Final = f"{GROUP}/prune"
PRUNE_NEVER: Final = "never"


def is_prunable(manifest: Mapping[str, Any]) -> bool:
    """Whether a shell may own and delete the object."""
    annotations = manifest.get("metadata", {}).get("annotations") or {}
    return annotations.get(PRUNE) != PRUNE_NEVER


def selector_labels(service: str) -> dict[str, str]:
    """The labels that tell one service's pods from all others in its namespace.

    Frozen: a Deployment's selector is immutable, so a release that changes them cannot upgrade.
    """
    return {INSTANCE: service, COMPONENT: RUNTIME}


def batch_selector(batch: str) -> dict[str, str]:
    """The labels that tell one batch's pods from all others."""
    return {INSTANCE: f"{BATCH_INSTANCE}{batch}", COMPONENT: BATCH_COMPONENT}


def canary_selector(service: str, canary: str) -> dict[str, str]:
    """The labels that tell one canary's pods from all others. Frozen, for the same reason."""
    return {INSTANCE: service, COMPONENT: CANARY_COMPONENT, CANARY: canary}
