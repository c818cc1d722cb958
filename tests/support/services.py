"""The words of the end-to-end tests: a service, what it became, and what belongs to it."""

from __future__ import annotations

from typing import Any

from support.kube_client import KubeClient, Manifest, eventually

API = "windlass.dev/v1alpha1"
APPS = "apps/v1"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
OWNED = "app.kubernetes.io/managed-by=windlass-operator"
RUNTIME = "app.kubernetes.io/component=runtime"
CHILD_KINDS = (
    ("apps/v1", "Deployment"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("v1", "ServiceAccount"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
)


def service(name: str = "chat", namespace: str = "team-a", **spec: Any) -> Manifest:
    """An InferenceService with defaults, so that a test shows only what matters."""
    metadata = {"name": name, "namespace": namespace}
    model = {"uri": "hf://organisation/model"}
    return {"apiVersion": API, "kind": "InferenceService", "metadata": metadata, "spec": {"model": model, **spec}}


def tenant(name: str, *namespaces: str, gpus: dict[str, int] | None = None, **spec: Any) -> Manifest:
    """A Tenant of some namespaces with a GPU quota per class."""
    quota = {"gpus": [{"name": key, "nominal": count} for key, count in (gpus or {}).items()]} if gpus else {}
    body = {"namespaces": list(namespaces), "allowedTiers": ["Realtime", "Standard", "Batch"], **spec}
    if quota:
        body["quota"] = {**quota, **body.get("quota", {})}
    return {"apiVersion": API, "kind": "Tenant", "metadata": {"name": name}, "spec": body}


def find(kube: KubeClient, name: str = "chat", namespace: str = "team-a") -> Manifest:
    """The service as stored. Raises AssertionError when it is gone."""
    found = kube.get(API, "InferenceService", name, namespace)
    assert found is not None, f"InferenceService {namespace}/{name} is gone"
    return found


def condition(kube: KubeClient, name: str = "chat", kind: str = "Ready", namespace: str = "team-a") -> dict[str, Any]:
    """One condition; empty while it is not there."""
    found = kube.get(API, "InferenceService", name, namespace) or {}
    conditions = found.get("status", {}).get("conditions", [])
    return next((item for item in conditions if item["type"] == kind), {})


def is_ready(manifest: Manifest) -> bool:
    """Ready, for the newest generation."""
    status = manifest.get("status", {})
    ready = any(item["type"] == "Ready" and item["status"] == "True" for item in status.get("conditions", ()))
    return ready and status.get("observedGeneration") == manifest["metadata"]["generation"]


def wait_ready(kube: KubeClient, name: str = "chat", namespace: str = "team-a", *, timeout_s: float = 30.0) -> Manifest:
    """Wait until the newest generation is Ready and return the service."""
    return eventually(lambda: find(kube, name, namespace), is_ready, timeout_s=timeout_s)


def deployment(kube: KubeClient, name: str = "chat", namespace: str = "team-a") -> Manifest:
    """The service's Deployment. Raises AssertionError when there is none."""
    found = kube.get(APPS, "Deployment", name, namespace)
    assert found is not None, f"Deployment {namespace}/{name} is gone"
    return found


def pods(kube: KubeClient, name: str = "chat", namespace: str = "team-a") -> list[Manifest]:
    """Its pods, leaving ones included."""
    return kube.list("v1", "Pod", namespace, f"app.kubernetes.io/instance={name}")


def ready_pods(kube: KubeClient, name: str = "chat", namespace: str = "team-a") -> int:
    """Pods that take requests now."""

    def serves(pod: Manifest) -> bool:
        conditions = pod.get("status", {}).get("conditions", ())
        ready = any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
        return ready and "deletionTimestamp" not in pod["metadata"]

    return sum(serves(pod) for pod in pods(kube, name, namespace))


def children(kube: KubeClient, name: str = "chat", namespace: str = "team-a") -> list[Manifest]:
    """Every object that the operator made for a service."""
    selector = f"{OWNED},app.kubernetes.io/instance={name}"
    return [child for api, kind in CHILD_KINDS for child in kube.list(api, kind, namespace, selector)]


def versions(kube: KubeClient) -> dict[str, str]:
    """resourceVersion of everything we own and of our own objects: moves with every write."""
    kinds = [*CHILD_KINDS, (API, "InferenceService"), (API, "Tenant"), (API, "GPUClass")]
    found = [item for api, kind in kinds for item in kube.list(api, kind, selector=OWNED if api != API else "")]
    assert len(found) > len(CHILD_KINDS), "the selector finds nothing, so nothing could ever change"
    return {item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in found}


def remove_services(kube: KubeClient, *, timeout_s: float = 60.0) -> None:
    """Delete every InferenceService and wait until its children and pods are gone."""
    for found in kube.list(API, "InferenceService"):
        kube.delete(API, "InferenceService", found["metadata"]["name"], found["metadata"]["namespace"])

    def left() -> list[str]:
        kinds = [*CHILD_KINDS, ("v1", "Pod"), (API, "InferenceService")]
        return [
            f"{kind} {item['metadata']['namespace']}/{item['metadata']['name']}"
            for api, kind in kinds
            for item in kube.list(api, kind, selector="" if api == API else RUNTIME)
        ]

    eventually(left, lambda found: not found, timeout_s=timeout_s)
