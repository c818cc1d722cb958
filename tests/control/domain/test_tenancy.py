"""Whose a namespace is: the oldest claim wins, and the platform's own namespaces are nobody's."""

from __future__ import annotations

import itertools

import pytest

from support.builders import build_tenant
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.tenancy import check_tenancy, claims, explain_tenancy, owners, plan_ownership, tenant_of

SETTINGS = FleetSettings()
OLD = build_tenant("zeta", ["shared", "team-z"], created="2026-01-01T00:00:00Z")
YOUNG = build_tenant("alpha", ["shared", "team-a"], created="2026-02-01T00:00:00Z")


@pytest.mark.parametrize("tenants", list(itertools.permutations([OLD, YOUNG])), ids=["old first", "young first"])
def test_the_older_tenant_owns_a_namespace_both_list(tenants):
    by_name = {tenant.metadata.name: tenant for tenant in tenants}

    assert tenant_of("shared", by_name) is OLD
    assert owners(by_name) == {"shared": OLD, "team-z": OLD, "team-a": YOUNG}


def test_tenants_of_one_age_are_told_apart_by_name():
    twins = [build_tenant(name, ["shared"]) for name in ("beta", "alpha")]

    owner = tenant_of("shared", {tenant.metadata.name: tenant for tenant in twins})
    assert owner is not None
    assert owner.metadata.name == "alpha"


def test_the_younger_tenant_is_told_who_owns_the_namespace_and_keeps_its_others():
    shared, own = plan_ownership(YOUNG, {"zeta": OLD, "alpha": YOUNG}, SETTINGS)

    assert own.problem is None
    assert shared.problem is not None
    assert shared.problem.reason == "NamespaceConflict"
    assert shared.problem.message == "namespace shared belongs to the older Tenant zeta"


@pytest.mark.parametrize("namespace", ["kube-system", "windlass-system", "monitoring"])
def test_no_tenant_gets_a_namespace_of_the_platform(namespace):
    tenant = build_tenant("acme", [namespace])

    (verdict,) = plan_ownership(tenant, {"acme": tenant}, SETTINGS)
    assert verdict.problem is not None
    assert verdict.problem.reason == "NamespaceReserved"
    refusal = check_tenancy(namespace, tenant, SETTINGS)
    assert refusal is not None
    assert refusal.reason == "NamespaceReserved"


def test_a_namespace_without_tenant_names_the_next_step():
    refusal = check_tenancy("team-x", None, SETTINGS)

    assert refusal is not None
    assert refusal.reason == "NoTenant"
    assert "add team-x to spec.namespaces of a Tenant" in refusal.next_step


@pytest.mark.parametrize(
    ("namespace", "tenants", "choice", "reason"),
    [
        pytest.param("any", {}, "none", "no Tenant object", id="cluster without tenants"),
        pytest.param("lost", {"zeta": OLD}, "none", "no Tenant lists namespace lost", id="namespace nobody lists"),
        pytest.param("shared", {"zeta": OLD, "alpha": YOUNG}, "zeta", "also listed by alpha", id="disputed namespace"),
        pytest.param("team-a", {"alpha": YOUNG}, "alpha", "Tenant alpha lists namespace team-a", id="plain ownership"),
    ],
)
def test_ownership_is_explained(namespace, tenants, choice, reason):
    decision = explain_tenancy(namespace, claims(tenants))

    assert decision.choice == choice
    assert reason in decision.reason
