"""`windlass explain SERVICE`: the planner over a live picture, and what the operator has written."""

from __future__ import annotations

import datetime
from dataclasses import replace

import pytest
from click.testing import CliRunner

from support.builders import build_gpu_class, build_node, build_service, build_snapshot, build_tenant, build_workload
from windlass_operator.cli.explain import explain
from windlass_operator.cli.explain_live import explain_picture
from windlass_operator.cli.explain_words import tell
from windlass_operator.cluster.kubernetes_cache import ObjectCache
from windlass_operator.cluster.kubernetes_reader import Gap, Picture
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_services
from windlass_operator.domain.snapshot import Snapshot
from windlass_operator.errors import InvalidInput

NOW = datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC)


def build_world(**spec) -> Snapshot:
    chat = build_service("chat", classes=["h200"], replicas=3, **spec)
    refused = {"type": "Ready", "status": "False", "reason": "QuotaExceeded", "message": "needs 3 x h200"}
    chat = chat.model_validate({**chat.model_dump(by_alias=True), "status": {"conditions": [refused]}})
    workloads = {"team-a/other": build_workload(1, gpu_class="h200")}
    other = build_service("other", classes=["h200"], created="2025-01-01T00:00:00Z")
    tenant = build_tenant(gpus={"h200": 2})
    return build_snapshot(chat, other, tenant, build_gpu_class(), nodes=[build_node()], workloads=workloads)


def look(snapshot: Snapshot, *names: str, gaps: tuple[Gap, ...] = (), namespace: str = "team-a"):
    picture = Picture(snapshot, ObjectCache(), gaps, environment={})
    return explain_picture(names, picture, namespace, NOW)


def test_the_answer_is_the_planners_with_what_runs_now_and_the_smallest_change() -> None:
    snapshot = build_world()
    (chat,) = [plan for plan in plan_services(snapshot, FleetSettings()) if plan.key.name == "chat"]

    told = look(snapshot, "chat")
    (one,) = told["services"]

    assert told["notes"] == []
    assert one["refusal"]["message"] == chat.refusal.message == "needs 3 x h200, acme uses 1 of 2"
    assert one["refusal"]["nextStep"] == chat.refusal.next_step
    assert [item["order"] for item in one["suggestions"]] == [item.order for item in chat.suggestions]
    assert one["conditions"] == [
        {"type": "Ready", "status": "False", "reason": "QuotaExceeded", "message": "needs 3 x h200"}
    ]
    lines = tell(one).splitlines()
    assert "  Ready False (QuotaExceeded): needs 3 x h200" in lines
    assert "  would admit it: lower spec.replicas to 1 (tenant)" in lines


def test_several_services_are_told_in_the_order_they_are_named() -> None:
    assert [one["name"] for one in look(build_world(), "other", "chat")["services"]] == ["other", "chat"]


def test_a_service_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(InvalidInput, match="InferenceService team-a/chatt: expected one of those there: chat, other"):
        look(build_world(), "chatt")


def test_without_the_right_to_read_what_decides_the_status_is_repeated() -> None:
    told = look(build_world(), "chat", gaps=(Gap("Tenant"),))

    (one,) = told["services"]
    assert one.keys() == {"namespace", "name", "conditions"}
    assert told["notes"][-1] == "Tenant objects decide too, so this repeats what the status says"
    assert "  Ready False (QuotaExceeded): needs 3 x h200" in tell(one)


def test_unknown_nodes_are_noted() -> None:
    told = look(replace(build_world(), nodes=None), "chat", gaps=(Gap("Node"),))

    assert "free devices are unknown, because nodes or pods may not be read everywhere" in told["notes"]


def test_files_and_services_in_one_command_are_refused(tmp_path) -> None:
    result = CliRunner().invoke(explain, [str(tmp_path), "chat"])

    assert result.exit_code == 2
    assert "expected files or names of services, found both; chat is no file" in result.stderr


def test_a_context_that_the_kubeconfig_lacks_is_said_plainly(tmp_path) -> None:
    config = tmp_path / "config"
    config.write_text(
        "apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: 'https://127.0.0.1:1'}}]\n"
        "users: [{name: u, user: {token: t}}]\ncontexts: [{name: c, context: {cluster: a, user: u}}]\n"
        "current-context: c\n"
    )

    result = CliRunner().invoke(explain, ["chat", "--kubeconfig", str(config), "--context", "prod"])

    assert result.exit_code == 1
    assert "prod" in str(result.exception)
