"""Turn a plan and what runs into the status that users, GitOps tools and autoscalers read."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from windlass_operator.api.v1alpha1.gpu_class import GPUClassStatus
from windlass_operator.api.v1alpha1.inference_service import InferenceServiceStatus
from windlass_operator.api.v1alpha1.tenant import TenantStatus
from windlass_operator.domain.plan import GpuClassPlan, ServicePlan, TenantPlan
from windlass_operator.domain.snapshot import Workload


def plan_service_status(
    plan: ServicePlan, workload: Workload | None, previous: InferenceServiceStatus, now: str,
    problems: tuple[str, ...] = (),
) -> InferenceServiceStatus:
    """Status after an apply. `workload` None: nothing runs yet; `problems`: what the cluster refused; `now`: RFC 3339."""
    raise NotImplementedError


def plan_tenant_status(plan: TenantPlan, previous: TenantStatus, now: str, problems: tuple[str, ...] = ()) -> TenantStatus:
    """Status after an apply."""
    raise NotImplementedError


def plan_gpu_class_status(plan: GpuClassPlan, previous: GPUClassStatus, now: str) -> GPUClassStatus:
    """Status of a class."""
    raise NotImplementedError


def status_document(status: BaseModel) -> dict[str, Any]:
    """JSON form in stable order, so that equal statuses are equal documents and need no write."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)
