"""Prometheus' own tool judges the alerts and every query of the dashboards, and plays time for each alert."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from .conftest import Manifest, Render, only
from .test_monitoring import DASHBOARDS, ON, alerts_of, queries_of

OPERATOR = 'namespace="windlass-system", job="windlass-operator-metrics"'
"""Labels of the operator's series, as the chart's ServiceMonitor makes them."""
POD = 'namespace="team-a", pod="chat-1", service="chat", model="m"'
USE = 'namespace="team-a", service="chat", model="m"'
HOLD = "1+0x300"


@pytest.fixture(scope="session")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("missing binary: promtool; install Prometheus (Debian package prometheus)")
    return found


@pytest.fixture(scope="session")
def rules(render: Render) -> Manifest:
    """The rule file that the Prometheus operator makes of the chart's PrometheusRule."""
    return {"groups": only(render(ON), "PrometheusRule")["spec"]["groups"]}


Judge = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def judge(promtool: str, tmp_path: Path) -> Judge:
    def judge(*words: str, **files: Manifest) -> subprocess.CompletedProcess[str]:
        for name, content in files.items():
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
        return subprocess.run([promtool, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    return judge


def test_promtool_accepts_the_alerts(judge: Judge, rules: Manifest) -> None:
    done = judge("check", "rules", "rules.yaml", rules=rules)

    assert (done.returncode, done.stderr) == (0, "")
    assert f"{sum(len(group['rules']) for group in rules['groups'])} rules found" in done.stdout


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_promtool_accepts_every_query_of_a_dashboard(judge: Judge, path: Path) -> None:
    """As recording rules, which hold the same PromQL."""
    queries = queries_of(json.loads(path.read_text()))
    recorded = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]

    done = judge("check", "rules", "--lint=none", "rules.yaml", rules={"groups": [{"name": "a", "rules": recorded}]})

    assert (done.returncode, done.stderr) == (0, "")


def test_promtool_would_notice_a_broken_query(judge: Judge) -> None:
    rule = {"record": "a", "expr": "sum by (a) (rate(b[5m])"}

    assert judge("check", "rules", "rules.yaml", rules={"groups": [{"name": "a", "rules": [rule]}]}).returncode != 0


@dataclass(frozen=True, slots=True)
class Case:
    """Series that make an alert fire after some minutes, and series that keep it quiet."""

    alert: str
    minutes: int
    firing: tuple[tuple[str, str], ...]
    quiet: tuple[tuple[str, str], ...]
    labels: str
    """Labels of the alert that fires."""


def queue(waiting: str, reconciles: str) -> tuple[tuple[str, str], ...]:
    one = f'{OPERATOR}, pod="operator-1"'
    return (
        (f"windlass_reconcile_queue_depth{{{one}}}", waiting),
        (f"windlass_operator_is_leader{{{one}}}", HOLD),
        (f'windlass_reconcile_duration_seconds_count{{{one}, kind="Tenant", result="unchanged"}}', reconciles),
    )


def share(metric: str, labels: str, bad: str, good: str, growth: tuple[int, int]) -> tuple[tuple[str, str], ...]:
    """Two counters: what goes wrong, and what does not."""
    return tuple(
        (f"{metric}{{{labels}, {which}}}", f"0+{step}x300") for which, step in zip((bad, good), growth, strict=True)
    )


def first_tokens(slow: int) -> tuple[tuple[str, str], ...]:
    metric = f"windlass_time_to_first_token_seconds_bucket{{{USE}, "
    return (
        (f'{metric}le="1"}}', "0+10x300"),
        (f'{metric}le="30"}}', f"0+{10 + slow}x300"),
        (f'{metric}le="+Inf"}}', f"0+{10 + slow}x300"),
    )


RECONCILES = "windlass_reconcile_duration_seconds_count"
KIND = f'{OPERATOR}, kind="Tenant"'
READS = "windlass_adapter_read_duration_seconds_count"
CASES = (
    Case(
        "WindlassOperatorDown",
        10,
        ((f"up{{{OPERATOR}}}", "0+0x300"),),
        ((f"up{{{OPERATOR}}}", HOLD),),
        'severity="critical"',
    ),
    Case(
        "WindlassNoLeader",
        10,
        ((f'windlass_operator_is_leader{{{OPERATOR}, pod="operator-1"}}', "0+0x300"),),
        ((f'windlass_operator_is_leader{{{OPERATOR}, pod="operator-1"}}', HOLD),),
        'severity="critical"',
    ),
    Case(
        "WindlassQueueStuck",
        80,
        queue("3+0x300", "5+0x300"),
        queue("3+0x300", "5+1x300"),
        f'{OPERATOR}, pod="operator-1", severity="critical"',
    ),
    Case(
        "WindlassReconcilesFailing",
        40,
        share(RECONCILES, KIND, 'result="failed"', 'result="unchanged"', (3, 7)),
        share(RECONCILES, KIND, 'result="failed"', 'result="unchanged"', (1, 9)),
        'kind="Tenant", severity="warning"',
    ),
    Case(
        "WindlassWritesWhileIdle",
        90,
        ((f'windlass_api_writes_total{{{OPERATOR}, kind="Deployment", verb="apply"}}', "0+10x300"),),
        ((f'windlass_api_writes_total{{{OPERATOR}, kind="Deployment", verb="apply"}}', "0+10x30 300+0x300"),),
        'kind="Deployment", severity="info"',
    ),
    Case(
        "WindlassQueueFull",
        20,
        share("windlass_requests_total", USE, 'outcome="rejected"', 'outcome="stop"', (1, 9)),
        share("windlass_requests_total", USE, 'outcome="rejected"', 'outcome="stop"', (1, 99)),
        f'{USE}, severity="warning"',
    ),
    Case(
        "WindlassCacheFull",
        20,
        ((f"windlass_kv_use_ratio{{{POD}}}", "0.99+0x300"), (f"windlass_requests_waiting{{{POD}}}", "4+0x300")),
        ((f"windlass_kv_use_ratio{{{POD}}}", "0.99+0x300"), (f"windlass_requests_waiting{{{POD}}}", "0+0x300")),
        f'{POD}, severity="warning"',
    ),
    Case(
        "WindlassCanaryAborted",
        20,
        (('windlass_canary_aborted{namespace="team-a", service="chat", canary="next"}', "1+0x300"),),
        (('windlass_canary_aborted{namespace="team-a", service="chat", canary="next"}', "0+0x300"),),
        'namespace="team-a", service="chat", canary="next", severity="info"',
    ),
    Case("WindlassFirstTokenSlow", 20, first_tokens(slow=10), first_tokens(slow=0), f'{USE}, severity="warning"'),
    Case(
        "WindlassGatewayErrors",
        20,
        share(
            "windlass_gateway_requests_total", 'namespace="team-a", service="chat"', 'code="503"', 'code="200"', (1, 9)
        ),
        share(
            "windlass_gateway_requests_total", 'namespace="team-a", service="chat"', 'code="429"', 'code="200"', (9, 1)
        ),
        'namespace="team-a", service="chat", severity="warning"',
    ),
    Case(
        "WindlassAdapterCertificateEnds",
        90,
        (('windlass_adapter_certificate_expiry_timestamp_seconds{namespace="s", pod="a"}', "500000+0x300"),),
        (('windlass_adapter_certificate_expiry_timestamp_seconds{namespace="s", pod="a"}', "2000000+0x300"),),
        'namespace="s", pod="a", severity="critical"',
    ),
    Case(
        "WindlassAdapterReadsFail",
        40,
        share(READS, 'namespace="s", what="pods"', 'result="failed"', 'result="ok"', (6, 4)),
        share(READS, 'namespace="s", what="pods"', 'result="failed"', 'result="ok"', (4, 6)),
        'namespace="s", what="pods", severity="warning"',
    ),
    Case(
        "WindlassPowerLimitRefused",
        20,
        (('windlass_power_gpu_state{node="n", gpu="GPU-a", state="failed"}', HOLD),),
        (
            ('windlass_power_gpu_state{node="n", gpu="GPU-a", state="failed"}', "0+0x300"),
            ('windlass_power_gpu_state{node="n", gpu="GPU-a", state="managed"}', HOLD),
        ),
        'gpu="GPU-a", node="n", severity="warning"',
    ),
    Case(
        "WindlassPowerSourceSilent",
        20,
        (('windlass_power_source_up{node="n", source="kubelet"}', "0+0x300"),),
        (('windlass_power_source_up{node="n", source="kubelet"}', HOLD),),
        'node="n", source="kubelet", severity="warning"',
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
@pytest.mark.parametrize("fires", [True, False], ids=["fires", "is quiet"])
def test_an_alert(judge: Judge, rules: Manifest, case: Case, fires: bool) -> None:
    series = [{"series": name, "values": values} for name, values in (case.firing if fires else case.quiet)]
    alert = f'ALERTS{{alertname="{case.alert}", alertstate="firing", {case.labels}}}'
    query = {
        "expr": f'ALERTS{{alertname="{case.alert}", alertstate="firing"}}',
        "eval_time": f"{case.minutes}m",
        "exp_samples": [{"labels": alert, "value": 1}] if fires else [],
    }
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [query]}
    cases = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}

    done = judge("test", "rules", "cases.yaml", rules=rules, cases=cases)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case(render: Render) -> None:
    assert [alert["alert"] for alert in alerts_of(render(ON))] == [case.alert for case in CASES]
