"""Who may use which service through the gateway."""

from __future__ import annotations

from support.builders import build_service, build_snapshot, build_tenant
from windlass_contract.endpoints import Route, RoutingTable, TenantRates, digest_key
from windlass_operator.domain.routes import plan_routes


def build_keys(*names: str) -> dict[str, object]:
    return {"keys": [{"name": f"key-{number}", "sha256": digest_key(name)} for number, name in enumerate(names)]}


def test_a_service_is_open_to_the_keys_of_its_tenant() -> None:
    snapshot = build_snapshot(build_service(), build_tenant(access=build_keys("one", "two")))

    assert plan_routes(snapshot).routes == (
        Route("team-a", "chat", "acme", (digest_key("one"), digest_key("two")), (), endpoints="chat"),
    )


def test_a_route_carries_the_weight_of_its_tenant() -> None:
    snapshot = build_snapshot(build_service(), build_tenant(weight=7, access=build_keys("one")))

    assert [route.weight for route in plan_routes(snapshot).routes] == [7]


def test_limits_of_tenants_are_part_of_the_table() -> None:
    snapshot = build_snapshot(build_service(), build_tenant(rates={"requestsPerMinute": 60}))

    assert plan_routes(snapshot).rates == (TenantRates("acme", requests_per_minute=60),)


def test_a_service_that_no_key_opens_has_no_route() -> None:
    snapshot = build_snapshot(build_service(), build_service(namespace="nobodys"), build_tenant())

    assert plan_routes(snapshot).routes == ()


def test_a_disputed_namespace_is_opened_by_its_oldest_tenant_alone() -> None:
    older = build_tenant("older", created="2026-01-01T00:00:00Z", access=build_keys("old"))
    newer = build_tenant("newer", created="2026-01-02T00:00:00Z", access=build_keys("new"))

    (route,) = plan_routes(build_snapshot(build_service(), older, newer)).routes

    assert (route.tenant, route.key_digests) == ("older", (digest_key("old"),))


def test_the_table_of_a_large_fleet_fits_into_a_secret() -> None:
    tenants = [
        build_tenant(f"t-{number}", [f"team-{number}"], access=build_keys(*(f"{number}-{key}" for key in range(4))))
        for number in range(1000)
    ]
    services = [build_service(f"s-{number}", f"team-{team}") for team in range(1000) for number in range(5)]

    table = plan_routes(build_snapshot(*tenants, *services))

    packed = table.pack()
    assert len(table.routes) == 5000
    assert len(packed) < 400_000
    assert RoutingTable.unpack(packed) == table
