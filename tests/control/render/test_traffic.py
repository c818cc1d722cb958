"""Objects for routers of the cluster."""

from __future__ import annotations

from typing import Any

from support.builders import build_canary, build_service, build_snapshot
from windlass_operator.api.v1alpha1.canary import CanaryPhase, CanaryStatus
from windlass_operator.domain.canary import spec_hash
from windlass_operator.domain.capabilities import Capabilities
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_service
from windlass_operator.domain.snapshot import Snapshot
from windlass_operator.render.workload import render_service

PICKED = FleetSettings(http_route_gateway="gateways/public", endpoint_picker="{name}-epp:9002")
ASKED = FleetSettings(http_route_gateway="gateways/public", mesh_routes="Istio")


def render_all(settings: FleetSettings, *canaries: dict[str, Any]) -> list[dict[str, Any]]:
    service = build_service(canaries=list(canaries))
    states = [
        CanaryStatus(
            name=item.name, phase=CanaryPhase.RUNNING, traffic_percent=item.traffic_percent, spec_hash=spec_hash(item)
        )
        for item in service.spec.canaries
    ]
    service = service.model_copy(update={"status": service.status.model_copy(update={"canaries": states})})
    capabilities = Capabilities(known=True, has_http_routes=True, has_virtual_services=True, has_inference_pools=True)
    snapshot = Snapshot(build_snapshot(service).services, capabilities=capabilities)
    return list(render_service(plan_service(service, snapshot, settings), settings))


def render(settings: FleetSettings = ASKED, *canaries: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["kind"]: item for item in render_all(settings, *canaries)}


def test_an_http_route_shares_out_the_path_of_the_service() -> None:
    route = render(ASKED, build_canary(percent=30))["HTTPRoute"]

    asked, usual = route["spec"]["rules"]
    assert route["spec"]["parentRefs"] == [{"namespace": "gateways", "name": "public"}]
    assert usual["matches"] == [{"path": {"type": "PathPrefix", "value": "/team-a/chat"}}]
    assert usual["backendRefs"] == [
        {"name": "chat", "port": 8000, "weight": 70},
        {"name": "chat-next", "port": 8000, "weight": 30},
    ]
    assert asked["matches"][0]["headers"] == [{"type": "Exact", "name": "X-Windlass-Canary", "value": "next"}]
    assert asked["backendRefs"] == [{"name": "chat-next", "port": 8000, "weight": 1}]


def test_a_virtual_service_shares_out_the_name_of_the_service() -> None:
    found = render(ASKED, build_canary(percent=30))["VirtualService"]

    asked, usual = found["spec"]["http"]
    assert found["spec"]["hosts"] == ["chat.team-a.svc.cluster.local"]
    assert [(item["destination"]["host"], item["weight"]) for item in usual["route"]] == [
        ("chat.team-a.svc.cluster.local", 70),
        ("chat-next.team-a.svc.cluster.local", 30),
    ]
    assert asked["match"] == [{"headers": {"x-windlass-canary": {"exact": "next"}}}]


def test_without_the_settings_nothing_is_written() -> None:
    found = render(FleetSettings(), build_canary())

    assert not {"HTTPRoute", "VirtualService"} & set(found)


def test_replicas_let_in_the_gateway_that_routes_attach_to_and_nobody_new_otherwise() -> None:
    def namespaces(settings: FleetSettings) -> list[list[str]]:
        (rule,) = render(settings)["NetworkPolicy"]["spec"]["ingress"]
        return [peer["namespaceSelector"]["matchExpressions"][0]["values"] for peer in rule["from"]]

    assert [*namespaces(FleetSettings()), ["gateways"]] == namespaces(ASKED)


def test_the_operator_is_let_in_where_it_asks_prompts() -> None:
    probe = {"metrics": [{"type": "QualityProbe", "threshold": 90}], "prompts": ["hi"]}

    def components(*canaries: dict[str, Any]) -> list[str]:
        (rule,) = render(FleetSettings(), *canaries)["NetworkPolicy"]["spec"]["ingress"]
        found: list[str] = rule["from"][0]["podSelector"]["matchExpressions"][0]["values"]
        return found

    assert "operator" not in components(build_canary())
    assert "operator" in components(build_canary(analysis=probe))


def test_a_route_sends_to_pools_where_a_picker_is_named() -> None:
    children = render_all(PICKED, build_canary(percent=30))

    pools = {item["metadata"]["name"]: item["spec"] for item in children if item["kind"] == "InferencePool"}
    (route,) = (item for item in children if item["kind"] == "HTTPRoute")
    deployments = {item["metadata"]["name"]: item["spec"] for item in children if item["kind"] == "Deployment"}
    pool = {"group": "inference.networking.k8s.io", "kind": "InferencePool"}
    assert route["spec"]["rules"][-1]["backendRefs"] == [
        {**pool, "name": "chat", "weight": 70},
        {**pool, "name": "chat-next", "weight": 30},
    ]
    assert {name: spec["selector"] for name, spec in pools.items()} == {
        name: spec["selector"] for name, spec in deployments.items()
    }
    assert pools["chat-next"]["endpointPickerRef"] == {
        "name": "chat-next-epp",
        "port": {"number": 9002},
        "failureMode": "FailOpen",
    }
    assert pools["chat"]["targetPorts"] == [{"number": 8000}]
