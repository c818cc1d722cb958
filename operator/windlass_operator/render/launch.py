"""The ConfigMap that tells a replica what to do, and the hash that rolls pods when it changes."""

from __future__ import annotations

import hashlib

from windlass_contract.launch_spec import FILE_NAME, LaunchSpec
from windlass_operator.domain.plan import ServicePlan
from windlass_operator.render.manifest import Manifest, service_child


def launch_name(plan: ServicePlan) -> str:
    """Name of the ConfigMap."""
    return f"{plan.key.name}-launch"


def hash_launch(launch: LaunchSpec) -> str:
    """Changes exactly when a replica would be told something else."""
    return hashlib.sha256(launch.to_json().encode()).hexdigest()[:16]


def render_launch(plan: ServicePlan) -> Manifest:
    """The ConfigMap."""
    return service_child("v1", "ConfigMap", launch_name(plan), plan, data={FILE_NAME: plan.launch.to_json()})
