"""Rules by which another adapter, prometheus-adapter, serves what our autoscalers ask for. Pure.

Values of the whole service (`windlass_service_demand_requests`) are not among them: they need gateways, not Prometheus.
"""

from __future__ import annotations

from typing import Any, Final

from windlass_contract import metric_names
from windlass_operator.serve.derived import QUANTILE
from windlass_operator.serve.samples import GAUGES, RATIOS

Json = dict[str, Any]

SERIES: Final = "<<.Series>>{<<.LabelMatchers>>}"
"""How prometheus-adapter's templates name the series that are asked for."""
BY: Final = "by (<<.GroupBy>>)"


def adapter_rules(window_s: int, gpu_series: str = "DCGM_FI_DEV_GPU_UTIL") -> Json:
    """Return the `rules` of prometheus-adapter's configuration for all metrics of pods."""
    first_token = f"sum(rate({SERIES}[{window_s}s])) by (le, <<.GroupBy>>)"
    queries = [(name, name, f"{'max' if name in RATIOS else 'sum'}({SERIES}) {BY}") for name in GAUGES]
    queries += [
        (
            metric_names.GENERATED_TOKENS_TOTAL,
            metric_names.GENERATED_TOKENS_PER_SECOND,
            f"sum(rate({SERIES}[{window_s}s])) {BY}",
        ),
        (
            f"{metric_names.TIME_TO_FIRST_TOKEN}_bucket",
            metric_names.TIME_TO_FIRST_TOKEN_P95,
            f"histogram_quantile({QUANTILE}, {first_token}) >= 0",
        ),
        (gpu_series, metric_names.GPU_USE_RATIO, f"avg({SERIES}) {BY} / 100"),
    ]
    return {"rules": [_rule(*query) for query in queries]}


def _rule(series: str, name: str, query: str) -> Json:
    return {
        "seriesQuery": f'{series}{{namespace!="",pod!=""}}',
        "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
        "name": {"as": name},
        "metricsQuery": query,
    }
