"""The world as the planner sees it: frozen values, no Kubernetes objects. Built by a cluster, read by `plan`.

A Snapshot is cheap: mappings are shared with the cluster's cache, which replaces values and never edits them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from windlass_operator.api.v1alpha1.batch_inference import BatchInference
from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import Failure, InferenceService
from windlass_operator.api.v1alpha1.tenant import Tenant
from windlass_operator.domain.capabilities import Capabilities
from windlass_operator.domain.published import Published


class Key(NamedTuple):
    """Identity of one object of ours. Cluster-scoped kinds have an empty namespace.

    A tuple, because the books of a large cohort look keys up a hundred thousand times a second.
    """

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Node:
    """A machine and its extended resources."""

    name: str
    labels: Mapping[str, str]
    allocatable: Mapping[str, int]
    """Extended resource name -> devices, `{"nvidia.com/gpu": 8}`."""
    ready: bool = True
    schedulable: bool = True


class TakingCause(enum.StrEnum):
    """For whom replicas were taken from a service."""

    LENDER = "Lender"
    """A tenant of the cohort wants its own devices back."""
    TIER = "Tier"
    """A service of the same tenant with a higher tier."""
    SHARE = "Share"
    """A tenant of the cohort that borrows less."""


@dataclass(frozen=True, slots=True)
class Taking:
    """Replicas taken from a service at one time, so that others could have its devices."""

    at_s: int
    """Seconds since 1970."""
    replicas: int
    left: int
    """Replicas it was left with."""
    cause: TakingCause


@dataclass(frozen=True, slots=True)
class Revision:
    """Pods of one pod template that exist and stay."""

    template: str
    """Fingerprint that our apply stamped (`domain.revision`); empty when nothing tells."""
    pods: int
    ready: int
    gpu_class: str = ""
    """Class its pods run on; empty without GPU."""
    newest: bool = False
    """Whether the workload controller works towards this one."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What runs for one service now, folded from its Deployment, pods and autoscaler."""

    replicas: int = 0
    """Pods that exist, of any revision."""
    ready: int = 0
    updated: int = 0
    """Pods of the newest revision."""
    updated_ready: int = 0
    """Pods of the newest revision that are ready and available."""
    wanted: int = 0
    """Deployment spec.replicas as it stands, whoever wrote it."""
    observed: bool = True
    """Whether the figures are of the newest template: the workload controller has seen it and works towards it."""
    template: str = ""
    """Fingerprint of the pod template as it stands; empty when nothing tells."""
    revisions: tuple[Revision, ...] = ()
    """Pods that stay, by template, in the order of their fingerprints."""
    max_surge: int = 0
    """Pods beyond `wanted` that the workload controller may make now."""
    paused: bool = False
    """Whether the workload controller is told to leave the pods as they are."""
    unplaced: int = 0
    """Pods that the scheduler has found no place for, or a quota keeps from existing."""
    leaving: int = 0
    """Pods that finish their requests; they hold their devices until they are gone."""
    restarts: int = 0
    """Restarts of the unready pod of the newest revision that has restarted most."""
    overdue: bool = False
    """Whether the workload controller has given up waiting for progress."""
    gpu_class: str = ""
    """GPUClass that the running template asks for; empty without GPU."""
    devices: int = 0
    """Devices its pods hold or wait for, of its class."""
    devices_per_pod: int = 0
    """Devices that a pod of its template holds; 0 where that is unknown."""
    devices_left_behind: tuple[tuple[str, int], ...] = ()
    """Class and devices of pods that still run on another class, while the service moves."""
    placed: int = 0
    """Pods that the scheduler has given a node, leaving ones included: they hold what they asked for."""
    claimed: tuple[tuple[str, int], ...] = ()
    """Devices that its claims were given, by GPUClass: with alternatives that may be another one than `gpu_class`."""
    devices_by_node: tuple[tuple[str, int], ...] = ()
    """Devices its pods hold, by node, in the order of their names."""
    pending_reason: str = ""
    """Words of the scheduler or of a quota, when pods cannot start."""
    autoscaler_judged: bool = False
    """Whether the autoscaler has looked at the workload since it was made."""
    autoscaler_problem: str = ""
    """Why the autoscaler cannot act, in its own words; empty while it can."""
    shrinks_soon: bool = False
    """Whether the autoscaler wants fewer replicas and only waits for its delay."""
    wants_more: bool = False
    """Whether the autoscaler would run more replicas than its maximum allows."""
    startup_s: int = 0
    """How long the quickest of its ready pods took from creation to ready; 0 while none is."""
    foreign_scaler: str = ""
    """An autoscaler of somebody else that drives the same Deployment, as `Kind name`."""
    last_failure: Failure | None = None
    queue: str = ""
    """LocalQueue of Kueue that its Deployment names; empty: none."""
    gated: int = 0
    """Pods that Kueue holds back; the scheduler does not look at them."""
    unqueued: int = 0
    """Pods of the newest revision that Kueue does not manage although the Deployment names a queue."""
    queue_words: str = ""
    """Why Kueue holds the pod that waits longest, in its own words."""
    takings: tuple[Taking, ...] = ()
    """What quota decisions took from it, oldest first. Stored with the workload, in the write that took the replicas,
    so that budgets outlive a restart and never count what did not happen."""

    @property
    def devices_to_come(self) -> int:
        """Devices of its class once no pod is left behind on another: what a quota keeps for it while it moves."""
        return self.devices + sum(count for _, count in self.devices_left_behind)


@dataclass(frozen=True, slots=True)
class BatchRun:
    """What is known of the Job of one batch. What its pods hold is in the batch's Workload."""

    job: str = ""
    suspended: bool = False
    succeeded: int = 0
    """Shards that are done."""
    failed: int = 0
    failed_shards: str = ""
    """Which ones, as `1,3-5`."""
    outcome: str = ""
    """`Complete` or `Failed` once the Job is over."""
    message: str = ""
    """Why it failed, in the words of the Job's controller."""
    started: str = ""
    finished: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a plan may depend on."""

    services: Mapping[Key, InferenceService] = field(default_factory=dict)
    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    gpu_classes: Mapping[str, GPUClass] = field(default_factory=dict)
    nodes: Mapping[str, Node] | None = field(default_factory=dict)
    """None: nodes are unknown (rendering files without a cluster), so the first class that exists is taken."""
    workloads: Mapping[Key, Workload] = field(default_factory=dict)
    capabilities: Capabilities = field(default_factory=Capabilities)
    canaries: Mapping[Key, frozenset[Key]] = field(default_factory=dict)
    """Keys of the canaries that a service has workloads of, also of those that its spec lists no longer."""
    published: Published | None = None
    """What drivers offer for claims; None: it is unknown."""
    batches: Mapping[Key, BatchInference] = field(default_factory=dict)
    runs: Mapping[Key, BatchRun] = field(default_factory=dict)
    """Jobs of batches."""


def snapshot_of(
    services: Iterable[InferenceService],
    tenants: Iterable[Tenant],
    gpu_classes: Iterable[GPUClass],
    nodes: Mapping[str, Node] | None = None,
    batches: Iterable[BatchInference] = (),
) -> Snapshot:
    """A world in which nothing runs yet, as files describe it. Nodes are unknown unless given."""
    return Snapshot(
        services={
            Key("InferenceService", item.metadata.namespace or "default", item.metadata.name): item for item in services
        },
        tenants={item.metadata.name: item for item in tenants},
        gpu_classes={item.metadata.name: item for item in gpu_classes},
        nodes=nodes,
        batches={
            Key("BatchInference", item.metadata.namespace or "default", item.metadata.name): item for item in batches
        },
    )
