"""The operator may do what its code does and nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from windlass_operator.cluster.kubernetes_kinds import CHILDREN, EVENT, LEASE, OWNERS, WATCHED, ApiKind
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.render.fleet import render_fleet
from windlass_operator.render.tenant import RULES

from .conftest import Manifest, Render, only

Right = tuple[str, str, str]
"""API group, resource and verb."""
READ = ("get", "list", "watch")
NEVER_DELETED = {"Namespace", "PriorityClass"}
"""Namespaces hold what tenants own, and the three PriorityClasses are always wanted, so neither is ever pruned."""
USER_ROLES = ("windlass-view", "windlass-edit", "windlass-platform")


def rights_of(rules: Iterable[Manifest]) -> set[Right]:
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def rights_to_write(kind: ApiKind) -> set[Right]:
    """What server-side apply and pruning ask for."""
    verbs = {"create", "patch"} | (set() if kind.kind in NEVER_DELETED else {"delete"})
    return {(kind.group, kind.plural, verb) for verb in verbs}


def rights_needed(kinds: Iterable[ApiKind]) -> set[Right]:
    """Everything that the code does to some kinds."""
    wanted: set[Right] = set()
    for kind in kinds:
        wanted |= {(kind.group, kind.plural, verb) for verb in READ}
        if kind in CHILDREN:
            wanted |= rights_to_write(kind)
        if kind in OWNERS:
            wanted.add((kind.group, f"{kind.plural}/status", "patch"))
    return wanted


DISCOVER = {("apiregistration.k8s.io", "apiservices", "get")}
READ_METRICS = {
    ("custom.metrics.k8s.io", f"pods/{metric}", "get")
    for metric in ("windlass_requests_running", "windlass_requests_waiting", "windlass_kv_use_ratio")
}
FOLLOW_LOAD = READ_METRICS | {("", "pods", "patch")}
"""Deletion costs, and whether a service may be put to sleep."""
ASK_KUEUE = {("kueue.x-k8s.io", "workloads", "list")}
"""Why it holds pods back."""
POST_EVENTS = {(EVENT.group, EVENT.plural, "create")}
OWN = {kind.plural for kind in OWNERS if kind.namespaced}
"""What tenants write."""
GRANTED = rights_of(rule for rules in RULES.values() for rule in rules)


def test_the_operator_holds_exactly_what_its_code_uses(render: Render) -> None:
    role = only(render(), "ClusterRole", "windlass-operator")

    assert rights_of(role["rules"]) == rights_needed(WATCHED) | POST_EVENTS | DISCOVER | FOLLOW_LOAD | ASK_KUEUE


def test_it_holds_exactly_what_tenants_grant_to_their_members(render: Render) -> None:
    role = only(render(), "ClusterRole", "windlass-operator-grants")

    assert rights_of(role["rules"]) == GRANTED


def test_without_grants_it_writes_nothing_of_its_users_but_status(render: Render) -> None:
    manifests = render({"rbac": {"tenantRoles": False, "userRoles": False}})

    (role,) = (item for item in manifests if item["kind"] == "ClusterRole")
    written = {right for right in rights_of(role["rules"]) if right[0] == OWNERS[0].group and right[2] not in READ}
    assert written == {(kind.group, f"{kind.plural}/status", "patch") for kind in OWNERS}


def test_leases_are_reached_in_its_own_namespace_only(render: Render) -> None:
    manifests = render()
    role = only(manifests, "Role", "windlass-operator-lease")

    assert role["metadata"]["namespace"] == "windlass-system"
    assert rights_of(role["rules"]) == {(LEASE.group, LEASE.plural, verb) for verb in ("create", "get", "update")}
    assert [rule.get("resourceNames") for rule in role["rules"]] == [None, ["windlass-operator"]]
    assert not [item for item in manifests if item["kind"] == "ClusterRole" and LEASE.plural in str(item["rules"])]


def test_priority_classes_are_written_under_three_names_only(render: Render) -> None:
    rules = only(render(), "ClusterRole", "windlass-operator")["rules"]
    (writing,) = (rule for rule in rules if "priorityclasses" in rule["resources"] and "patch" in rule["verbs"])

    made = [manifest["metadata"]["name"] for manifest in render_fleet(FleetSettings())]
    assert writing["resourceNames"] == made


def test_in_namespaced_mode_rights_inside_namespaces_are_given_there_only(render: Render) -> None:
    manifests = render({"watchNamespaces": ["team-a", "team-b"]})
    cluster = only(manifests, "ClusterRole", "windlass-operator")

    assert rights_of(cluster["rules"]) == rights_needed(kind for kind in WATCHED if not kind.namespaced) | DISCOVER
    roles = {
        (item["metadata"]["namespace"], item["metadata"]["name"]): rights_of(item["rules"])
        for item in manifests
        if item["kind"] == "Role"
    }
    inside = rights_needed(kind for kind in WATCHED if kind.namespaced) | POST_EVENTS | FOLLOW_LOAD | ASK_KUEUE
    assert roles == {
        ("team-a", "windlass-operator"): inside,
        ("team-a", "windlass-operator-grants"): GRANTED,
        ("team-b", "windlass-operator"): inside,
        ("team-b", "windlass-operator-grants"): GRANTED,
        ("default", "windlass-operator-events"): POST_EVENTS,
        ("windlass-system", "windlass-operator-lease"): rights_of(
            only(manifests, "Role", "windlass-operator-lease")["rules"]
        ),
    }


def test_in_namespaced_mode_only_those_namespaces_are_written(render: Render) -> None:
    rules = only(render({"watchNamespaces": ["team-a", "team-b"]}), "ClusterRole", "windlass-operator")["rules"]

    (writing,) = (rule for rule in rules if "namespaces" in rule["resources"] and "patch" in rule["verbs"])
    assert writing["resourceNames"] == ["team-a", "team-b"]


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["team-a"]}], ids=["cluster", "namespaced"])
def test_every_role_of_the_operator_is_bound_to_its_account_alone(render: Render, values: Manifest) -> None:
    manifests = render(values)

    def place(item: Manifest) -> tuple[str, str]:
        return item["metadata"].get("namespace", ""), item["metadata"]["name"]

    roles = {place(item) for item in manifests if item["kind"] in ("Role", "ClusterRole")}
    bindings = [item for item in manifests if item["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    assert {place(item) for item in bindings} == {role for role in roles if role[1] not in USER_ROLES}
    for binding in bindings:
        assert binding["roleRef"]["kind"] == binding["kind"].removesuffix("Binding")
        assert binding["roleRef"]["name"] == binding["metadata"]["name"]
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": "windlass-operator", "namespace": "windlass-system"}
        ]


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["team-a"]}], ids=["cluster", "namespaced"])
def test_no_role_holds_a_dangerous_right(render: Render, values: Manifest) -> None:
    rights = {
        right
        for item in render(values)
        if item["kind"] in ("Role", "ClusterRole")
        for right in rights_of(item["rules"])
    }

    for group, resource, verb in rights:
        assert "*" not in (group, resource, verb)
        assert verb not in ("escalate", "bind", "impersonate", "use", "approve", "sign")
        assert resource not in ("secrets", "pods/exec", "pods/attach", "pods/portforward", "pods/ephemeralcontainers")
        assert not resource.startswith(("serviceaccounts/", "nodes/", "clusterrole", "certificatesigning"))
        assert group not in ("apiextensions.k8s.io", "admissionregistration.k8s.io", "certificates.k8s.io")
        # Deletion costs are annotations of pods. Who writes Deployments may change any pod anyway.
        assert not (resource.startswith("pods") and verb not in (*READ, "patch"))
        assert not (resource in ("nodes", "replicasets") and verb not in READ)
        assert not (resource == "namespaces" and verb in ("delete", "deletecollection", "update"))


def test_people_who_may_view_or_edit_see_services(render: Render) -> None:
    manifests = render()
    view, edit, platform = (only(manifests, "ClusterRole", name) for name in USER_ROLES)

    def aggregated(role: Manifest) -> set[str]:
        prefix = "rbac.authorization.k8s.io/aggregate-to-"
        return {name.removeprefix(prefix) for name in role["metadata"]["labels"] if name.startswith(prefix)}

    assert aggregated(view) == {"view", "edit", "admin"}
    assert aggregated(edit) == {"edit", "admin"}
    assert aggregated(platform) == set()
    assert {verb for _, _, verb in rights_of(view["rules"])} == set(READ)
    for role in (view, edit):
        assert {resource.partition("/")[0] for _, resource, _ in rights_of(role["rules"])} == OWN
    rights = rights_of(rule for role in (view, edit, platform) for rule in role["rules"])
    assert not [right for right in rights if right[1].endswith("/status") and right[2] not in READ]
