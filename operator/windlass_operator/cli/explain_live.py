"""Explain services of a live cluster: the planner over what the cluster holds now, and what their statuses say."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any, Final

from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.cli.explain_words import explain_plan
from windlass_operator.cli.picture import notes_on, settings_of, unread_kinds
from windlass_operator.cluster.kubernetes_access import AccessLoader
from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.cluster.kubernetes_reader import Picture, read_picture
from windlass_operator.domain.fleet_view import FleetView
from windlass_operator.domain.snapshot import Key
from windlass_operator.errors import InvalidInput, Problem
from windlass_operator.render.planned import plan_rendered

REQUEST_TIMEOUT_S: Final = 30.0


async def explain_live(
    names: Iterable[str], access: AccessLoader, namespace: str, operator_namespace: str
) -> dict[str, Any]:
    """Read the cluster once, and say everything about some services of a namespace, as data.

    Raises ClusterUnavailable without a server, InvalidInput for a service that is not there.
    """
    async with KubernetesClient(access, REQUEST_TIMEOUT_S) as client:
        picture = await read_picture(client, {namespace}, operator_namespace)
    return explain_picture(names, picture, namespace, datetime.datetime.now(datetime.UTC))


def explain_picture(names: Iterable[str], picture: Picture, namespace: str, now: datetime.datetime) -> dict[str, Any]:
    """Say everything about some services of a picture. Raises InvalidInput for one that is not there."""
    settings, services = settings_of(picture), picture.snapshot.services
    keys = [Key("InferenceService", namespace, name) for name in names]
    for key in keys:
        if key not in services:
            known = ", ".join(sorted(other.name for other in services if other.namespace == namespace)) or "none"
            raise InvalidInput((Problem("", "no such object", f"one of those there: {known}", subject=str(key)),))
    notes, unread = notes_on(picture), unread_kinds(picture)
    if unread:
        notes.append(f"{' and '.join(unread)} objects decide too, so this repeats what the status says")
        return {"services": [_tell_status(key, services[key]) for key in keys], "notes": notes}
    view = FleetView(picture.snapshot, settings, now)
    # A pod without a place counts: what the operator would still wait for is not known here.
    plans = [plan_rendered(services[key], view, float("inf")) for key in keys]
    told = [_tell_status(plan.key, services[plan.key]) | explain_plan(plan, settings) for plan in plans]
    return {"services": told, "notes": notes}


def _tell_status(key: Key, service: InferenceService) -> dict[str, Any]:
    """What the operator has written, condition by condition."""
    return {
        "namespace": key.namespace,
        "name": key.name,
        "conditions": [
            {"type": one.type, "status": one.status, "reason": one.reason, "message": one.message}
            for one in service.status.conditions
        ],
    }
