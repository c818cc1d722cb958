"""Decide everything about one object from its spec and a snapshot: the `plan` step of observe -> plan -> render -> apply -> report.

A plan carries its reasons as data. Shells carry out `action`, renderers turn the rest into objects, `status` reports it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from windlass_contract.launch_spec import LaunchSpec

from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import InferenceService, PodTemplate
from windlass_operator.api.v1alpha1.tenant import GpuUse, Isolation, Subject, Tenant
from windlass_operator.domain.decision import Decision, Refusal
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.gpu_class import GpuChoice
from windlass_operator.domain.model_source import ModelSource
from windlass_operator.domain.rollout import RolloutPlan
from windlass_operator.domain.scaling import ScalingPlan
from windlass_operator.domain.snapshot import Key, Snapshot


class Action(enum.StrEnum):
    """What a shell does with a plan."""

    APPLY = "Apply"
    """Make the children equal to what the plan renders."""
    HOLD = "Hold"
    """Leave the children as they are, do not call apply: a refusal must not stop what already runs."""
    REMOVE = "Remove"
    """Apply an empty set of children."""


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """Everything about one InferenceService that is decided."""

    key: Key
    generation: int
    tenant: str
    """Name of the owning Tenant; empty in a cluster without tenants."""
    action: Action
    launch: LaunchSpec
    source: ModelSource
    gpu_class: GpuChoice | None
    """None: the service runs on CPUs."""
    replicas: int | None
    """None while an autoscaler owns the number."""
    scaling: ScalingPlan | None
    priority_class: str
    rollout: RolloutPlan
    pod: PodTemplate
    """The user's overlay without what it must not touch."""
    drain_timeout_s: int
    suspended: bool
    decisions: tuple[Decision, ...]
    refusal: Refusal | None = None
    address: str = ""
    """Base URL of the OpenAI-compatible API inside the cluster."""

    @property
    def runnable(self) -> bool:
        """Whether the service may run as its spec says."""
        return self.refusal is None


@dataclass(frozen=True, slots=True)
class TenantPlan:
    """Everything about one Tenant that is decided."""

    key: Key
    generation: int
    namespaces: tuple[str, ...]
    """Namespaces that are this tenant's; what others own or the platform reserves is left out."""
    hard: Mapping[str, str]
    """ResourceQuota of each namespace."""
    denied_priority_classes: tuple[str, ...]
    """PriorityClasses no pod of the tenant may use."""
    subjects: tuple[Subject, ...]
    isolation: Isolation
    gpus: tuple[GpuUse, ...]
    services: int
    decisions: tuple[Decision, ...]
    problems: tuple[Refusal, ...] = ()
    """What could not be granted; the rest is carried out."""


@dataclass(frozen=True, slots=True)
class GpuClassPlan:
    """What one GPUClass amounts to."""

    key: Key
    generation: int
    nodes: int | None
    """Ready, schedulable nodes; None while nodes are unknown."""
    gpus: int
    allocated: int


def plan_service(service: InferenceService, snapshot: Snapshot, settings: FleetSettings) -> ServicePlan:
    """Decide how one service runs. Never raises for what a user wrote: that becomes the plan's refusal."""
    raise NotImplementedError


def plan_tenant(tenant: Tenant, snapshot: Snapshot, settings: FleetSettings) -> TenantPlan:
    """Decide what one tenant gets."""
    raise NotImplementedError


def plan_gpu_class(gpu_class: GPUClass, snapshot: Snapshot) -> GpuClassPlan:
    """Count what one class offers."""
    raise NotImplementedError
