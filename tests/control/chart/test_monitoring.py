"""Alerts and dashboards ask for metrics that exist, in PromQL that parses, with the labels those metrics have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as grafana

from support.builders import build_service, build_snapshot
from windlass_contract import endpoints, metric_names
from windlass_operator.domain import labels
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.plan import plan_service
from windlass_operator.render.pod import render_pod_template

from .conftest import ROOT, Manifest, Render, environment_of, only

DASHBOARDS = sorted((ROOT / "helm/windlass/dashboards").glob("*.json"))
ON: Manifest = {"monitoring": {name: {"enabled": True} for name in ("serviceMonitor", "podMonitor", "prometheusRule")}}
TARGET_LABELS = {"namespace", "pod", "job", "service", "gpu_class", "node", "canary"}
"""Labels that the monitors of the chart give a target."""
HISTOGRAMS = {
    metric_names.RECONCILE_DURATION: ("kind", "result"),
    metric_names.TIME_TO_FIRST_TOKEN: metric_names.TENANT_LABELS,
    metric_names.TIME_PER_OUTPUT_TOKEN: metric_names.TENANT_LABELS,
    metric_names.REQUEST_DURATION: metric_names.TENANT_LABELS,
    metric_names.QUEUE_TIME: metric_names.TENANT_LABELS,
    metric_names.REQUEST_PHASE: (*metric_names.TENANT_LABELS, "phase"),
    metric_names.PLAN_DURATION: metric_names.MODEL_LABELS,
    metric_names.SPARSE_DENSITY: metric_names.MODEL_LABELS,
    metric_names.SPARSE_RECALL: metric_names.MODEL_LABELS,
    metric_names.STEP_DURATION: metric_names.MODEL_LABELS,
    metric_names.STEP_TOKENS: metric_names.MODEL_LABELS,
    metric_names.GATEWAY_REQUEST_DURATION: metric_names.GATEWAY_LABELS,
    metric_names.GATEWAY_QUEUE_TIME: ("tenant",),
    metric_names.ADAPTER_READ_DURATION: ("what", "result"),
}
PLAIN = {
    metric_names.REQUESTS_RUNNING: metric_names.MODEL_LABELS,
    metric_names.REQUESTS_WAITING: metric_names.MODEL_LABELS,
    metric_names.KV_PAGES_TOTAL: metric_names.MODEL_LABELS,
    metric_names.KV_PAGES_FREE: metric_names.MODEL_LABELS,
    metric_names.KV_PAGES_KEPT: metric_names.MODEL_LABELS,
    metric_names.KV_TENANT_PAGES: metric_names.TENANT_LABELS,
    metric_names.KV_EVICTIONS_TOTAL: metric_names.TENANT_LABELS,
    metric_names.KV_USE_RATIO: metric_names.MODEL_LABELS,
    metric_names.SPARSE_BLOCKS_TOTAL: (*metric_names.MODEL_LABELS, "outcome"),
    metric_names.MODEL_LOAD: metric_names.MODEL_LABELS,
    metric_names.REQUESTS_TOTAL: (*metric_names.TENANT_LABELS, "outcome"),
    metric_names.PROMPT_TOKENS_TOTAL: metric_names.TENANT_LABELS,
    metric_names.GENERATED_TOKENS_TOTAL: metric_names.TENANT_LABELS,
    metric_names.CACHED_TOKENS_TOTAL: metric_names.TENANT_LABELS,
    metric_names.PREEMPTIONS_TOTAL: metric_names.TENANT_LABELS,
    metric_names.RECONCILE_QUEUE_DEPTH: (),
    metric_names.API_WRITES_TOTAL: ("kind", "verb"),
    metric_names.IS_LEADER: (),
    metric_names.GPU_CLASS_DEVICES: ("gpu_class",),
    metric_names.GPU_CLASS_ALLOCATED: ("gpu_class",),
    metric_names.GPU_CLASS_LARGEST_BLOCK: ("gpu_class",),
    metric_names.GPU_CLASS_FRAGMENTED: ("gpu_class",),
    metric_names.CANARY_TRAFFIC: metric_names.CANARY_LABELS,
    metric_names.CANARY_ABORTED: metric_names.CANARY_LABELS,
    metric_names.COST_PER_HOUR: metric_names.COST_LABELS,
    metric_names.COST_PER_MILLION_TOKENS: metric_names.COST_LABELS,
    metric_names.COST_TOTAL: metric_names.COST_LABELS,
    metric_names.TENANT_GPUS: ("tenant", "gpu_class", "amount"),
    metric_names.GATEWAY_REQUESTS_TOTAL: (*metric_names.GATEWAY_LABELS, "code"),
    metric_names.GATEWAY_IN_FLIGHT: metric_names.GATEWAY_LABELS,
    metric_names.GATEWAY_TOKENS_TOTAL: (*metric_names.GATEWAY_LABELS, "kind"),
    metric_names.GATEWAY_LIMITED_TOTAL: (*metric_names.GATEWAY_LABELS, "limit"),
    metric_names.GATEWAY_CANARY_REQUESTS_TOTAL: metric_names.GATEWAY_CANARY_LABELS,
    metric_names.GATEWAY_DEMAND: metric_names.GATEWAY_LABELS,
    metric_names.GATEWAY_HELD: metric_names.GATEWAY_LABELS,
    metric_names.GATEWAY_QUEUED: metric_names.GATEWAY_LABELS,
    metric_names.ADAPTER_REQUESTS_TOTAL: ("api", "code"),
    metric_names.ADAPTER_CERTIFICATE_EXPIRY: (),
    metric_names.POWER_LIMIT: metric_names.GPU_LABELS,
    metric_names.POWER_WANTED_LIMIT: metric_names.GPU_LABELS,
    metric_names.POWER_CLOCK_CAP: metric_names.GPU_LABELS,
    metric_names.POWER_DRAW: metric_names.GPU_LABELS,
    metric_names.POWER_ENERGY_TOTAL: metric_names.GPU_LABELS,
    metric_names.POWER_GPU_STATE: (*metric_names.GPU_LABELS, "state"),
    metric_names.POWER_SERVICE_ENERGY_TOTAL: metric_names.SERVICE_LABELS,
    metric_names.POWER_SERVICE_TOKENS_TOTAL: metric_names.SERVICE_LABELS,
    metric_names.POWER_JOULES_PER_TOKEN: metric_names.SERVICE_LABELS,
    metric_names.POWER_WRITES_TOTAL: ("what", "result"),
    metric_names.POWER_SOURCE_UP: ("source",),
    "up": (),
}
SERIES = PLAIN | {f"{name}_{part}": labels for name, labels in HISTOGRAMS.items() for part in ("count", "sum")}
SERIES |= {f"{name}_bucket": (*labels, "le") for name, labels in HISTOGRAMS.items()}
"""Every series that Prometheus can have of us, with its labels."""


def alerts_of(manifests: list[Manifest]) -> list[Manifest]:
    return [rule for group in only(manifests, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]


def problems_of(expression: str) -> Iterator[str]:
    """Yield what a query asks for and no series has."""
    parsed = promql.parse(expression)
    names: set[str] = set()
    asked: set[str] = set()
    for node in nodes_of(parsed):
        if isinstance(node, promql.VectorSelector):
            names.add(node.name or "")
            asked |= {matcher.name for matcher in node.matchers.matchers}
    for name in names - SERIES.keys():
        yield f"no such series: {name}"
    known = TARGET_LABELS | {label for name in names for label in SERIES.get(name, ())}
    grouped = re.findall(r"\b(?:by|on|ignoring|without) ?\(([^)]*)\)", expression)
    asked |= {label.strip() for words in grouped for label in words.split(",")}
    for label in asked - known:
        yield f"no such label: {label}"


def nodes_of(expression: Any) -> Iterator[Any]:
    """Yield an expression and everything inside it."""
    yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector", "vs", "param"):
        inner = getattr(expression, name, None)
        if inner is not None and not isinstance(inner, str):
            yield from nodes_of(inner)
    for argument in getattr(expression, "args", None) or ():
        yield from nodes_of(argument)


def queries_of(dashboard: Manifest) -> list[str]:
    """Queries of a dashboard as Grafana would send them."""
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [query.replace("$__rate_interval", "5m").replace("$__range", "6h").replace("$", "") for query in queries]


def test_the_names_here_are_all_that_the_contract_knows() -> None:
    words = {value for name, value in vars(metric_names).items() if name.isupper() and isinstance(value, str)}
    elsewhere = set(metric_names.DERIVED)  # which no Prometheus sees

    assert set(HISTOGRAMS) | set(PLAIN) - {"up"} == {word for word in words if word.startswith("windlass_")} - elsewhere


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        pytest.param("sum(rate(windlass_nothing[5m]))", "no such series: windlass_nothing", id="metric"),
        pytest.param("sum by (host) (windlass_kv_use_ratio)", "no such label: host", id="group"),
        pytest.param('windlass_kv_use_ratio{tenant="a"}', "no such label: tenant", id="matcher"),
        pytest.param(
            "min_over_time(rate(windlass_nothing[5m])[1h:5m])", "no such series: windlass_nothing", id="sub-query"
        ),
        pytest.param(
            "histogram_quantile(0.9, sum by (le) (rate(windlass_nothing[5m]))) > 1 and on (pod) up",
            "no such series: windlass_nothing",
            id="nested",
        ),
    ],
)
def test_the_check_itself_finds(query: str, problem: str) -> None:
    assert problem in list(problems_of(query))


def test_alerts_ask_for_what_exists(render: Render) -> None:
    alerts = alerts_of(render(ON))

    assert len(alerts) == 14
    assert {
        alert["alert"]: list(problems_of(alert["expr"])) for alert in alerts if list(problems_of(alert["expr"]))
    } == {}


def test_alerts_on_the_operator_look_at_this_installation_only(render: Render) -> None:
    manifests = render(ON, namespace="elsewhere", release="prod")
    service = only(manifests, "Service")["metadata"]["name"]

    for alert in alerts_of(manifests)[:5]:
        assert f"namespace='elsewhere', job='{service}'" in alert["expr"]


def test_every_alert_has_severity_words_and_a_runbook(render: Render) -> None:
    for alert in alerts_of(render(ON)):
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        assert re.fullmatch(r"\d+[smh]", alert["for"])
        assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert "<" not in str(alert["annotations"])
        shown = re.findall(r"\$labels\.(\w+)", str(alert["annotations"]))
        assert all(re.search(rf"\b{label}\b", alert["expr"]) for label in shown), alert["alert"]


def test_every_runbook_is_an_anchor_of_the_troubleshooting_page(render: Render) -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    titles = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    anchors |= set(re.findall(r'<a (?:id|name)="([^"]+)"', page))

    wanted = {alert["annotations"]["runbook_url"].partition("#")[2] for alert in alerts_of(render(ON))}
    assert wanted <= anchors


def test_a_silent_leader_is_noticed_after_three_resyncs(render: Render) -> None:
    values = ON | {"operator": {"resyncIntervalSeconds": 1000}}

    (stuck,) = (alert for alert in alerts_of(render(values)) if alert["alert"] == "WindlassQueueStuck")

    assert "[3000s]" in stuck["expr"]
    assert stuck["for"] == "3000s"


def test_thresholds_come_from_values(render: Render) -> None:
    thresholds = {"failedRatio": 0.11, "rejectedRatio": 0.12, "cacheUseRatio": 0.13, "writesPerMinute": 14}
    thresholds |= {"timeToFirstTokenSeconds": 1.5, "gatewayErrorRatio": 0.15}
    values: Manifest = {"monitoring": {"prometheusRule": {"enabled": True, "thresholds": thresholds}}}

    text = " ".join(alert["expr"] for alert in alerts_of(render(values)))

    for number in thresholds.values():
        assert f"> {number}" in text


def test_the_monitors_find_the_operator_and_the_replicas(render: Render) -> None:
    manifests = render(ON)
    monitor, service = only(manifests, "ServiceMonitor"), only(manifests, "Service")

    assert service["metadata"]["labels"].items() >= monitor["spec"]["selector"]["matchLabels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert only(manifests, "PodMonitor")["spec"]["namespaceSelector"] == {"any": True}
    assert environment_of(manifests)["WINDLASS_PROBE_PORT"] == "8080"


def test_in_namespaced_mode_only_replicas_there_are_scraped(render: Render) -> None:
    manifests = render(ON | {"watchNamespaces": ["team-a"]})

    assert only(manifests, "PodMonitor")["spec"]["namespaceSelector"] == {"matchNames": ["team-a"]}


def test_the_pod_monitor_selects_the_labels_port_and_path_that_replicas_have(render: Render) -> None:
    service = build_service()
    pod = render_pod_template(plan_service(service, build_snapshot(service), FleetSettings()), FleetSettings())

    monitor = only(render(ON), "PodMonitor")["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]

    (component,) = monitor["selector"]["matchExpressions"]
    assert pod["metadata"]["labels"].items() >= monitor["selector"]["matchLabels"].items()
    assert component == {"key": labels.COMPONENT, "operator": "In", "values": [labels.RUNTIME, labels.CANARY_COMPONENT]}
    assert endpoint["port"] in [port["name"] for port in pod["spec"]["containers"][0]["ports"]]
    assert endpoint["path"] == endpoints.METRICS_PATH
    sources = [source for item in endpoint["relabelings"] for source in item["sourceLabels"]]
    known = {
        re.sub(r"[^a-z0-9]", "_", label) for label in (*pod["metadata"]["labels"], labels.GPU_CLASS, labels.CANARY)
    }
    assert {source.removeprefix("__meta_kubernetes_pod_label_") for source in sources} <= known


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_ask_for_what_exists(path: Path) -> None:
    dashboard = json.loads(path.read_text())

    queries = queries_of(dashboard)

    assert queries
    assert {query: found for query in queries if (found := list(problems_of(query)))} == {}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_are_whole(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    variables = {item["name"] for item in dashboard["templating"]["list"]}
    panels = dashboard["panels"]

    assert dashboard["uid"] == f"windlass-{path.stem}"
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    used = set(re.findall(r"\$\{?(\w+)", path.read_text())) - {"__rate_interval", "__range", "__all"}
    assert used == variables
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_lose_nothing_in_the_types_that_grafana_makes_from_its_schema(path: Path) -> None:
    """Fields that the schema does not know would be dropped. No Grafana renders them here."""
    dashboard = json.loads(path.read_text())
    plugins.register_default_plugins()

    read = json.loads(json.dumps(grafana.Dashboard.from_json(dashboard), cls=JSONEncoder))

    unknown = {"definition"}  # of a variable: Grafana writes it beside the query, and its schema leaves it out
    assert {field for field in lost_fields(dashboard, read) if field.rpartition(".")[2] not in unknown} == set()


def lost_fields(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Paths of what is not in `after`, or differs there."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name, value in before.items():
            yield from lost_fields(value, after.get(name), f"{path}.{name}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, value in enumerate(before):
            yield from lost_fields(value, after[number], f"{path}.{number}")
    elif before != after:
        yield path


def test_a_field_that_grafana_does_not_know_would_be_noticed() -> None:
    dashboard = json.loads(DASHBOARDS[0].read_text())
    dashboard["panels"][0]["fieldConfig"]["defaults"]["units"] = "s"
    plugins.register_default_plugins()

    read = json.loads(json.dumps(grafana.Dashboard.from_json(dashboard), cls=JSONEncoder))

    assert ".panels.0.fieldConfig.defaults.units" in set(lost_fields(dashboard, read))


def test_every_dashboard_that_was_promised_shows_what_was_promised() -> None:
    """Latency, throughput, queue, cache and cost on each; quota where it is shared, power where GPUs are."""
    shown = {path.stem: " ".join(queries_of(json.loads(path.read_text()))) for path in DASHBOARDS}
    everywhere = (
        metric_names.TIME_TO_FIRST_TOKEN,
        metric_names.GENERATED_TOKENS_TOTAL,
        metric_names.REQUESTS_WAITING,
        metric_names.KV_USE_RATIO,
        metric_names.COST_PER_MILLION_TOKENS,
        metric_names.POWER_SERVICE_ENERGY_TOTAL,
    )

    for name in ("fleet", "tenants", "services"):
        assert [metric for metric in everywhere if metric not in shown[name]] == []
    assert metric_names.TENANT_GPUS in shown["fleet"]
    assert metric_names.TENANT_GPUS in shown["tenants"]
    assert metric_names.POWER_DRAW in shown["fleet"]


def test_variables_of_dashboards_ask_for_what_exists() -> None:
    for path in DASHBOARDS:
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] != "query":
                continue
            selector, _, label = variable["definition"].removeprefix("label_values(").rstrip(")").rpartition(", ")
            assert list(problems_of(selector.replace("$", ""))) == []
            assert label in TARGET_LABELS | set(metric_names.TENANT_LABELS)


def test_every_panel_of_ours_shows_a_metric_and_every_metric_has_a_panel() -> None:
    text = " ".join(query for path in DASHBOARDS for query in queries_of(json.loads(path.read_text())))

    missing = [name for name in (*HISTOGRAMS, *PLAIN) if not re.search(rf"\b{name}(_bucket|_count|_sum)?\b", text)]
    # Pages in use are shown as a share; energy by service, not by GPU.
    assert missing == [metric_names.KV_PAGES_FREE, metric_names.POWER_ENERGY_TOTAL, "up"]


def test_dashboards_arrive_as_their_files(render: Render) -> None:
    made = [item for item in render({"monitoring": {"dashboards": {"enabled": True}}}) if item["kind"] == "ConfigMap"]

    assert [json.loads(text) for item in made for text in item["data"].values()] == [
        json.loads(path.read_text()) for path in DASHBOARDS
    ]
    assert all(item["metadata"]["labels"]["grafana_dashboard"] == "1" for item in made)
