"""Objects of canaries: whole, of their own, and never caught by a selector of the stable revision."""

from __future__ import annotations

from typing import Any

from support.builders import build_canary, build_service, build_snapshot
from windlass_contract.launch_spec import FILE_NAME, LaunchSpec
from windlass_operator.domain import labels
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_service
from windlass_operator.render.workload import render_service

SETTINGS = FleetSettings()
Manifest = dict[str, Any]


def render(**spec: Any) -> tuple[Manifest, ...]:
    service = build_service(**spec)
    return render_service(plan_service(service, build_snapshot(service), SETTINGS), SETTINGS)


def of_canary(manifests: tuple[Manifest, ...], name: str = "next") -> dict[str, Manifest]:
    return {item["kind"]: item for item in manifests if item["metadata"]["labels"].get(labels.CANARY) == name}


def of_stable(manifests: tuple[Manifest, ...]) -> tuple[Manifest, ...]:
    return tuple(item for item in manifests if labels.CANARY not in item["metadata"]["labels"])


def test_a_canary_leaves_every_object_of_the_service_as_it_was() -> None:
    assert of_stable(render(canaries=[build_canary()])) == render()


def test_a_canary_has_objects_of_its_own() -> None:
    found = of_canary(render(canaries=[build_canary()]))

    assert {kind: item["metadata"]["name"] for kind, item in found.items()} == {
        "ServiceAccount": "chat-next-runtime",
        "ConfigMap": "chat-next-launch",
        "NetworkPolicy": "chat-next",
        "Service": "chat-next",
        "Deployment": "chat-next",
    }


def test_one_replica_may_always_leave() -> None:
    manifests = render(canaries=[build_canary(replicas=3)])

    assert of_canary(manifests)["PodDisruptionBudget"]["spec"]["minAvailable"] == 2


def test_selectors_match_their_own_pods_and_no_others() -> None:
    manifests = render(replicas=2, canaries=[build_canary("a"), build_canary("b", replicas=2)])
    pods = {
        item["metadata"]["name"]: item["spec"]["template"]["metadata"]["labels"]
        for item in manifests
        if item["kind"] == "Deployment"
    }

    for item in manifests:
        spec = item.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector")
        if item["kind"] not in ("Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy"):
            continue
        wanted = selector.get("matchLabels", selector)
        caught = [name for name, pod in pods.items() if wanted.items() <= pod.items()]
        assert caught == [item["metadata"]["name"]], item["kind"]


def test_a_canary_is_told_to_serve_its_model_under_the_name_of_the_service() -> None:
    manifests = render(canaries=[build_canary(model={"uri": "file:///models/next"})])

    launch = LaunchSpec.from_json(of_canary(manifests)["ConfigMap"]["data"][FILE_NAME])

    assert (launch.model_uri, launch.served_name, launch.service) == ("file:///models/next", "chat", "chat")


def test_names_fit_at_their_longest() -> None:
    manifests = render(name="a" * 21, canaries=[build_canary("c" * 24)])

    longest = max(len(item["metadata"]["name"]) for item in manifests)
    assert longest <= 63
    assert len("a" * 21 + "-" + "c" * 24) + 17 <= 63
