"""Prometheus names and label sets that both planes agree on.

The runtime exports them, autoscalers and dashboards read them. Every name carries its unit. Label sets are closed;
`tenant` is bounded by MAX_TENANT_LABELS, later tenants share OTHER_TENANT.
"""

from __future__ import annotations

from typing import Final

MAX_TENANT_LABELS: Final = 100
OTHER_TENANT: Final = "_other"

TENANT_LABELS: Final = ("tenant", "model")
MODEL_LABELS: Final = ("model",)

# Gauges of one replica: what autoscaling reads.
REQUESTS_RUNNING: Final = "windlass_requests_running"
REQUESTS_WAITING: Final = "windlass_requests_waiting"
KV_PAGES_TOTAL: Final = "windlass_kv_pages_total"
KV_PAGES_FREE: Final = "windlass_kv_pages_free"
KV_USE_RATIO: Final = "windlass_kv_use_ratio"
KV_PAGES_KEPT: Final = "windlass_kv_pages_kept"
KV_TENANT_PAGES: Final = "windlass_kv_tenant_pages"  # labels: TENANT_LABELS

# Counters per tenant and model.
REQUESTS_TOTAL: Final = "windlass_requests_total"  # + label `outcome`
PROMPT_TOKENS_TOTAL: Final = "windlass_prompt_tokens_total"
GENERATED_TOKENS_TOTAL: Final = "windlass_generated_tokens_total"
CACHED_TOKENS_TOTAL: Final = "windlass_cached_tokens_total"
KV_EVICTIONS_TOTAL: Final = "windlass_kv_evictions_total"
PREEMPTIONS_TOTAL: Final = "windlass_preemptions_total"

# Histograms per tenant and model.
TIME_TO_FIRST_TOKEN: Final = "windlass_time_to_first_token_seconds"
TIME_PER_OUTPUT_TOKEN: Final = "windlass_time_per_output_token_seconds"
REQUEST_DURATION: Final = "windlass_request_duration_seconds"
QUEUE_TIME: Final = "windlass_queue_time_seconds"
REQUEST_PHASE: Final = "windlass_request_phase_seconds"  # + label `phase`
PHASES: Final = ("queue", "prefill", "decode")
"""Values of the `phase` label of REQUEST_PHASE: waiting for a turn, until the first token, until the last."""

# Engine.
STEP_DURATION: Final = "windlass_engine_step_duration_seconds"
STEP_TOKENS: Final = "windlass_engine_step_tokens"
PLAN_DURATION: Final = "windlass_scheduler_plan_duration_seconds"
MODEL_LOAD: Final = "windlass_model_load_seconds"

# Sparse activation; while it is off there are none.
SPARSE_DENSITY: Final = "windlass_sparse_density_ratio"
SPARSE_RECALL: Final = "windlass_sparse_recall_ratio"
SPARSE_BLOCKS_TOTAL: Final = "windlass_sparse_blocks_total"  # + label `outcome`
SPARSE_OUTCOMES: Final = ("computed", "skipped")
"""Values of the `outcome` label of SPARSE_BLOCKS_TOTAL."""

OUTCOMES: Final = ("stop", "length", "cancelled", "rejected", "failed")
"""Values of the `outcome` label of REQUESTS_TOTAL."""

# Gateway.
GATEWAY_REQUESTS_TOTAL: Final = "windlass_gateway_requests_total"  # labels: GATEWAY_LABELS + `code`
GATEWAY_REQUEST_DURATION: Final = "windlass_gateway_request_duration_seconds"
GATEWAY_IN_FLIGHT: Final = "windlass_gateway_requests_in_flight"
GATEWAY_TOKENS_TOTAL: Final = "windlass_gateway_tokens_total"  # labels: GATEWAY_LABELS + `kind`
GATEWAY_LIMITED_TOTAL: Final = "windlass_gateway_limited_total"  # labels: GATEWAY_LABELS + `limit`
GATEWAY_LABELS: Final = ("namespace", "service", "tenant")
GATEWAY_CANARY_REQUESTS_TOTAL: Final = "windlass_gateway_canary_requests_total"
GATEWAY_CANARY_LABELS: Final = ("namespace", "service", "canary", "code")
TOKEN_KINDS: Final = ("prompt", "completion")
"""Values of the `kind` label of GATEWAY_TOKENS_TOTAL."""

# Operator.
RECONCILE_DURATION: Final = "windlass_reconcile_duration_seconds"  # labels: kind, result
RECONCILE_QUEUE_DEPTH: Final = "windlass_reconcile_queue_depth"
API_WRITES_TOTAL: Final = "windlass_api_writes_total"  # labels: kind, verb
IS_LEADER: Final = "windlass_operator_is_leader"
CANARY_TRAFFIC: Final = "windlass_canary_traffic_percent"
CANARY_ABORTED: Final = "windlass_canary_aborted"
CANARY_LABELS: Final = ("namespace", "service", "canary")
GPU_CLASS_DEVICES: Final = "windlass_gpu_class_devices"  # labels of these four: gpu_class
GPU_CLASS_ALLOCATED: Final = "windlass_gpu_class_devices_allocated"
GPU_CLASS_LARGEST_BLOCK: Final = "windlass_gpu_class_largest_free_block"
GPU_CLASS_FRAGMENTED: Final = "windlass_gpu_class_devices_fragmented"
TENANT_GPUS: Final = "windlass_tenant_gpus"  # labels: tenant, gpu_class, amount
TENANT_AMOUNTS: Final = ("nominal", "used", "borrowed", "lent")
"""Values of the `amount` label of TENANT_GPUS."""

GATEWAY_DEMAND: Final = "windlass_gateway_demand_requests"  # labels: GATEWAY_LABELS
"""Most requests that were answered or held at once within the last minute."""
GATEWAY_HELD: Final = "windlass_gateway_requests_held"  # labels: GATEWAY_LABELS

GATEWAY_QUEUED: Final = "windlass_gateway_requests_queued"  # labels: GATEWAY_LABELS
GATEWAY_QUEUE_TIME: Final = "windlass_gateway_queue_time_seconds"  # labels: tenant

# Derived by the metrics adapter, for autoscalers only.
GENERATED_TOKENS_PER_SECOND: Final = "windlass_generated_tokens_per_second"
TIME_TO_FIRST_TOKEN_P95: Final = "windlass_time_to_first_token_p95_seconds"
GPU_USE_RATIO: Final = "windlass_gpu_use_ratio"
SERVICE_DEMAND: Final = "windlass_service_demand_requests"
"""Requests of a service that run, wait or are held by gateways."""
DERIVED: Final = (GENERATED_TOKENS_PER_SECOND, TIME_TO_FIRST_TOKEN_P95, GPU_USE_RATIO, SERVICE_DEMAND)
COST_PER_HOUR: Final = "windlass_cost_per_hour"
COST_PER_MILLION_TOKENS: Final = "windlass_cost_per_million_tokens"
COST_TOTAL: Final = "windlass_cost_total"
COST_LABELS: Final = ("namespace", "service", "tenant", "currency")

# Metrics adapter.
ADAPTER_REQUESTS_TOTAL: Final = "windlass_adapter_requests_total"  # labels: api (custom, external, other), code
ADAPTER_READ_DURATION: Final = (
    "windlass_adapter_read_duration_seconds"  # labels: what (pods, replicas, a metric), result
)
ADAPTER_CERTIFICATE_EXPIRY: Final = "windlass_adapter_certificate_expiry_timestamp_seconds"

# Power agent, one per node.
GPU_LABELS: Final = ("gpu",)
"""UUID of a physical GPU."""
SERVICE_LABELS: Final = ("namespace", "service")
POWER_LIMIT: Final = "windlass_power_limit_watts"
POWER_WANTED_LIMIT: Final = "windlass_power_wanted_limit_watts"
POWER_CLOCK_CAP: Final = "windlass_power_wanted_clock_cap_hertz"
POWER_DRAW: Final = "windlass_power_draw_watts"
POWER_ENERGY_TOTAL: Final = "windlass_power_energy_joules_total"
POWER_GPU_STATE: Final = "windlass_power_gpu_state"  # + label `state`
POWER_SERVICE_ENERGY_TOTAL: Final = "windlass_power_service_energy_joules_total"
POWER_SERVICE_TOKENS_TOTAL: Final = "windlass_power_service_tokens_total"
POWER_JOULES_PER_TOKEN: Final = "windlass_power_joules_per_token"
POWER_WRITES_TOTAL: Final = "windlass_power_writes_total"  # labels: what (power_limit, clock), result
POWER_SOURCE_UP: Final = "windlass_power_source_up"  # label: source

POWER_STATES: Final = ("found", "managed", "failed", "dry_run")
"""Values of the `state` label of POWER_GPU_STATE: as found, with our limits, refused, only said."""
POWER_SOURCES: Final = ("driver", "kubelet", "api", "state")
"""Values of the `source` label of POWER_SOURCE_UP."""
