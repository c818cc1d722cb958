"""What `windlass plan` says of a picture: the operator's own plan, with neighbours, quota and what was not read."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from support.builders import build_gpu_class, build_node, build_service, build_snapshot, build_tenant, build_workload
from windlass_operator.api.meta import API_VERSION
from windlass_operator.cli.plan import tell
from windlass_operator.cli.plan_outline import Intent, is_change, is_refused, outline
from windlass_operator.cluster.kubernetes import stamp
from windlass_operator.cluster.kubernetes_cache import ObjectCache
from windlass_operator.cluster.kubernetes_reader import Gap, Picture
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.fleet_view import FleetView
from windlass_operator.domain.revision import fingerprint
from windlass_operator.domain.snapshot import Key, Revision
from windlass_operator.render.planned import plan_rendered
from windlass_operator.render.pod import render_pod_template
from windlass_operator.render.workload import render_service

SETTINGS = FleetSettings()
NOW = datetime.datetime(2026, 3, 1, 10, tzinfo=datetime.UTC)
CHAT = Key("InferenceService", "team-a", "chat")
WORLD = (build_gpu_class(), build_tenant(gpus={"h200": 3}))


def manifest_of(item: Any, *, uid: str = "") -> dict[str, Any]:
    body = item.model_dump(mode="json", by_alias=True, exclude_unset=True)
    metadata = {**body["metadata"], **({"uid": uid, "resourceVersion": "1"} if uid else {})}
    return {"apiVersion": API_VERSION, "kind": type(item).__name__, **body, "metadata": metadata}


def build_picture(*services: Any, gaps: tuple[Gap, ...] = (), devices: int = 4) -> Picture:
    """A cluster in which these services run as they should, each replica on a device."""
    snapshot = build_snapshot(*services, *WORLD, nodes=[build_node(devices=devices)])
    view, cache, workloads = FleetView(snapshot, SETTINGS, NOW), ObjectCache(), {}
    for service in services:
        key = Key("InferenceService", service.metadata.namespace, service.metadata.name)
        plan = plan_rendered(service, view, 0.0)
        owner = manifest_of(service, uid=f"uid-{key.name}")
        cache.absorb_reply(owner)
        for child in render_service(plan, SETTINGS):
            cache.absorb_reply(stamp(child, key, owner))
        template = fingerprint(render_pod_template(plan, SETTINGS))
        pods = (Revision(template, plan.replicas or 0, plan.replicas or 0, "h200", newest=True),)
        workloads[f"{key.namespace}/{key.name}"] = build_workload(
            plan.replicas or 0, gpu_class="h200", template=template, revisions=pods, max_surge=1
        )
    snapshot = build_snapshot(*services, *WORLD, nodes=[build_node(devices=devices)], workloads=workloads)
    return Picture(snapshot, cache, gaps, environment={})


def ask(picture: Picture, *items: Any) -> dict[str, Any]:
    """What is said when these objects were to be applied."""
    intents = []
    for item in items:
        kind, space, name = type(item).__name__, item.metadata.namespace, item.metadata.name
        live = picture.live(kind, space, name)
        after = manifest_of(item, uid=f"uid-{name}" if live else "")
        intents.append(Intent(kind, space, name, live, after))
    return outline(intents, picture, SETTINGS, NOW)


def chat(**fields: Any) -> Any:
    return build_service(**{"classes": ["h200"], "replicas": 2, **fields})


def test_what_is_there_already_is_unchanged():
    told = ask(build_picture(chat()), chat())

    (one,) = told["objects"]
    assert (one["action"], {child["action"] for child in one["children"]}) == ("unchanged", {"unchanged"})
    assert not is_change(told)
    assert tell(told)[-1] == "Plan: 1 unchanged. Nothing was written."


def test_a_change_of_the_template_restarts_pods_and_tells_how():
    told = ask(build_picture(chat()), chat(limits={"maxRunningRequests": 8}))

    (one,) = told["objects"]
    assert (one["action"], one["restarts"], one["rollout"]["state"]) == ("update", 2, "InProgress")
    assert one["rollout"]["steps"][0]["freeDevices"] == 1
    assert {"path": "spec.limits", "after": {"maxRunningRequests": 8}} in one["changes"]
    actions = {(child["kind"], child["action"]) for child in one["children"]}
    assert {("Deployment", "update"), ("ConfigMap", "update"), ("Service", "unchanged")} <= actions
    assert any("restarts 2 pods" in line for line in tell(told))


def test_a_change_beside_the_template_restarts_nothing():
    told = ask(build_picture(chat()), chat(rollout={"minAvailable": 2}))

    (one,) = told["objects"]
    assert "restarts" not in one
    assert [child["kind"] for child in one["children"] if child["action"] == "update"] == ["PodDisruptionBudget"]


def test_quota_is_told_before_and_after():
    told = ask(build_picture(chat()), chat(replicas=3))

    assert told["quota"] == [{"tenant": "acme", "class": "h200", "nominal": 3, "before": 2, "after": 3}]
    assert "  acme: h200 2 -> 3 of 3 devices" in tell(told)


def test_a_refusal_names_the_next_step_and_what_keeps_running():
    told = ask(build_picture(chat()), build_service("new", classes=["h200"], replicas=2))

    (one,) = told["objects"]
    assert is_refused(told)
    assert one["refusal"]["reason"] == "QuotaExceeded"
    assert any(line.startswith("  next step: ") for line in tell(told))


def test_a_neighbour_that_comes_out_otherwise_is_told():
    """An edit of a class touches services that are in no file."""
    told = ask(build_picture(chat(cache={"memory": "16Gi"})), build_gpu_class(memory="8Gi"))

    (neighbour,) = told["neighbours"]
    assert (neighbour["service"], neighbour["before"]) == ("team-a/chat", "2 replicas on h200")
    assert neighbour["after"] == "refused (CacheTooLarge)"


def test_a_full_class_that_blocks_the_rollout_is_a_warning():
    told = ask(
        build_picture(chat(rollout={"minAvailable": 2}), devices=2),
        chat(rollout={"minAvailable": 2}, limits={"maxRunningRequests": 8}),
    )

    (one,) = told["objects"]
    assert one["rollout"]["state"] == "Blocked"
    assert any("would be blocked" in warning for warning in one["warnings"])


def test_stopping_a_service_is_a_warning():
    told = ask(build_picture(chat()), chat(suspend=True))

    assert "stops 2 pods" in told["objects"][0]["warnings"]


@pytest.mark.parametrize(
    ("gaps", "planned", "words"),
    [
        pytest.param(
            (Gap("Tenant"), Gap("GPUClass")), False, "Tenant and GPUClass objects may not be read", id="blind"
        ),
        pytest.param((Gap("ConfigMap"),), True, "ConfigMap objects may not be read", id="one kind of children"),
        pytest.param((Gap("Service", ("team-a",)),), True, "read in team-a only", id="one namespace"),
    ],
)
def test_what_may_not_be_read_is_said(gaps, planned, words):
    told = ask(build_picture(chat(), gaps=gaps), chat(replicas=3))

    (one,) = told["objects"]
    assert ("children" in one) == planned
    assert "ConfigMap" not in {child["kind"] for child in one.get("children", ())} or gaps[0].kind != "ConfigMap"
    assert words in told["notes"][0]


def test_what_the_server_refuses_is_told_in_its_words():
    refused = Intent(
        "InferenceService", "team-a", "chat", None, None, {"reason": "Invalid", "message": "no", "nextStep": "Fix"}
    )

    told = outline([refused], build_picture(), SETTINGS, NOW)

    assert (told["objects"][0]["action"], is_refused(told)) == ("refused", True)
    assert tell(told)[:3] == ["InferenceService team-a/chat: refused", "  refused (Invalid): no", "  next step: Fix"]
