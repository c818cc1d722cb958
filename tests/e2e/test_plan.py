"""`windlass plan` against a real control plane: it says what happens then, and writes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.audit_log import AuditLog
from support.control_plane import ControlPlane, free_ports
from support.kube_client import KubeClient, Manifest, eventually
from support.services import API, APPS, children, service, tenant, wait_ready
from support.tokens import request_token

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("operator", "clean")]

Plan = Callable[..., tuple[int, dict[str, Any]]]
GPU = {"accelerator": {"classes": ["h200"]}, "replicas": 2}


@pytest.fixture
def plan(control_plane: ControlPlane, tmp_path: Path) -> Plan:
    """Run `windlass plan -o json` on some objects; returns exit code and what it says."""

    def run(*objects: Manifest, kubeconfig: Path = control_plane.kubeconfig, flags: tuple[str, ...] = ()) -> Any:
        file = tmp_path / "in.yaml"
        file.write_text(yaml.safe_dump_all(objects))
        done = run_plan(file, "--kubeconfig", str(kubeconfig), "-o", "json", *flags)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    return run


def run_plan(file: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "windlass_operator", "plan", str(file), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def of(told: dict[str, Any], kind: str = "InferenceService") -> dict[str, Any]:
    """What is told of the one object of a kind."""
    (found,) = [one for one in told["objects"] if one["kind"] == kind]
    return found


def touched(one: dict[str, Any]) -> dict[str, set[str]]:
    """`Kind/name` of the children by what would happen to them."""
    actions: dict[str, set[str]] = {}
    for child in one["children"]:
        actions.setdefault(child["action"], set()).add(f"{child['kind']}/{child['name']}")
    return actions


def names(kube: KubeClient) -> set[str]:
    """`Kind/name` of the children there are."""
    return {f"{child['kind']}/{child['metadata']['name']}" for child in children(kube)}


def test_what_is_applied_already_changes_nothing(kube: KubeClient, plan: Plan) -> None:
    kube.apply(service(**GPU), manager="kubectl")
    wait_ready(kube)

    code, told = plan(service(**GPU), flags=("--exit-code",))

    assert code == 0
    assert of(told)["action"] == "unchanged"
    assert touched(of(told)).keys() == {"unchanged"}
    assert "rollout" not in of(told)


@pytest.mark.own_plane
def test_a_plan_says_what_happens_then_and_writes_nothing(kube: KubeClient, plan: Plan, audit: AuditLog) -> None:
    kube.apply(service(**GPU), manager="kubectl")
    wait_ready(kube)
    edited = service(**GPU, limits={"maxRunningRequests": 8})
    before, mark = names(kube), audit.mark()

    code, told = plan(edited, flags=("--exit-code",))

    assert code == 2
    assert audit.writes(mark, "admin") == []
    assert audit.dry_runs(mark)
    assert names(kube) == before
    one = of(told)
    (change,) = one["changes"]
    assert (change["path"], change["after"]) == ("spec.limits.maxRunningRequests", 8)
    assert one["restarts"] == 2
    assert [step["action"] for step in one["rollout"]["steps"]] == ["Surge", "Surge"]
    assert one["gpus"] | {"freeNow": 6} == {
        "class": "h200",
        "perReplica": 1,
        "devices": 2,
        "nodes": 2,
        "classDevices": 8,
        "freeNow": 6,
    }

    kube.apply(edited, manager="kubectl")
    wait_ready(kube, timeout_s=60)
    predicted = touched(one)
    gone = predicted.get("delete", set())
    eventually(lambda: names(kube), lambda found: found == before - gone | predicted.get("create", set()))
    assert "Deployment/chat" in predicted["update"]
    assert plan(edited, flags=("--exit-code",))[0] == 0


def test_a_field_that_the_file_no_longer_has_is_told(kube: KubeClient, plan: Plan) -> None:
    kube.apply(service(**GPU, limits={"maxRunningRequests": 8}), manager="kubectl")
    wait_ready(kube)

    _, told = plan(service(**GPU))

    (change,) = of(told)["changes"]
    assert (change["path"], change["before"], change["after"]) == ("spec.limits.maxRunningRequests", 8, 64)


def test_a_new_service_is_told_whole(kube: KubeClient, plan: Plan) -> None:
    code, told = plan(service("new", **GPU))

    assert code == 0
    assert (of(told)["action"], of(told)["runs"]) == ("create", True)
    assert "Deployment/new" in touched(of(told))["create"]
    (quota,) = [one for one in told["quota"] if one["class"] == "h200"]
    assert (quota["tenant"], quota["after"] - quota["before"]) == ("a", 2)
    assert kube.get(API, "InferenceService", "new", "team-a") is None


@pytest.mark.parametrize(
    ("namespace", "spec", "reason", "words"),
    [
        pytest.param("team-a", {**GPU, "replicas": 7}, "QuotaExceeded", "needs 7 x h200", id="the planner"),
        pytest.param("nowhere", {}, "NotFound", "nowhere", id="the API server"),
    ],
)
def test_a_refusal_comes_with_the_next_step(
    plan: Plan, namespace: str, spec: dict[str, Any], reason: str, words: str
) -> None:
    code, told = plan(service("new", namespace, **spec))

    refusal = of(told)["refusal"]
    assert code == 1
    assert (refusal["reason"], bool(refusal["nextStep"])) == (reason, True)
    assert words in refusal["message"]


def test_a_tenant_and_its_first_service_are_planned_together(kube: KubeClient, plan: Plan) -> None:
    code, told = plan(
        tenant("fresh", "team-fresh", gpus={"h200": 1}), service("new", "team-fresh", **GPU | {"replicas": 1})
    )

    assert code == 0
    assert "Namespace/team-fresh" in touched(of(told, "Tenant"))["create"]
    assert of(told)["runs"]
    assert kube.get("v1", "Namespace", "team-fresh") is None


def test_a_blocked_rollout_is_known_before_it_begins(kube: KubeClient, plan: Plan) -> None:
    full = {"accelerator": {"classes": ["edge-l4"]}, "replicas": 2, "rollout": {"minAvailable": 2}}
    kube.apply(service(**full), manager="kubectl")
    wait_ready(kube)

    _, told = plan(service(**full, limits={"maxRunningRequests": 8}))

    assert of(told)["rollout"]["state"] == "Blocked"
    assert any("lower spec.rollout.minAvailable" in warning for warning in of(told)["warnings"])


@pytest.fixture
def editor(control_plane: ControlPlane, kube: KubeClient, operator: object, tmp_path: Path) -> Iterator[Path]:
    """Kubeconfig of an editor of team-edit, with the role that Windlass gives it."""
    subject = {"kind": "ServiceAccount", "name": "ci", "namespace": "team-edit", "role": "Editor"}
    kube.apply(tenant("edit", "team-edit", subjects=[subject], gpus={"h200": 1}))
    eventually(lambda: kube.get("v1", "Namespace", "team-edit"), bool)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ci", "namespace": "team-edit"}}
    kube.apply(account)
    eventually(lambda: kube.list("rbac.authorization.k8s.io/v1", "RoleBinding", "team-edit"), bool)
    yield control_plane.access(request_token(kube, "team-edit", "ci")).write_kubeconfig(tmp_path / "editor.json")
    kube.delete(API, "Tenant", "edit")
    kube.delete("v1", "Namespace", "team-edit")
    eventually(lambda: kube.get("v1", "Namespace", "team-edit"), lambda found: found is None, timeout_s=60)


def test_a_tenants_editor_learns_what_it_may_and_what_is_missing(kube: KubeClient, plan: Plan, editor: Path) -> None:
    kube.apply(service("chat", "team-edit"))
    eventually(lambda: kube.get(APPS, "Deployment", "chat", "team-edit"), bool)

    code, told = plan(service("chat", "team-edit", replicas=2), kubeconfig=editor)

    assert code == 0
    assert [change["path"] for change in of(told)["changes"]] == ["spec.replicas"]
    assert "Tenant and GPUClass objects may not be read" in told["notes"][0]
    assert "children" not in of(told)


def test_a_tenants_editor_is_told_what_it_may_not_write(plan: Plan, editor: Path) -> None:
    code, told = plan(tenant("edit", "team-edit", gpus={"h200": 8}), kubeconfig=editor)

    assert code == 1
    assert of(told, "Tenant")["refusal"]["reason"] == "Forbidden"


def test_people_read_lines(kube: KubeClient, control_plane: ControlPlane, tmp_path: Path) -> None:
    kube.apply(service(**GPU), manager="kubectl")
    wait_ready(kube)
    file = tmp_path / "in.yaml"
    file.write_text(yaml.safe_dump(service(**GPU, limits={"maxRunningRequests": 8})))

    done = run_plan(file, "--kubeconfig", str(control_plane.kubeconfig))

    assert done.returncode == 0
    assert "InferenceService team-a/chat: update\n  spec.limits.maxRunningRequests: 64 -> 8\n" in done.stdout
    assert "restarts 2 pods, one after the other" in done.stdout
    assert done.stdout.endswith("Plan: 1 to update. Nothing was written.\n")


def test_without_a_cluster_the_way_to_plan_offline_is_named(control_plane: ControlPlane, tmp_path: Path) -> None:
    config = json.loads(control_plane.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_ports(1)[0]}"
    kubeconfig, file = tmp_path / "nowhere.json", tmp_path / "in.yaml"
    kubeconfig.write_text(json.dumps(config))
    file.write_text(yaml.safe_dump(service()))

    done = run_plan(file, "--kubeconfig", str(kubeconfig))

    assert done.returncode == 1
    assert "windlass explain FILE..." in done.stderr
    assert "Traceback" not in done.stderr
