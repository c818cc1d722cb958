"""Ask the cluster's own metrics API what the pods of a service report: whoever serves it, as any autoscaler does."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Any, Final

from windlass_operator.cluster.kubernetes_client import KubernetesClient
from windlass_operator.domain.labels import selector_labels
from windlass_operator.domain.quantity import parse_quantity

API: Final = "/apis/custom.metrics.k8s.io/v1beta2"


class PodMetrics:
    """Reads one metric of all pods of one service."""

    def __init__(self, client: KubernetesClient) -> None:
        self._client = client

    async def read(self, namespace: str, service: str, metric: str) -> dict[str, float]:
        """Return the values by pod; pods without one are absent. Raises what KubernetesClient.request raises."""
        selector = ",".join(f"{key}={value}" for key, value in selector_labels(service).items())
        path = f"{API}/namespaces/{urllib.parse.quote(namespace)}/pods/*/{metric}"
        return parse_values(await self._client.request("GET", path, params={"labelSelector": selector}))


def parse_values(answer: Mapping[str, Any]) -> dict[str, float]:
    """Read a MetricValueList."""
    return {item["describedObject"]["name"]: float(_value_of(item["value"])) for item in answer.get("items") or ()}


def _value_of(text: str) -> float:
    # Adapters write 0 in many ways; parse_quantity reads all of them.
    return float(parse_quantity(str(text)))
