"""The pod template of a replica.

It depends on the spec, the chosen class and the runtime image alone. Nothing that changes with the world (free devices,
quota, strategy, operator version) enters it, so only what a user or the platform team decides restarts pods.
"""

from __future__ import annotations

import math
from typing import Any, Final

from windlass_contract import endpoints
from windlass_contract.launch_spec import FILE_NAME, MOUNT_PATH
from windlass_operator.api.meta import Toleration
from windlass_operator.domain import labels
from windlass_operator.domain.device_claim import Alternative
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.model_source import MODEL_MOUNT, SourceKind
from windlass_operator.domain.plan import ServicePlan
from windlass_operator.domain.quantity import canonical_quantity
from windlass_operator.render.claim import REQUEST, claim_template_name
from windlass_operator.render.launch import hash_launch, launch_name
from windlass_operator.render.manifest import service_labels
from windlass_operator.render.service import PORT_NAME, account_name

CONTAINER: Final = "runtime"
MODEL_CACHE: Final = "/var/cache/windlass"
USER_ID: Final = 65532
"""A fixed, unprivileged user, so that `runAsNonRoot` holds whatever the image says."""
GRACE_BEYOND_DRAIN_S: Final = 15
ROUTING_DELAY_S: Final = 5
"""How long a leaving replica still serves, while routers learn that it leaves."""
_PROBE_PERIOD_S: Final = 10


def render_pod_template(plan: ServicePlan, settings: FleetSettings) -> dict[str, Any]:
    """metadata and spec of one replica."""
    annotations = {**plan.pod.annotations, labels.CONFIG_HASH: hash_launch(plan.launch)}
    return {
        "metadata": {"labels": _pod_labels(plan), "annotations": annotations},
        "spec": {
            "serviceAccountName": account_name(plan),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "priorityClassName": plan.priority_class,
            "terminationGracePeriodSeconds": plan.drain_timeout_s + GRACE_BEYOND_DRAIN_S,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **_placement(plan),
            **_claims(plan),
            "containers": [_container(plan, settings)],
            "volumes": _volumes(plan, settings),
        },
    }


def _pod_labels(plan: ServicePlan) -> dict[str, str]:
    gpu = {labels.GPU_CLASS: plan.gpu_class.name} if plan.gpu_class else {}
    if plan.gpu_class is not None and plan.gpu_class.alternatives:
        gpu[labels.DEVICES] = str(plan.gpu_class.count)
        gpu[labels.CLAIM_TEMPLATE] = claim_template_name(plan, plan.gpu_class)
    return {**plan.pod.labels, **service_labels(plan), **gpu}


def _claims(plan: ServicePlan) -> dict[str, Any]:
    if plan.gpu_class is None or not plan.gpu_class.alternatives:
        return {}
    template = claim_template_name(plan, plan.gpu_class)
    return {"resourceClaims": [{"name": REQUEST, "resourceClaimTemplateName": template}]}


def _placement(plan: ServicePlan) -> dict[str, Any]:
    gpu = plan.gpu_class
    alternatives = gpu.alternatives if gpu is not None else ()
    of_class = gpu.node_selector if gpu is not None and len(alternatives) < 2 else ()
    node_selector = {**plan.pod.node_selector, **dict(of_class)}
    tolerations = _tolerations(plan)
    keys = ["topology.kubernetes.io/zone", *(() if gpu is not None and gpu.packs else ["kubernetes.io/hostname"])]
    placement: dict[str, Any] = {
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": plan.selector},
                "matchLabelKeys": ["pod-template-hash"],
            }
            for key in keys
        ]
    }
    affinity = {
        **(_nodes_of_any(alternatives) if len(alternatives) > 1 else {}),
        **(_near_others(gpu.name) if gpu is not None and gpu.packs else {}),
    }
    if affinity:
        placement["affinity"] = affinity
    if node_selector:
        placement["nodeSelector"] = dict(sorted(node_selector.items()))
    if tolerations:
        placement["tolerations"] = tolerations
    return placement


def _nodes_of_any(alternatives: tuple[Alternative, ...]) -> dict[str, Any]:
    """Nodes of the listed classes alone: a DeviceClass may have devices that none of them means."""
    terms = [
        {
            "matchExpressions": [
                {"key": key, "operator": "In", "values": [value]} for key, value in alternative.node_selector
            ]
        }
        for alternative in alternatives
    ]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def _near_others(gpu_class: str) -> dict[str, Any]:
    """Nodes that run replicas of the class already, whoever owns them: the others stay whole."""
    term = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {labels.GPU_CLASS: gpu_class}},
        "namespaceSelector": {},
    }
    preferred = [{"weight": 100, "podAffinityTerm": term}]
    return {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}


def _tolerations(plan: ServicePlan) -> list[dict[str, str]]:
    wanted = list(plan.pod.tolerations)
    if plan.gpu_class is not None:
        # Slices of a device have resource names of their own, their nodes the taint of the whole device.
        vendor = plan.gpu_class.resource_name.partition("/")[0]
        wanted = [
            Toleration(key=f"{vendor}/gpu", operator="Exists", effect="NoSchedule"),
            *plan.gpu_class.tolerations,
            *wanted,
        ]
    rendered = [toleration.model_dump(by_alias=True, exclude_defaults=True) for toleration in wanted]
    return [toleration for position, toleration in enumerate(rendered) if toleration not in rendered[:position]]


def _container(plan: ServicePlan, settings: FleetSettings) -> dict[str, Any]:
    return {
        "name": CONTAINER,
        "image": settings.runtime_image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["serve", "--launch-spec", f"{MOUNT_PATH}/{FILE_NAME}"],
        "ports": [{"name": PORT_NAME, "containerPort": endpoints.RUNTIME_PORT, "protocol": "TCP"}],
        "env": _environment(plan),
        "resources": _resources(plan, settings),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        **_probes(settings),
        "lifecycle": {"preStop": {"exec": {"command": _drain_command(plan)}}},
        "volumeMounts": _mounts(plan),
    }


def _environment(plan: ServicePlan) -> list[dict[str, str]]:
    ours = {"HOME": "/tmp"}
    if plan.source.kind is SourceKind.HUB:
        ours["HF_HOME"] = MODEL_CACHE
    if plan.gpu_class is None:
        # Where NVIDIA's runtime is the default one, an image that says "all" would see every GPU of the node.
        ours["NVIDIA_VISIBLE_DEVICES"] = "void"
    values = {**{item.name: item.value for item in plan.pod.env}, **ours}
    return [{"name": name, "value": value} for name, value in values.items()]


def _resources(plan: ServicePlan, settings: FleetSettings) -> dict[str, Any]:
    wanted = plan.pod.resources
    requests, limits = {"cpu": canonical_quantity(wanted.cpu or settings.default_cpu)}, {}
    for name, amount in (("memory", wanted.memory), ("ephemeral-storage", wanted.ephemeral_storage)):
        if amount is not None:
            requests[name] = limits[name] = canonical_quantity(amount)
    if plan.gpu_class is not None and not plan.gpu_class.alternatives:
        requests[plan.gpu_class.resource_name] = limits[plan.gpu_class.resource_name] = str(plan.gpu_class.count)
    resources: dict[str, Any] = {"requests": requests, "limits": limits} if limits else {"requests": requests}
    if plan.gpu_class is not None and plan.gpu_class.alternatives:
        resources["claims"] = [{"name": REQUEST}]
    return resources


def _probes(settings: FleetSettings) -> dict[str, Any]:
    """Startup waits for a loaded model, readiness follows the drain, liveness only catches a stuck process."""
    return {
        "startupProbe": {
            **_get(endpoints.READY_PATH),
            "periodSeconds": _PROBE_PERIOD_S,
            "timeoutSeconds": 5,
            "failureThreshold": math.ceil(settings.startup_timeout_s / _PROBE_PERIOD_S),
        },
        "readinessProbe": {
            **_get(endpoints.READY_PATH),
            "periodSeconds": 5,
            "timeoutSeconds": 3,
            "failureThreshold": 2,
        },
        "livenessProbe": {
            **_get(endpoints.LIVE_PATH),
            "periodSeconds": _PROBE_PERIOD_S,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
    }


def _get(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": PORT_NAME}}


def _drain_command(plan: ServicePlan) -> list[str]:
    """Serve on until routers know, then wait for running requests. A hook's own httpGet cannot POST, so Python does."""
    url = f"http://127.0.0.1:{endpoints.RUNTIME_PORT}{endpoints.DRAIN_PATH}"
    return [
        "python",
        "-c",
        (
            "import time, urllib.request as http; "
            f"time.sleep({ROUTING_DELAY_S}); "
            f"http.urlopen(http.Request('{url}', method='POST'), timeout={plan.drain_timeout_s + ROUTING_DELAY_S})"
        ),
    ]


def _mounts(plan: ServicePlan) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "launch", "mountPath": MOUNT_PATH, "readOnly": True},
        {"name": "scratch", "mountPath": "/tmp"},
    ]
    if plan.source.kind is SourceKind.HUB:
        mounts.append({"name": "model-cache", "mountPath": MODEL_CACHE})
    if plan.source.mounted:
        folder = {"subPath": plan.source.path} if plan.source.path else {}
        mounts.append({"name": "model", "mountPath": MODEL_MOUNT, "readOnly": True, **folder})
    return mounts


def _volumes(plan: ServicePlan, settings: FleetSettings) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": "launch", "configMap": {"name": launch_name(plan)}},
        {"name": "scratch", "emptyDir": {"sizeLimit": canonical_quantity(settings.scratch_limit)}},
    ]
    match plan.source.kind:
        case SourceKind.HUB:
            volumes.append(
                {"name": "model-cache", "emptyDir": {"sizeLimit": canonical_quantity(settings.model_cache_limit)}}
            )
        case SourceKind.CLAIM:
            volumes.append(
                {"name": "model", "persistentVolumeClaim": {"claimName": plan.source.location, "readOnly": True}}
            )
        case SourceKind.IMAGE:
            volumes.append(
                {"name": "model", "image": {"reference": plan.source.location, "pullPolicy": "IfNotPresent"}}
            )
    return volumes
