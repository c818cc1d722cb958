"""The chart's alerts in a real Prometheus: every rule loads and evaluates, and alerts fire on real metrics."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.control_plane import ControlPlane, free_ports
from support.fake_nvml import FakeNvml, build_library
from support.kube_client import Manifest, eventually
from support.metrics_adapter import running_prometheus
from support.operator_process import OperatorProcess
from support.power_agent import PowerAgentProcess

pytestmark = [pytest.mark.cluster, pytest.mark.own_plane]

CHART = str(Path(__file__).parents[2] / "helm" / "windlass")
SYSTEM = "windlass-system"
JOB = "windlass-operator-metrics"
"""Also the name of the operator's metrics Service, by which the alerts know its series."""


@pytest.fixture(scope="module")
def groups(helm: Any) -> list[Manifest]:
    """The groups of the chart's PrometheusRule."""
    switch = "--set=monitoring.prometheusRule.enabled=true"
    rendered = helm("template", "windlass", CHART, "--namespace", SYSTEM, switch)
    (rule,) = (item for item in yaml.safe_load_all(rendered) if item and item["kind"] == "PrometheusRule")
    found: list[Manifest] = rule["spec"]["groups"]
    return found


@pytest.fixture
def agent(control_plane: ControlPlane, tmp_path: Path) -> Iterator[PowerAgentProcess]:
    """A power agent on a node without a kubelet."""
    library = build_library(tmp_path)
    flags = ("--node", "h200-1", "--kubeconfig", str(control_plane.kubeconfig))
    flags += ("--state-folder", str(tmp_path / "state"), "--pod-resources-socket", str(tmp_path / "none.sock"))
    driver = FakeNvml(tmp_path / "node.bin", ["GPU-0"])
    with PowerAgentProcess(driver, library, tmp_path / "agent.log", *flags) as process:
        process.wait_until_ready()
        yield process


@pytest.fixture
def prometheus(
    operator: OperatorProcess, agent: PowerAgentProcess, groups: list[Manifest], tmp_path: Path
) -> Iterator[str]:
    """A Prometheus with the rules as they are, and once more without patience."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("missing binary: prometheus, in PATH")
    hasty = [
        {"name": f"hasty-{group['name']}", "interval": "1s", "rules": [rule | {"for": "1s"} for rule in group["rules"]]}
        for group in groups
    ]
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": groups}))
    (tmp_path / "hasty.yaml").write_text(json.dumps({"groups": hasty}))
    scrapes = [
        target(JOB, operator.probe_port, namespace=SYSTEM, pod="operator-1"),
        target("power", agent.probe_port, node="h200-1"),
    ]
    files = [str(tmp_path / name) for name in ("rules.yaml", "hasty.yaml")]
    with running_prometheus(binary, tmp_path, free_ports(1)[0], rule_files=files, scrape_configs=scrapes) as url:
        yield url


def target(job: str, port: int, **labels: str) -> Manifest:
    static = {"targets": [f"127.0.0.1:{port}"], "labels": labels}
    return {"job_name": job, "honor_labels": True, "static_configs": [static]}


def ask(url: str, path: str) -> Any:
    with urllib.request.urlopen(f"{url}/api/v1/{path}", timeout=10) as answer:
        return json.load(answer)["data"]


def rules_of(url: str) -> list[Manifest]:
    return [rule for group in ask(url, "rules")["groups"] for rule in group["rules"]]


def firing(url: str) -> dict[str, dict[str, str]]:
    """Alerts that fire, with their labels."""
    alerts = ask(url, "alerts")["alerts"]
    return {item["labels"]["alertname"]: item["labels"] for item in alerts if item["state"] == "firing"}


def test_every_rule_of_the_chart_is_loaded_and_evaluates(prometheus: str, groups: list[Manifest]) -> None:
    wanted = sorted(2 * [rule["alert"] for group in groups for rule in group["rules"]])

    def evaluated(rules: list[Manifest]) -> bool:
        hasty = [rule for rule in rules if rule["duration"] == 1]
        return bool(hasty) and all(rule["health"] != "unknown" for rule in hasty)

    rules = eventually(lambda: rules_of(prometheus), evaluated, timeout_s=30)

    assert sorted(rule["name"] for rule in rules) == wanted
    assert [rule["name"] for rule in rules if rule["health"] == "err" or rule.get("lastError")] == []


def test_alerts_fire_on_what_the_operator_and_a_power_agent_really_report(
    prometheus: str, operator: OperatorProcess
) -> None:
    silent = eventually(lambda: firing(prometheus), lambda found: "WindlassPowerSourceSilent" in found, timeout_s=60)
    assert silent["WindlassPowerSourceSilent"]["source"] == "kubelet"
    assert silent["WindlassPowerSourceSilent"]["node"] == "h200-1"
    # The first look may come before the first scrape, and then the operator counts as gone.
    eventually(lambda: firing(prometheus), lambda found: "WindlassOperatorDown" not in found, timeout_s=60)

    operator.stop()

    found = eventually(lambda: firing(prometheus), lambda found: "WindlassOperatorDown" in found, timeout_s=60)
    assert found["WindlassOperatorDown"]["severity"] == "critical"
