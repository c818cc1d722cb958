"""What the API server knows of the pods on this node: which service each belongs to, and with which power policy.

Reads the pods of one node, the services they belong to by name, and all GPUClasses. What does not parse (a newer
operator's field) counts as no policy: its GPU stays untouched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pydantic

from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.api.v1alpha1.inference_service import InferenceService
from windlass_operator.api.v1alpha1.power import Power
from windlass_operator.cluster.kubernetes_client import KubernetesClient, NotFound
from windlass_operator.cluster.kubernetes_kinds import KINDS, Ref
from windlass_operator.domain import labels
from windlass_operator.domain.power import choose_profile
from windlass_operator.power.energy import ServiceKey
from windlass_operator.power.holding import ClaimedDevice
from windlass_operator.power.limits import Holder

log = logging.getLogger(__name__)

SELECTOR: Final = (
    f"{labels.MANAGED_BY}={labels.MANAGER},{labels.COMPONENT} in ({labels.RUNTIME},{labels.CANARY_COMPONENT})"
)
RESOURCE_SLICES: Final = "/apis/resource.k8s.io/v1/resourceslices"
_UUID: Final = ("uuid", "UUID")
"""Attribute under which a DRA driver publishes the UUID of a device."""


@dataclass(frozen=True, slots=True)
class ReplicaPod:
    """One replica on this node."""

    service: ServiceKey
    ip: str
    holder: Holder


class PodDirectory:
    """Asks the API server about the pods of this node."""

    def __init__(self, client: KubernetesClient, node: str, namespaces: tuple[str, ...]) -> None:
        self._client, self._node, self._namespaces = client, node, namespaces

    async def replicas(self) -> dict[str, ReplicaPod]:
        """Return the replicas of this node by `namespace/name`. Raises RetryLater or ClusterUnavailable."""
        pods = [
            pod
            for namespace in self._namespaces or ("",)
            async for pod in self._client.list_items(
                KINDS["Pod"].path(namespace), SELECTOR, fields=f"spec.nodeName={self._node}"
            )
        ]
        if not pods:
            return {}
        classes = {
            item["metadata"]["name"]: item async for item in self._client.list_items(KINDS["GPUClass"].path(), "")
        }
        policies = {name: _policy_of(item) for name, item in classes.items()}
        keys = {key for pod in pods if (key := _service_of(pod)) is not None}
        services = {key: await self._client.get_recent(Ref("InferenceService", *key)) for key in sorted(keys)}
        found = (_replica(pod, services, policies) for pod in pods)
        return {replica.holder.pod: replica for replica in found if replica is not None}

    async def claimed_devices(self) -> dict[ClaimedDevice, str]:
        """Return the UUIDs that DRA drivers publish of this node's devices; empty where the server knows no DRA."""
        fields = f"spec.nodeName={self._node}"
        try:
            slices = [item async for item in self._client.list_items(RESOURCE_SLICES, "", fields=fields)]
        except NotFound:
            return {}
        return parse_slices(slices)


def parse_slices(slices: Iterable[Mapping[str, Any]]) -> dict[ClaimedDevice, str]:
    """Return the UUID of each device of some ResourceSlices; a device without one is left out."""
    uuids = {}
    for item in slices:
        spec = item["spec"]
        for device in spec.get("devices") or ():
            attributes = device.get("attributes") or {}
            named = {name.rpartition("/")[2]: value.get("string", "") for name, value in attributes.items()}
            uuid = next((named[name] for name in _UUID if named.get(name)), "")
            if uuid:
                uuids[ClaimedDevice(spec["driver"], spec["pool"]["name"], device["name"])] = uuid
    return uuids


def _service_of(pod: Mapping[str, Any]) -> ServiceKey | None:
    metadata = pod["metadata"]
    name = (metadata.get("labels") or {}).get(labels.SERVICE, "")
    return ServiceKey(metadata["namespace"], name) if name else None


def _replica(
    pod: Mapping[str, Any], services: Mapping[ServiceKey, Any], policies: Mapping[str, Power | None]
) -> ReplicaPod | None:
    key = _service_of(pod)
    if key is None:
        return None
    metadata = pod["metadata"]
    name = f"{metadata['namespace']}/{metadata['name']}"
    policy = policies.get(_class_of(metadata["labels"]))
    holder = _holder(name, services.get(key), policy)
    return ReplicaPod(key, (pod.get("status") or {}).get("podIP", ""), holder)


def _class_of(pod_labels: Mapping[str, str]) -> str:
    """Return the GPUClass of a pod; empty where its claim may have ended on any of several classes."""
    return "" if labels.CLAIM_TEMPLATE in pod_labels else pod_labels.get(labels.GPU_CLASS, "")


def _holder(pod: str, service: Mapping[str, Any] | None, policy: Power | None) -> Holder:
    if service is None or policy is None:
        return Holder(pod)
    try:
        spec = InferenceService.model_validate(service).spec
    except pydantic.ValidationError as exc:
        log.warning("A service cannot be read, so its GPUs stay untouched. pod=%s problem=%s", pod, _first(exc))
        return Holder(pod)
    return Holder(pod, policy, choose_profile(spec.power_profile, spec.tier, policy).profile)


def _policy_of(gpu_class: Mapping[str, Any]) -> Power | None:
    try:
        return GPUClass.model_validate(gpu_class).spec.power
    except pydantic.ValidationError as exc:
        name = gpu_class["metadata"]["name"]
        log.warning("A GPUClass cannot be read, so its GPUs stay untouched. class=%s problem=%s", name, _first(exc))
        return None


def _first(exc: pydantic.ValidationError) -> str:
    problem = exc.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
