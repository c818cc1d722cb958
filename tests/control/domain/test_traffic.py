"""Weights for routers of the cluster, and when there are any."""

from __future__ import annotations

import pytest

from windlass_operator.api.v1alpha1.canary import CanaryPhase, CanaryStatus
from windlass_operator.domain.capabilities import Capabilities
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.traffic import Share, explain_traffic, picker_of, plan_traffic

ASKED = FleetSettings(http_route_gateway="gateways/public", mesh_routes="Istio")
ALL = Capabilities(known=True, has_http_routes=True, has_virtual_services=True)
NOTHING = Capabilities(known=True)


def build_state(name: str, percent: int, phase: CanaryPhase = CanaryPhase.RUNNING) -> CanaryStatus:
    return CanaryStatus(name=name, traffic_percent=percent, phase=phase)


def test_weights_add_up_to_a_hundred() -> None:
    plan = plan_traffic("chat", [build_state("a", 20), build_state("dark", 0)], ASKED, ALL)

    assert plan.shares == (Share("chat", 80), Share("chat-a", 20, "a"), Share("chat-dark", 0, "dark"))


@pytest.mark.parametrize("phase", [CanaryPhase.PENDING, CanaryPhase.ABORTED])
def test_a_canary_that_takes_nothing_is_no_backend(phase: CanaryPhase) -> None:
    plan = plan_traffic("chat", [build_state("a", 0, phase)], ASKED, ALL)

    assert plan.shares == (Share("chat", 100),)


@pytest.mark.parametrize(
    ("settings", "capabilities", "expected"),
    [
        pytest.param(ASKED, ALL, (True, True), id="asked for and served"),
        pytest.param(ASKED, NOTHING, (False, False), id="not served"),
        pytest.param(FleetSettings(), ALL, (False, False), id="not asked for"),
    ],
)
def test_routes_are_written_where_they_are_asked_for_and_served(
    settings: FleetSettings, capabilities: Capabilities, expected: tuple[bool, bool]
) -> None:
    plan = plan_traffic("chat", [build_state("a", 20)], settings, capabilities)

    assert (plan.http_route, plan.virtual_service) == expected


def test_a_mesh_route_needs_a_canary() -> None:
    assert not plan_traffic("chat", [], ASKED, ALL).virtual_service


def test_what_is_asked_for_and_missing_is_said() -> None:
    missing = explain_traffic(plan_traffic("chat", [], ASKED, NOTHING), ASKED, NOTHING)
    unasked = explain_traffic(plan_traffic("chat", [], FleetSettings(), ALL), FleetSettings(), ALL)

    assert [(item.topic, item.choice) for item in missing] == [("http route", "none"), ("mesh route", "none")]
    assert unasked == ()


PICKED = FleetSettings(http_route_gateway="gateways/public", endpoint_picker="{name}-epp:9002")
POOLS = Capabilities(known=True, has_http_routes=True, has_inference_pools=True)


@pytest.mark.parametrize(
    ("settings", "capabilities", "choice"),
    [
        pytest.param(PICKED, POOLS, "InferencePool", id="a picker is named, pools and routes are served"),
        pytest.param(PICKED, ALL, "none", id="no pools"),
        pytest.param(
            PICKED, Capabilities(known=True, has_inference_pools=True), "none", id="no routes that send to them"
        ),
        pytest.param(ASKED, POOLS, None, id="no picker is named"),
    ],
)
def test_pools_are_written_where_a_picker_is_named_and_routes_can_send_to_them(
    settings: FleetSettings, capabilities: Capabilities, choice: str | None
) -> None:
    plan = plan_traffic("chat", [build_state("a", 20)], settings, capabilities)

    said = {item.topic: item.choice for item in explain_traffic(plan, settings, capabilities)}

    assert plan.pools == (choice == "InferencePool")
    assert said.get("inference pool") == choice


def test_every_revision_has_a_picker_of_its_own() -> None:
    plan = plan_traffic("chat", [build_state("a", 20)], PICKED, POOLS)

    assert [picker_of(share, PICKED) for share in plan.shares] == [("chat-epp", 9002), ("chat-a-epp", 9002)]
