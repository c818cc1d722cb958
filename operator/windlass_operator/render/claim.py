"""The ResourceClaimTemplate of a service, from which Kubernetes makes one ResourceClaim per pod.

The spec of a template cannot be changed, so its name carries a hash of it: another claim is another object, and pods of
an older revision keep theirs.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from windlass_operator.domain.device_claim import Alternative
from windlass_operator.domain.gpu_class import GpuChoice
from windlass_operator.domain.plan import ServicePlan
from windlass_operator.render.manifest import Manifest, service_child, service_labels

REQUEST: Final = "gpu"
"""Name of the claim in a pod, and of its one request."""


def claim_template_name(plan: ServicePlan, gpu: GpuChoice) -> str:
    """Name of the template; follows its content."""
    text = json.dumps(_devices(gpu), sort_keys=True)
    return f"{plan.key.name}-{REQUEST}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def render_claim_template(plan: ServicePlan, gpu: GpuChoice) -> Manifest:
    """The template. Claims made from it carry the service's labels, so that the operator sees what they got."""
    spec = {"metadata": {"labels": service_labels(plan)}, "spec": {"devices": _devices(gpu)}}
    return service_child("resource.k8s.io/v1", "ResourceClaimTemplate", claim_template_name(plan, gpu), plan, spec=spec)


def _devices(gpu: GpuChoice) -> dict[str, Any]:
    if len(gpu.alternatives) == 1:
        return {"requests": [{"name": REQUEST, "exactly": _request(gpu.alternatives[0], gpu.count)}]}
    wanted = [{"name": item.gpu_class, **_request(item, gpu.count)} for item in gpu.alternatives]
    return {"requests": [{"name": REQUEST, "firstAvailable": wanted}]}


def _request(alternative: Alternative, count: int) -> dict[str, Any]:
    request: dict[str, Any] = {
        "deviceClassName": alternative.device_class,
        "allocationMode": "ExactCount",
        "count": count,
    }
    if alternative.selectors:
        request["selectors"] = [{"cel": {"expression": expression}} for expression in alternative.selectors]
    return request
