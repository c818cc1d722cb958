"""The ConfigMap that tells a replica what to do, and the hash that rolls pods when it changes."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from windlass_contract.launch_spec import FILE_NAME, VERSION, LaunchSpec
from windlass_operator.domain.plan import ServicePlan
from windlass_operator.render.manifest import Manifest, service_child


def launch_name(plan: ServicePlan) -> str:
    """Name of the ConfigMap."""
    return f"{plan.key.name}-launch"


def hash_launch(launch: LaunchSpec) -> str:
    """Changes exactly when a replica would be told something else.

    Values that equal the contract's defaults are left out, because a reader fills them in itself: so a release that
    adds a field with a default restarts nobody. A release that changes a default raises VERSION.
    """
    told = {
        field.name: getattr(launch, field.name)
        for field in dataclasses.fields(launch)
        if getattr(launch, field.name) != field.default
    }
    text = json.dumps({"version": VERSION, **told}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def render_launch(plan: ServicePlan) -> Manifest:
    """The ConfigMap."""
    return service_child("v1", "ConfigMap", launch_name(plan), plan, data={FILE_NAME: plan.launch.to_json()})
