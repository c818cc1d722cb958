"""Look at what the cluster offers: who serves the metrics APIs, is KEDA there, may autoscalers go to zero, are image
volumes kept.

What cannot be read counts as absent. What depends on feature gates is told by no API, so it is tried: a dry run writes
nothing, and the server's answer shows what it would have stored.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from windlass_operator import errors
from windlass_operator.cluster.kubernetes_client import KubernetesClient, NotFound
from windlass_operator.cluster.kubernetes_kinds import KINDS
from windlass_operator.domain import labels
from windlass_operator.domain.capabilities import ApiOwner, Capabilities

log = logging.getLogger(__name__)

Json = dict[str, Any]

KUEUE_APIS: Final = ("kueue.x-k8s.io/v1beta2", "kueue.x-k8s.io/v1beta1")
"""Newest first."""
KEDA_API: Final = "keda.sh/v1alpha1"
GATEWAY_API: Final = "gateway.networking.k8s.io/v1"
INFERENCE_API: Final = "inference.networking.k8s.io/v1"
ISTIO_API: Final = "networking.istio.io/v1"
CUSTOM_METRICS: Final = ("v1beta2.custom.metrics.k8s.io", "v1beta1.custom.metrics.k8s.io")
"""Versions that autoscalers ask for, the one they prefer first."""
EXTERNAL_METRICS: Final = ("v1beta1.external.metrics.k8s.io",)
API_SERVICES: Final = "/apis/apiregistration.k8s.io/v1/apiservices"
TRIAL_NAMESPACE: Final = "default"


@dataclass(frozen=True, slots=True)
class Trial:
    """What the server takes, as dry runs found."""

    takes_zero: bool = False
    takes_tolerance: bool = False
    keeps_image_volumes: bool = True


class Discovery:
    """Looks at one cluster. Tries what depends on feature gates again only when the server's version changes."""

    def __init__(self, client: KubernetesClient, namespace: str = TRIAL_NAMESPACE) -> None:
        """`namespace`: where dry runs of autoscalers and Deployments are allowed."""
        self._client, self._namespace = client, namespace
        self._tried: dict[str, Trial] = {}

    async def look(self) -> Capabilities:
        """Return what there is now. Raises what `KubernetesClient.version` raises."""
        version = await self._client.version()
        trial = await self._trial(version)
        return Capabilities(
            known=True,
            scales_to_zero=trial.takes_zero,
            knows_tolerance=trial.takes_tolerance,
            has_http_routes=await self._serves(GATEWAY_API, "httproutes"),
            has_inference_pools=await self._serves(INFERENCE_API, "inferencepools"),
            has_virtual_services=await self._serves(ISTIO_API, "virtualservices"),
            kueue=await self._first_serving(KUEUE_APIS, "workloads"),
            has_keda=await self._serves(KEDA_API, "scaledobjects"),
            custom_metrics=await self._owner(CUSTOM_METRICS),
            external_metrics=await self._owner(EXTERNAL_METRICS),
            drops_image_volumes="" if trial.keeps_image_volumes else version,
        )

    async def _trial(self, version: str) -> Trial:
        if version not in self._tried:
            zero = await self._try(_trial_autoscaler(0))
            tolerant = await self._try(_trial_autoscaler(1, {"tolerance": "50m"}))
            mounted = await self._try(_trial_deployment())
            self._tried = {version: Trial(zero is not None, _keeps_tolerance(tolerant), _keeps_image(mounted))}
        return self._tried[version]

    async def _try(self, manifest: Mapping[str, Any]) -> Json | None:
        """Dry-run a create; None when the server refuses it."""
        try:
            return await self._client.request(
                "POST",
                KINDS[manifest["kind"]].path(self._namespace),
                manifest,
                params={"dryRun": "All", "fieldValidation": "Ignore"},
            )
        except errors.ApplyRejected as exc:
            log.debug("A trial object was refused in a dry run. kind=%s reason=%s", manifest["kind"], exc)
            return None

    async def _serves(self, api_version: str, plural: str) -> bool:
        try:
            listed = await self._client.request("GET", f"/apis/{api_version}")
        except (NotFound, errors.ClusterUnavailable):
            return False
        return any(resource.get("name") == plural for resource in listed.get("resources", ()))

    async def _first_serving(self, api_versions: tuple[str, ...], plural: str) -> str:
        for api_version in api_versions:
            if await self._serves(api_version, plural):
                return api_version
        return ""

    async def _owner(self, names: tuple[str, ...]) -> ApiOwner:
        for name in names:
            try:
                found = await self._client.get_at(f"{API_SERVICES}/{name}")
            except errors.ClusterUnavailable as exc:
                log.warning("An API's registration cannot be read; it counts as served by nobody. error=%s", exc)
                return ApiOwner()
            service = ((found or {}).get("spec") or {}).get("service") or {}
            if found is not None and service:
                return ApiOwner(f"{service.get('namespace')}/{service.get('name')}", _is_ours(found))
        return ApiOwner()


def _is_ours(api_service: Mapping[str, Any]) -> bool:
    """Whether the chart of Windlass registered it; the label says so, whatever the release is called."""
    found = api_service["metadata"].get("labels") or {}
    return (found.get(labels.PART_OF), found.get(labels.COMPONENT)) == (labels.PRODUCT, labels.METRICS_ADAPTER)


def _trial_autoscaler(least: int, scale_down: Mapping[str, Any] | None = None) -> Json:
    metric = {"metric": {"name": "trial"}, "target": {"type": "AverageValue", "averageValue": "1"}}
    behavior = {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 300, **scale_down}}} if scale_down else {}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"generateName": "windlass-trial-"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "windlass-trial"},
            "minReplicas": least,
            "maxReplicas": 2,
            "metrics": [{"type": "External", "external": metric}],
            **behavior,
        },
    }


def _keeps_tolerance(answer: Mapping[str, Any] | None) -> bool:
    """A server whose gate is off drops the field."""
    behavior = ((answer or {}).get("spec") or {}).get("behavior") or {}
    return "tolerance" in (behavior.get("scaleDown") or {})


def _trial_deployment() -> Json:
    selected = {"app": "windlass-trial"}
    volume = {"name": "trial", "image": {"reference": "registry.example.com/trial:1"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"generateName": "windlass-trial-"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": selected},
            "template": {
                "metadata": {"labels": selected},
                "spec": {"containers": [{"name": "trial", "image": "trial"}], "volumes": [volume]},
            },
        },
    }


def _keeps_image(answer: Mapping[str, Any] | None) -> bool:
    """A server whose gate is off drops the only source of the volume, which some versions then refuse."""
    template = ((answer or {}).get("spec") or {}).get("template") or {}
    return any("image" in volume for volume in (template.get("spec") or {}).get("volumes") or ())
