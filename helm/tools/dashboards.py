"""The Grafana dashboards of the chart, as data: what each panel asks for. `make manifests` writes them as JSON.

Panels are laid out in the order of their list; a row holds 24 columns. Every query takes the namespaces, services or
tenants that the variables of its dashboard select.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]

COLUMNS: Final = 24
SCHEMA_VERSION: Final = 41
_DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_RATE: Final = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Query:
    """One line, or one per series."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. A unit is a name that Grafana knows."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "none"
    description: str = ""
    kind: str = "timeseries"
    width: int = 12
    height: int = 8
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of a dashboard: the values of a label."""

    name: str
    label: str
    series: str
    multi: bool = True


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard; its file is `NAME.json`."""

    name: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    panels: tuple[Panel, ...]


def stat(title: str, expr: str, description: str, unit: str = "none", width: int = 4) -> Panel:
    """One number."""
    return Panel(title, (Query(expr, title.lower()),), unit, description, kind="stat", width=width, height=5, low=0)


def quantile(share: float, metric: str, chosen: str, by: str = "") -> str:
    """A quantile of a histogram."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({labels}) (rate({metric}_bucket{{{chosen}}}{_RATE})))"


def quantiles(metric: str, chosen: str) -> tuple[Query, ...]:
    """Median and the two quantiles that hurt."""
    shares = ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"))
    return tuple(Query(quantile(share, metric, chosen), legend) for share, legend in shares)


def total(metric: str, chosen: str, by: str = "") -> str:
    """A sum over time series that count."""
    summed = f"sum by ({by}) " if by else "sum"
    return f"{summed}(rate({metric}{{{chosen}}}{_RATE}))".replace("{}", "")


def ratio(above: str, below: str, chosen: str, by: str) -> str:
    """Growth of one counter by growth of another."""
    return f"{total(above, chosen, by)} / {total(below, chosen, by)}"


def once(metric: str, chosen: str, by: str) -> str:
    """Figures that every operator exports: the largest of them counts once."""
    return f"max by ({by}) ({metric}{{{chosen}}})".replace("{}", "")


def gpus(chosen: str, amount: str = "") -> str:
    """GPUs of tenants."""
    matchers = [part for part in (chosen, f'amount="{amount}"' if amount else "") if part]
    return once("windlass_tenant_gpus", ", ".join(matchers), "tenant, gpu_class, amount")


def cost(metric: str, chosen: str = "", window: str = "") -> str:
    """Money of services; with a window, how much a counter grew in it."""
    labels = "namespace, service, tenant, currency"
    if window:
        return f"max by ({labels}) (increase({metric}{{{chosen}}}[{window}]))"
    return once(metric, chosen, labels)


# -- operator ----------------------------------------------------------------------------------------------------------

_OURS: Final = 'namespace=~"$namespace"'
_RECONCILES: Final = "windlass_reconcile_duration_seconds"

OPERATOR: Final = Dashboard(
    "operator",
    "Windlass / Operator",
    "The control plane: who leads, what it does, what fails.",
    (Variable("namespace", "Namespace", "windlass_operator_is_leader"),),
    (
        stat(
            "Leaders",
            f"sum(windlass_operator_is_leader{{{_OURS}}})",
            "1 while one operator may write. 0: nothing is repaired.",
        ),
        stat("Operators", f"count(windlass_operator_is_leader{{{_OURS}}})", "Operators that answer."),
        Panel(
            "Objects waiting",
            (Query(f"windlass_reconcile_queue_depth{{{_OURS}}}", "{{pod}}"),),
            description="Keys in the queue of each operator, due or delayed. A leader keeps about one per object: "
            "the next resync.",
            width=16,
            height=5,
            low=0,
        ),
        Panel(
            "Reconciles",
            (Query(total(f"{_RECONCILES}_count", _OURS, "result"), "{{result}}"),),
            "ops",
            "Reconciles per second, by how they ended.",
        ),
        Panel(
            "Reconciles that need attention",
            (
                Query(
                    total(f"{_RECONCILES}_count", f'{_OURS}, result=~"failed|problems|invalid"', "kind, result"),
                    "{{result}} {{kind}}",
                ),
            ),
            "ops",
            "Failed: an error or a bug, in the log. Problems: the cluster refused an object, in its status. Invalid: "
            "not readable by this version.",
        ),
        Panel(
            "Time of a reconcile, 99th percentile",
            (Query(quantile(0.99, _RECONCILES, _OURS, "kind"), "{{kind}}"),),
            "s",
            "Plan, apply and report of one object.",
        ),
        Panel("Time of a reconcile, median", (Query(quantile(0.5, _RECONCILES, _OURS, "kind"), "{{kind}}"),), "s"),
        Panel(
            "Writes to the API server",
            (Query(total("windlass_api_writes_total", _OURS, "kind, verb"), "{{verb}} {{kind}}"),),
            "wps",
            "By kind and verb. Zero while nobody changes anything.",
        ),
        Panel(
            "Requests to the metrics adapter",
            (Query(total("windlass_adapter_requests_total", _OURS, "api, code"), "{{api}} {{code}}"),),
            "reqps",
            "Of autoscalers, by API and status. 404: no value that is young enough.",
        ),
        Panel(
            "Readings of the metrics adapter, 95th percentile",
            (
                Query(
                    quantile(0.95, "windlass_adapter_read_duration_seconds", _OURS, "what, result"),
                    "{{what}} {{result}}",
                ),
            ),
            "s",
            "Each serves all autoscalers for an interval.",
        ),
        Panel(
            "Certificate of the metrics adapter",
            (
                Query(
                    f"min by (pod) (windlass_adapter_certificate_expiry_timestamp_seconds{{{_OURS}}}) - time()",
                    "{{pod}}",
                ),
            ),
            "s",
            "Time until it ends; the adapter renews it long before.",
        ),
    ),
)

# -- fleet -------------------------------------------------------------------------------------------------------------

_CLASS: Final = 'gpu_class=~"$gpu_class"'
_HOUR: Final = "windlass_cost_per_hour"
_MILLION: Final = "windlass_cost_per_million_tokens"
_TTFT: Final = "windlass_time_to_first_token_seconds"
_ENERGY: Final = "windlass_power_service_energy_joules_total"
_POWER_TOKENS: Final = "windlass_power_service_tokens_total"

FLEET: Final = Dashboard(
    "fleet",
    "Windlass / Fleet",
    "Everything that is shared: devices, quota, money, power, and who uses them.",
    (Variable("gpu_class", "GPU class", "windlass_kv_pages_total"),),
    (
        stat("Services", f"count(count by (namespace, service) (windlass_kv_pages_total{{{_CLASS}}}))", "That report."),
        stat("Replicas", f"count(windlass_kv_pages_total{{{_CLASS}}})", "That report."),
        stat("Tokens per second", total("windlass_generated_tokens_total", _CLASS), "Generated.", "short"),
        stat("First token, 95 %", quantile(0.95, _TTFT, _CLASS), "Arrival to first token, all services.", "s"),
        stat("Money per hour", f"sum({cost(_HOUR)})", "Price of the devices held; currency as of the price."),
        stat("Power", "sum(windlass_power_draw_watts)", "Of the GPUs on nodes with a power agent.", "watt"),
        Panel(
            "Generated tokens per second, by tenant",
            (Query(f"topk(10, {total('windlass_generated_tokens_total', _CLASS, 'tenant')})", "{{tenant}}"),),
            "short",
            "The ten largest.",
        ),
        Panel(
            "Requests per second",
            (Query(total("windlass_requests_total", _CLASS, "outcome"), "{{outcome}}"),),
            "reqps",
            "By how they ended.",
        ),
        Panel(
            "Time to first token, 95th percentile",
            (Query(f"topk(10, {quantile(0.95, _TTFT, _CLASS, 'namespace, service')})", "{{namespace}}/{{service}}"),),
            "s",
            "The ten slowest services.",
        ),
        Panel(
            "Requests waiting",
            (
                Query(
                    f"topk(10, sum by (namespace, service) (windlass_requests_waiting{{{_CLASS}}}))",
                    "{{namespace}}/{{service}}",
                ),
                Query("sum(windlass_gateway_requests_held)", "held by gateways"),
            ),
            description="In replicas: the ten longest queues. Held: for services that wake up.",
            low=0,
        ),
        Panel(
            "KV cache in use",
            (
                Query(f"avg by (gpu_class) (windlass_kv_use_ratio{{{_CLASS}}})", "mean {{gpu_class}}"),
                Query(f"max by (gpu_class) (windlass_kv_use_ratio{{{_CLASS}}})", "highest {{gpu_class}}"),
            ),
            "percentunit",
            "Share of the pages, over the replicas of a class.",
            low=0,
            high=1,
        ),
        Panel(
            "GPUs by class",
            (
                Query("max by (gpu_class) (windlass_gpu_class_devices)", "{{gpu_class}} devices"),
                Query("max by (gpu_class) (windlass_gpu_class_devices_allocated)", "{{gpu_class}} allocated"),
            ),
            description="Devices on ready nodes of each GPUClass, and those that replicas hold or wait for.",
            low=0,
        ),
        Panel(
            "GPUs lost to fragmentation",
            (
                Query("max by (gpu_class) (windlass_gpu_class_devices_fragmented)", "{{gpu_class}} lost"),
                Query("max by (gpu_class) (windlass_gpu_class_largest_free_block)", "{{gpu_class}} largest block"),
            ),
            description="Devices on nodes that would be wholly free if replicas lay together, and the most free "
            "devices on one node.",
            low=0,
        ),
        Panel(
            "GPUs held, of those that are the tenant's own",
            (
                Query(
                    f"sum by (tenant, gpu_class) ({gpus('', 'used')})"
                    f" / (sum by (tenant, gpu_class) ({gpus('', 'nominal')}) > 0)",
                    "{{tenant}} {{gpu_class}}",
                ),
            ),
            "percentunit",
            "Above 1 the tenant borrows from its cohort.",
            low=0,
        ),
        Panel(
            "Money per hour, by tenant",
            (Query(f"sum by (tenant, currency) ({cost(_HOUR)})", "{{tenant}} {{currency}}"),),
            description="Price of the devices held, used or not.",
            low=0,
        ),
        Panel(
            "Money per million tokens",
            (
                Query(
                    f"topk(10, {cost(_MILLION)})",
                    "{{namespace}}/{{service}} {{currency}}",
                ),
            ),
            description="Over the last hour; the ten dearest services.",
            low=0,
        ),
        Panel(
            "Power, by node",
            (Query("sum by (node) (windlass_power_draw_watts)", "{{node}}"),),
            "watt",
            "Drawn by the GPUs of a node.",
            low=0,
        ),
        Panel(
            "Energy per token",
            (
                Query(
                    f"topk(10, {ratio(_ENERGY, _POWER_TOKENS, '', 'namespace, service')})", "{{namespace}}/{{service}}"
                ),
            ),
            "joule",
            "Of the GPUs a service holds, by the tokens it generates; the ten dearest.",
            low=0,
        ),
        Panel(
            "Whose power limits are in force",
            (Query("sum by (state) (windlass_power_gpu_state)", "{{state}}"),),
            description="GPUs as found, under a profile, refused by the driver, or in a dry run.",
            low=0,
        ),
        Panel(
            "Power limits",
            (
                Query("sum(windlass_power_limit_watts)", "in force"),
                Query("sum(windlass_power_wanted_limit_watts)", "wanted by profiles"),
                Query("max(windlass_power_wanted_clock_cap_hertz)", "highest clock cap"),
            ),
            "watt",
            "Sum over the GPUs. Wanted covers those under a profile only.",
            low=0,
        ),
        Panel(
            "Writes to the driver",
            (Query(total("windlass_power_writes_total", "", "what, result"), "{{what}} {{result}}"),),
            "wps",
            "Zero while nothing changes.",
        ),
        Panel(
            "Sources of the power agents that answer",
            (Query("min by (source) (windlass_power_source_up)", "{{source}}"),),
            description="0 where one agent gets no answer: its limits stay as they are.",
            low=0,
            high=1,
        ),
    ),
)

# -- tenants -----------------------------------------------------------------------------------------------------------

_TENANT: Final = 'tenant=~"$tenant"'
_HOMES: Final = 'namespace=~"$namespace"'

TENANTS: Final = Dashboard(
    "tenants",
    "Windlass / Tenants",
    "What a tenant may have, what it uses, and what it gets for it.",
    (
        Variable("tenant", "Tenant", "windlass_requests_total", multi=False),
        Variable("namespace", "Namespace", 'windlass_requests_total{tenant=~"$tenant"}'),
    ),
    (
        stat("GPUs held", f"sum({gpus(_TENANT, 'used')})", "Of all classes."),
        stat("GPUs of its own", f"sum({gpus(_TENANT, 'nominal')})", "Of all classes."),
        stat("GPUs borrowed", f"sum({gpus(_TENANT, 'borrowed')})", "From its cohort."),
        stat("GPUs lent", f"sum({gpus(_TENANT, 'lent')})", "To its cohort."),
        stat("Tokens per second", total("windlass_generated_tokens_total", _TENANT), "Generated.", "short"),
        stat("Money per hour", f"sum({cost(_HOUR, _TENANT)})", "Price of the devices held."),
        Panel(
            "GPUs, by class",
            (Query(f"sum by (gpu_class, amount) ({gpus(_TENANT)})", "{{amount}} {{gpu_class}}"),),
            description="Nominal: its own. Used: held now. Borrowed and lent: within its cohort.",
            low=0,
        ),
        Panel(
            "Requests refused at the gateway, by limit",
            (Query(total("windlass_gateway_limited_total", _TENANT, "limit"), "{{limit}}"),),
            "reqps",
            "Rates and budgets of the Tenant; 429 with Retry-After.",
        ),
        Panel(
            "Requests per second, by service",
            (Query(total("windlass_requests_total", _TENANT, "service, outcome"), "{{outcome}} {{service}}"),),
            "reqps",
            "By how they ended.",
        ),
        Panel(
            "Answers of the gateway",
            (Query(total("windlass_gateway_requests_total", _TENANT, "code"), "{{code}}"),),
            "reqps",
            "By status.",
        ),
        Panel(
            "Generated tokens per second, by service",
            (Query(total("windlass_generated_tokens_total", _TENANT, "service"), "{{service}}"),),
            "short",
        ),
        Panel(
            "Tokens at the gateway",
            (Query(total("windlass_gateway_tokens_total", _TENANT, "kind"), "{{kind}}"),),
            "short",
            "What token budgets count.",
        ),
        Panel("Time to first token", quantiles(_TTFT, _TENANT), "s", "Arrival to first token."),
        Panel(
            "Time in the queue, 95th percentile",
            (Query(quantile(0.95, "windlass_queue_time_seconds", _TENANT, "service"), "{{service}}"),),
            "s",
            "Arrival to first step.",
        ),
        Panel(
            "KV cache in use",
            (Query(f"max by (service) (windlass_kv_use_ratio{{{_HOMES}}})", "{{service}}"),),
            "percentunit",
            "The fullest replica of each service in the tenant's namespaces.",
            low=0,
            high=1,
        ),
        Panel(
            "Requests waiting",
            (
                Query(f"sum by (service) (windlass_requests_waiting{{{_HOMES}}})", "{{service}}"),
                Query(f"sum by (service) (windlass_gateway_requests_held{{{_TENANT}}})", "held {{service}}"),
            ),
            description="In replicas, and at gateways for services that wake up.",
            low=0,
        ),
        Panel(
            "Money per hour, by service",
            (Query(f"sum by (service, currency) ({cost(_HOUR, _TENANT)})", "{{service}} {{currency}}"),),
            low=0,
        ),
        Panel(
            "Money per million tokens, by service",
            (Query(cost(_MILLION, _TENANT), "{{service}} {{currency}}"),),
            description="Over the last hour.",
            low=0,
        ),
        Panel(
            "Money spent",
            (
                Query(
                    f"sum by (service, currency) ({cost('windlass_cost_total', _TENANT, '$__range')})",
                    "{{service}} {{currency}}",
                ),
            ),
            description="In the time that is shown.",
            kind="bargauge",
            low=0,
        ),
        Panel(
            "Energy per token, by service",
            (Query(ratio(_ENERGY, _POWER_TOKENS, _HOMES, "service"), "{{service}}"),),
            "joule",
            "Of the GPUs a service holds, on nodes with a power agent.",
            low=0,
        ),
    ),
)

# -- services ----------------------------------------------------------------------------------------------------------

_SERVICE: Final = f'{_HOMES}, service=~"$service"'
_USE: Final = f"{_SERVICE}, {_TENANT}"
_STEP: Final = "windlass_engine_step_duration_seconds"

SERVICES: Final = Dashboard(
    "services",
    "Windlass / Services",
    "InferenceServices and their tenants: latency, throughput, queues, cache, cost and power.",
    (
        Variable("namespace", "Namespace", "windlass_kv_pages_total"),
        Variable("service", "Service", f"windlass_kv_pages_total{{{_HOMES}}}"),
        Variable("tenant", "Tenant", f"windlass_requests_total{{{_SERVICE}}}"),
    ),
    (
        Panel(
            "Requests per second",
            (Query(total("windlass_requests_total", _USE, "outcome"), "{{outcome}}"),),
            "reqps",
            "By how they ended.",
        ),
        Panel(
            "Tokens per second",
            (
                Query(total("windlass_generated_tokens_total", _USE), "generated"),
                Query(total("windlass_prompt_tokens_total", _USE), "prompt"),
            ),
        ),
        Panel("Time to first token", quantiles(_TTFT, _USE), "s", "Arrival to first token."),
        Panel(
            "Time per output token",
            quantiles("windlass_time_per_output_token_seconds", _USE),
            "s",
            "Between two tokens of one answer.",
        ),
        Panel(
            "Traffic of canaries",
            (
                Query(
                    f"max by (service, canary) (windlass_canary_traffic_percent{{{_SERVICE}}})",
                    "{{service}} {{canary}}",
                ),
                Query(f"max by (service, canary) (windlass_canary_aborted{{{_SERVICE}}}) > 0", "aborted: {{canary}}"),
            ),
            "percent",
            "Share of the requests; an aborted canary has none.",
            low=0,
        ),
        Panel(
            "Time in the queue, 95th percentile",
            (Query(quantile(0.95, "windlass_queue_time_seconds", _USE, "service"), "{{service}}"),),
            "s",
            "Arrival to first step.",
        ),
        Panel(
            "Time of a request, 95th percentile",
            (Query(quantile(0.95, "windlass_request_duration_seconds", _USE, "service"), "{{service}}"),),
            "s",
            "Arrival to last token.",
        ),
        Panel(
            "Requests in replicas",
            (
                Query(f"sum by (service) (windlass_requests_running{{{_SERVICE}}})", "running {{service}}"),
                Query(f"sum by (service) (windlass_requests_waiting{{{_SERVICE}}})", "waiting {{service}}"),
            ),
            description="Running ones hold cache pages, waiting ones wait for a place or for pages.",
            low=0,
        ),
        Panel(
            "KV cache in use",
            (Query(f"windlass_kv_use_ratio{{{_SERVICE}}}", "{{pod}}"),),
            "percentunit",
            "Share of the pages, per replica. Near 1 with requests waiting: too small for the load.",
            low=0,
            high=1,
        ),
        Panel(
            "Prompt tokens found in the cache, by tenant",
            (Query(total("windlass_cached_tokens_total", _USE, "tenant"), "{{tenant}}"),),
            description="Per second; they are not computed again.",
            low=0,
        ),
        Panel(
            "Pages of prefixes",
            (
                Query(f"sum by (service) (windlass_kv_pages_kept{{{_SERVICE}}})", "kept {{service}}"),
                Query(f"sum by (tenant) (windlass_kv_tenant_pages{{{_USE}}})", "held or kept by {{tenant}}"),
                Query(total("windlass_kv_evictions_total", _USE, "tenant"), "given up per second by {{tenant}}"),
            ),
            description="Kept pages are free and may be found again.",
            low=0,
        ),
        Panel(
            "Time of a request in its phases, 95th percentile",
            (Query(quantile(0.95, "windlass_request_phase_seconds", _USE, "phase"), "{{phase}}"),),
            "s",
            "Until its turn, until the first token, until the last.",
        ),
        Panel(
            "Preempted requests per second, by tenant",
            (Query(total("windlass_preemptions_total", _USE, "tenant"), "{{tenant}}"),),
            description="They gave up their place or pages and go on later.",
            low=0,
        ),
        Panel(
            "Sparse activation",
            (
                Query(
                    ratio(
                        "windlass_sparse_density_ratio_sum", "windlass_sparse_density_ratio_count", _SERVICE, "service"
                    ),
                    "blocks used {{service}}",
                ),
                Query(
                    ratio(
                        "windlass_sparse_recall_ratio_sum", "windlass_sparse_recall_ratio_count", _SERVICE, "service"
                    ),
                    "output energy in them {{service}}",
                ),
            ),
            "percentunit",
            "Sampled; only replicas with a gate report it.",
            low=0,
            high=1,
        ),
        Panel(
            "Blocks of sparse layers per second",
            (Query(total("windlass_sparse_blocks_total", _SERVICE, "service, outcome"), "{{outcome}} {{service}}"),),
            description="Computed although not wanted: where steps of several sequences share them.",
            low=0,
        ),
        Panel(
            "Time to plan an engine step, 95th percentile",
            (Query(quantile(0.95, "windlass_scheduler_plan_duration_seconds", _SERVICE, "service"), "{{service}}"),),
            "s",
        ),
        Panel(
            "Time of an engine step",
            (
                Query(quantile(0.5, _STEP, _SERVICE, "service"), "median {{service}}"),
                Query(quantile(0.95, _STEP, _SERVICE, "service"), "95 % {{service}}"),
            ),
            "s",
        ),
        Panel(
            "Tokens per engine step",
            (
                Query(
                    ratio("windlass_engine_step_tokens_sum", "windlass_engine_step_tokens_count", _SERVICE, "service"),
                    "{{service}}",
                ),
            ),
            description="How well batching works.",
            low=0,
        ),
        Panel(
            "Generated tokens per second, by tenant",
            (Query(total("windlass_generated_tokens_total", _USE, "tenant"), "{{tenant}}"),),
        ),
        Panel(
            "Rejected and failed requests, by tenant",
            (
                Query(
                    total("windlass_requests_total", f'{_USE}, outcome=~"rejected|failed"', "tenant, outcome"),
                    "{{outcome}} {{tenant}}",
                ),
            ),
            "reqps",
            "Rejected: the queue was full.",
        ),
        Panel(
            "Answers of the gateway",
            (
                Query(total("windlass_gateway_requests_total", _USE, "service, code"), "{{code}} {{service}}"),
                Query(
                    total("windlass_gateway_canary_requests_total", _SERVICE, "canary, code"),
                    "canary {{canary}} {{code}}",
                ),
            ),
            "reqps",
            "By status; those of canaries apart.",
        ),
        Panel(
            "Requests at the gateway",
            (
                Query(f"sum by (service) (windlass_gateway_requests_in_flight{{{_USE}}})", "in flight {{service}}"),
                Query(f"sum by (service) (windlass_gateway_requests_held{{{_USE}}})", "held {{service}}"),
                Query(f"sum by (service) (windlass_gateway_requests_queued{{{_USE}}})", "queued {{service}}"),
                Query(f"sum by (service) (windlass_gateway_demand_requests{{{_USE}}})", "demand {{service}}"),
            ),
            description="Held ones wait for a service that wakes up, queued ones for a place in a full gateway.",
            low=0,
        ),
        Panel(
            "Time of a request at the gateway, 95th percentile",
            (Query(quantile(0.95, "windlass_gateway_request_duration_seconds", _USE, "service"), "{{service}}"),),
            "s",
            "Arrival to last byte.",
        ),
        Panel(
            "Time in the queue of a full gateway, 95th percentile",
            (Query(quantile(0.95, "windlass_gateway_queue_time_seconds", _TENANT, "tenant"), "{{tenant}}"),),
            "s",
        ),
        Panel(
            "Replicas that report",
            (Query(f"count by (service) (windlass_kv_pages_total{{{_SERVICE}}})", "{{service}}"),),
            low=0,
        ),
        Panel(
            "Time to load the model",
            (Query(f"max by (service) (windlass_model_load_seconds{{{_SERVICE}}})", "{{service}}"),),
            "s",
            "From start until the replica could answer.",
            low=0,
        ),
        Panel(
            "Money per million tokens",
            (Query(cost(_MILLION, _SERVICE), "{{service}} {{currency}}"),),
            description="Over the last hour; prices stand in GPUClasses.",
            low=0,
        ),
        Panel(
            "Money per hour",
            (Query(f"sum by (service, currency) ({cost(_HOUR, _SERVICE)})", "{{service}} {{currency}}"),),
            description="Price of the devices held.",
            low=0,
        ),
        Panel(
            "Power",
            (Query(total(_ENERGY, _SERVICE, "service"), "{{service}}"),),
            "watt",
            "Of the GPUs the service holds, on nodes with a power agent.",
            low=0,
        ),
        Panel(
            "Energy per token",
            (
                Query(ratio(_ENERGY, _POWER_TOKENS, _SERVICE, "service"), "{{service}}"),
                Query(f"windlass_power_joules_per_token{{{_SERVICE}}}", "{{service}} on {{node}}"),
            ),
            "joule",
            "Over all nodes, and as each power agent reckons it.",
            low=0,
        ),
    ),
)

DASHBOARDS: Final = (FLEET, OPERATOR, SERVICES, TENANTS)


# -- JSON --------------------------------------------------------------------------------------------------------------


def render_dashboards() -> dict[str, str]:
    """Return the file of each dashboard, by name."""
    return {f"{item.name}.json": json.dumps(render(item), indent=2) + "\n" for item in DASHBOARDS}


def render(dashboard: Dashboard) -> Json:
    """Return the JSON that Grafana imports."""
    return {
        "uid": f"windlass-{dashboard.name}",
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["windlass", dashboard.name],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "",
        "templating": {"list": [_source(), *map(_variable, dashboard.variables)]},
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "Windlass",
                "tags": ["windlass"],
                "asDropdown": True,
                "includeVars": False,
                "keepTime": True,
                "icon": "external link",
                "targetBlank": False,
                "tooltip": "",
                "url": "",
            }
        ],
        "panels": list(_panels(dashboard.panels)),
    }


def _source() -> Json:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "current": {},
    }


def _variable(variable: Variable) -> Json:
    query = f"label_values({variable.series}, {variable.name})"
    chosen: Json = {"selected": True, "text": "All", "value": "$__all"} if variable.multi else {}
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": variable.name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": variable.multi,
        "includeAll": variable.multi,
        **({"allValue": ".*"} if variable.multi else {}),
        "current": chosen,
    }


def _panels(panels: Sequence[Panel]) -> Iterator[Json]:
    """Yield panels from left to right; one that does not fit begins a new row."""
    x = y = height = 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > COLUMNS:
            x, y, height = 0, y + height, 0
        yield _panel(panel, number, x, y)
        x, height = x + panel.width, max(height, panel.height)


def _panel(panel: Panel, number: int, x: int, y: int) -> Json:
    bounds = {name: value for name, value in (("min", panel.low), ("max", panel.high)) if value is not None}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": {"unit": panel.unit, **bounds}, "overrides": []},
        "targets": [_target(query, place) for place, query in enumerate(panel.queries)],
        "options": _OPTIONS[panel.kind],
    }


def _target(query: Query, place: int) -> Json:
    reference = chr(ord("A") + place)
    return {"refId": reference, "datasource": _DATASOURCE, "expr": query.expr, "legendFormat": query.legend}


_REDUCE: Final = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: Final[dict[str, Json]] = {
    "timeseries": {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"], "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": _REDUCE, "colorMode": "value", "graphMode": "area", "textMode": "auto"},
    "bargauge": {"reduceOptions": _REDUCE, "displayMode": "basic", "orientation": "horizontal"},
}
