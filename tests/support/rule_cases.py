"""Every rule of the CRDs with manifests it accepts and refuses: complete objects, for a real API server to judge too.

A refused manifest breaks its rule and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from windlass_operator.api import meta
from windlass_operator.api.v1alpha1 import batch_inference, canary, gpu_class, inference_service, power, scaling, tenant

Manifest = dict[str, Any]

REMOVED = object()
"""Value that takes a field out of the base manifest."""


@dataclass(frozen=True, slots=True)
class RuleCase:
    """One rule at one place."""

    name: str
    rule: Mapping[str, str]
    """The entry of x-kubernetes-validations; empty for uniqueness by list type."""
    path: str
    """Where the refusal points to, as `windlass validate` writes it."""
    accepted: tuple[Manifest, ...]
    refused: tuple[Manifest, ...]


def service(fields: Mapping[str, Any] | None = None, name: str = "chat") -> Manifest:
    """An InferenceService with dotted fields of its spec set."""
    base = {"model": {"uri": "hf://org/name"}}
    return _manifest("InferenceService", name, base, fields or {}) | {
        "metadata": {"name": name, "namespace": "default"}
    }


def batch_of(fields: Mapping[str, Any] | None = None, name: str = "nightly") -> Manifest:
    """A BatchInference with dotted fields of its spec set."""
    base = {"model": {"uri": "hf://org/name"}, "input": "pvc://data/in.jsonl", "results": "pvc://data/out"}
    return _manifest("BatchInference", name, base, fields or {}) | {"metadata": {"name": name, "namespace": "default"}}


def tenant_of(fields: Mapping[str, Any] | None = None, name: str = "acme") -> Manifest:
    """A Tenant with dotted fields of its spec set."""
    return _manifest("Tenant", name, {"namespaces": ["team-acme"]}, fields or {})


def gpu_class_of(fields: Mapping[str, Any] | None = None, name: str = "h200") -> Manifest:
    """A GPUClass with dotted fields of its spec set."""
    base = {"nodeSelector": {"gpu": "h200"}, "memory": "141Gi", "computeCapability": "9.0"}
    return _manifest("GPUClass", name, base, fields or {})


def _manifest(kind: str, name: str, base: Manifest, fields: Mapping[str, Any]) -> Manifest:
    spec = copy.deepcopy(base)
    for path, value in fields.items():
        *parents, last = path.split(".")
        target = spec
        for step in parents:
            target = target.setdefault(step, {})
        target.pop(last, None)
        if value is not REMOVED:
            target[last] = value
    return {"apiVersion": "windlass.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def _uris(*uris: str) -> tuple[Manifest, ...]:
    return tuple(service({"model.uri": uri}) for uri in uris)


def _env(*names: str) -> tuple[Manifest, ...]:
    return tuple(service({"podTemplate.env": [{"name": name, "value": "x"}]}) for name in names)


def _labelled(field: str, *keys: str) -> tuple[Manifest, ...]:
    return tuple(service({f"podTemplate.{field}": {key: "x"}}) for key in keys)


_ACCOUNT = {"kind": "User", "name": "ann"}


def _subjects(*subjects: Manifest) -> tuple[Manifest, ...]:
    return tuple(tenant_of({"subjects": [subject]}) for subject in subjects)


def _lends(limit: object) -> Manifest:
    gpus = {"name": "h200", "nominal": 4, "lendingLimit": limit}
    listed = {key: value for key, value in gpus.items() if value is not REMOVED}
    return tenant_of({"cohort": "research", "quota.gpus": [listed]})


def _service_rates(limits: Manifest, namespace: str = "team-acme") -> Manifest:
    return tenant_of({"rates": {"services": [{"namespace": namespace, "name": "chat", **limits}]}})


def _scaled(minimum: int, maximum: int, floor: int = 1) -> Manifest:
    return service({"scaling": {"minReplicas": minimum, "maxReplicas": maximum}, "rollout.minAvailable": floor})


def _metric(kind: str, target: int) -> Manifest:
    return service({"scaling": {"maxReplicas": 2, "metrics": [{"type": kind, "target": target}]}})


def _schedule(**bounds: int) -> Manifest:
    hours = {"timeZone": "Europe/Berlin", "start": "08:00", "end": "18:00"}
    return {"name": "office", **hours, **bounds}


def _scheduled(floor: int = 1, **bounds: int) -> Manifest:
    return service(
        {
            "scaling": {"minReplicas": 2, "maxReplicas": 4, "schedules": [_schedule(**bounds)]},
            "rollout.minAvailable": floor,
        }
    )


def _zero(kind: str, least: int = 0, at_night: int | None = None) -> Manifest:
    schedules = [] if at_night is None else [_schedule(minReplicas=at_night)]
    metrics = [{"type": kind, "target": 50}]
    fields = {"minReplicas": least, "maxReplicas": 2, "metrics": metrics, "schedules": schedules}
    return service({"scaling": fields})


def _canary(**fields: Any) -> Manifest:
    return {"name": "next", "trafficPercent": 10, **fields}


def _canaries(*canaries: Manifest, name: str = "chat") -> Manifest:
    return service({"canaries": list(canaries)}, name=name)


def _analysis(*metrics: Manifest, **fields: Any) -> Manifest:
    return _canaries(_canary(analysis={"metrics": list(metrics), **fields}))


_ERRORS = {"type": "ErrorRate", "threshold": 5}
_PROBE = {"type": "QualityProbe", "threshold": 90}


def _power(fields: Mapping[str, Any] | None = None) -> Manifest:
    """A GPUClass with a power policy, dotted fields of which are set."""
    policy = {
        "power.bounds": {"minWatts": 200, "maxWatts": 700, "minGraphicsClockMHz": 600, "maxGraphicsClockMHz": 1980},
        "power.profiles": {"performance": {"powerLimitWatts": 700}},
    }
    return gpu_class_of(policy | {f"power.{path}": value for path, value in (fields or {}).items()})


def _out_of_bounds(profile: str, limit: str) -> tuple[Manifest, ...]:
    values = (100, 800) if limit == "powerLimitWatts" else (500, 2000)
    return tuple(_power({"profiles": {profile: {limit: value}}}) for value in values)


def _profiles(lower: str, upper: str, limit: str, low: int, high: int) -> Manifest:
    return _power({"profiles": {lower: {limit: low}, upper: {limit: high}}})


SHAPE = {
    "layers": 2,
    "hiddenSize": 64,
    "feedForwardSize": 128,
    "queryHeads": 4,
    "keyValueHeads": 2,
    "headSize": 16,
    "vocabularySize": 77,
    "maxPositions": 4096,
}
_DIGESTS = ["0" * 64, "1" * 64]
_BAD_KEYS = ("-a", "a_b/c", "a/b/c", "a b", "", "a/", "/a")
_GOOD_KEYS = ("a", "team", "Example.com_x", "example.com/team", "a.b-c/D_e.f")

_CANARY_CASES = (
    RuleCase(
        "name fits canaries",
        inference_service.NAME_FITS_CANARIES,
        "spec.canaries",
        (_canaries(_canary(name="c" * 24), name="a" * 21), _canaries(_canary(name="c" * 5), name="a" * 40)),
        (_canaries(_canary(name="c" * 24), name="a" * 22), _canaries(_canary(name="c" * 6), name="a" * 40)),
    ),
    RuleCase(
        "shares of canaries add up",
        inference_service.SHARES_ADD_UP,
        "spec.canaries",
        (
            _canaries(_canary(trafficPercent=100)),
            _canaries(_canary(trafficPercent=0), _canary(name="b", trafficPercent=100)),
            _canaries(*(_canary(name=name, trafficPercent=25) for name in "abcd")),
        ),
        (
            _canaries(_canary(trafficPercent=1), _canary(name="b", trafficPercent=100)),
            _canaries(*(_canary(name=name, trafficPercent=26) for name in "abcd")),
        ),
    ),
    RuleCase(
        "steps lead up to the share",
        inference_service.STEPS_LEAD_UP,
        "spec.canaries[0].analysis.steps",
        (_analysis(_ERRORS, steps=[1, 9]), _analysis(_ERRORS, steps=[]), _analysis(_ERRORS)),
        (_analysis(_ERRORS, steps=[10]), _analysis(_ERRORS, steps=[1, 50])),
    ),
    RuleCase(
        "steps are distinct",
        canary.STEPS_ARE_DISTINCT,
        "spec.canaries[0].analysis.steps",
        (_analysis(_ERRORS, steps=[5, 1]),),
        (_analysis(_ERRORS, steps=[1, 5, 1]),),
    ),
    RuleCase(
        "percentages of canaries end at 100",
        canary.PERCENTAGES_END_AT_100,
        "spec.canaries[0].analysis.metrics[0].threshold",
        (
            _analysis({"type": "ErrorRate", "threshold": 100}),
            _analysis({"type": "TimeToFirstToken", "threshold": 2000}),
        ),
        (_analysis({"type": "ErrorRate", "threshold": 101}), _analysis(_PROBE | {"threshold": 101}, prompts=["hi"])),
    ),
    RuleCase(
        "probes compare themselves",
        canary.PROBES_COMPARE_THEMSELVES,
        "spec.canaries[0].analysis.metrics[0].comparison",
        (
            _analysis(_PROBE, prompts=["hi"]),
            _analysis(_PROBE | {"comparison": "Absolute"}, prompts=["hi"]),
            _analysis(_ERRORS | {"comparison": "Stable"}),
        ),
        (_analysis(_PROBE | {"comparison": "Stable"}, prompts=["hi"]),),
    ),
    RuleCase(
        "probes have prompts",
        canary.PROBES_HAVE_PROMPTS,
        "spec.canaries[0].analysis.prompts",
        (_analysis(_ERRORS), _analysis(_ERRORS, _PROBE, prompts=["hi"])),
        (_analysis(_ERRORS, _PROBE), _analysis(_PROBE, prompts=[])),
    ),
)

_SERVICE_CASES = (
    RuleCase(
        "name fits children",
        inference_service.NAME_FITS_CHILDREN,
        "metadata.name",
        (service(name="a"), service(name="a" * 40)),
        (service(name="a" * 41), service(name="a" * 253)),
    ),
    RuleCase(
        "name starts a service",
        inference_service.NAME_STARTS_A_SERVICE,
        "metadata.name",
        (service(name="a-1"), service(name="chat7")),
        (service(name="7chat"), service(name="a.b")),
    ),
    RuleCase(
        "hf uri",
        inference_service.URI_IS_A_HUB_NAME,
        "spec.model.uri",
        _uris("hf://org/name", "hf://Qwen/Qwen3-0.6B@main", "hf://org/name@refs/pr/1", "hf://a_b/c.d@0123abc"),
        _uris(
            "hf://name",
            "hf://org/",
            "hf:///name",
            "hf://org/name/file",
            "hf://org/name@",
            "hf://org/name@a@b",
            "hf://-o/n",
        ),
    ),
    RuleCase(
        "pvc uri",
        inference_service.URI_IS_A_CLAIM,
        "spec.model.uri",
        _uris("pvc://models", "pvc://models/", "pvc://models/a/b", "pvc://models.v1/.hidden/..a/a..b", "pvc://m/a/./b"),
        _uris(
            "pvc://Models/a", "pvc:///a", "pvc://m/../other", "pvc://m/a/..", "pvc://m//a", "pvc://-m/a", "pvc://m/..//"
        ),
    ),
    RuleCase(
        "oci uri",
        inference_service.URI_IS_AN_IMAGE,
        "spec.model.uri",
        _uris(
            "oci://registry.example.com/models/a:v1",
            "oci://localhost:5000/a",
            f"oci://r.example.com/a/b__c@sha256:{'a' * 64}",
            f"oci://r.example.com/a:v1@sha256:{'0' * 64}",
        ),
        _uris(
            "oci://registry.example.com",
            "oci://r/A",
            "oci://r/a:",
            "oci://r/a@sha256:12",
            "oci://r:port/a",
            "oci://r//a",
        ),
    ),
    RuleCase(
        "file uri",
        inference_service.URI_IS_A_FILE,
        "spec.model.uri",
        _uris(
            "file:///models/a",
            "file:///models/a/",
            "file://./a",
            "file://../models/a",
            "file://../../a",
            "file:///a/..b/.c",
        ),
        _uris(
            "file://models/a",
            "file:///",
            "file:///a/../b",
            "file:///..",
            "file://./../a",
            "file://../a/../b",
            "file:////a",
        ),
    ),
    RuleCase(
        "classes are distinct",
        inference_service.CLASSES_ARE_DISTINCT,
        "spec.accelerator.classes",
        (service({"accelerator.classes": ["a", "b"]}),),
        (service({"accelerator.classes": ["a", "b", "a"]}),),
    ),
    RuleCase(
        "classes or requirements",
        inference_service.CLASSES_OR_REQUIREMENTS,
        "spec.accelerator.classes",
        (
            service({"accelerator.classes": ["a"]}),
            service({"accelerator.requirements": {}}),
            service({"accelerator.requirements": {"memory": "40Gi", "computeCapability": "8.0"}}),
        ),
        (
            service({"accelerator": {"classes": ["a"], "requirements": {"memory": "40Gi"}}}),
            service({"accelerator": {"count": 1}}),
        ),
    ),
    RuleCase(
        "alternatives need a shape",
        inference_service.ALTERNATIVES_NEED_A_SHAPE,
        "spec.precision.alternatives",
        (
            service({"precision.alternatives": [{"preset": "INT8"}], "model.shape": SHAPE}),
            service({"precision.alternatives": []}),
            service({"precision.preset": "FP16"}),
        ),
        (service({"precision.alternatives": [{"preset": "INT8"}]}),),
    ),
    RuleCase(
        "percent is at most 100",
        scaling.PERCENT_IS_AT_MOST_100,
        "spec.scaling.metrics[0].target",
        (
            _metric("CPUUtilization", 100),
            _metric("CacheUse", 80),
            _metric("GPUUtilization", 90),
            _metric("TimeToFirstToken", 2000),
            _metric("TokensPerSecond", 100_000),
            _metric("QueueDepth", 500),
            _metric("RunningRequests", 101),
        ),
        (_metric("CPUUtilization", 101), _metric("CacheUse", 101), _metric("GPUUtilization", 101)),
    ),
    RuleCase(
        "maxReplicas is at least minReplicas",
        scaling.SCALING_HAS_ROOM,
        "spec.scaling.maxReplicas",
        (_scaled(1, 1), _scaled(2, 5), _scaled(0, 1)),
        (_scaled(3, 2), _scaled(1000, 999)),
    ),
    RuleCase(
        "schedules have room",
        scaling.SCHEDULES_HAVE_ROOM,
        "spec.scaling.schedules",
        (_scheduled(minReplicas=3), _scheduled(maxReplicas=2), _scheduled(minReplicas=9, maxReplicas=9)),
        (_scheduled(minReplicas=5), _scheduled(maxReplicas=1), _scheduled(minReplicas=3, maxReplicas=2)),
    ),
    RuleCase(
        "a schedule changes something",
        scaling.SCHEDULE_CHANGES_SOMETHING,
        "spec.scaling.schedules[0]",
        (_scheduled(minReplicas=3),),
        (_scheduled(),),
    ),
    RuleCase(
        "fallback is at most maxReplicas",
        scaling.FALLBACK_HAS_ROOM,
        "spec.scaling.fallback.replicas",
        (service({"scaling.maxReplicas": 4, "scaling.fallback": {"replicas": 4}}),),
        (service({"scaling.maxReplicas": 4, "scaling.fallback": {"replicas": 5}}),),
    ),
    RuleCase(
        "zero needs a metric that ends",
        scaling.ZERO_NEEDS_A_METRIC_THAT_ENDS,
        "spec.scaling.metrics",
        (_zero("QueueDepth"), _zero("TimeToFirstToken"), _zero("CPUUtilization", least=1)),
        (_zero("CPUUtilization"), _zero("GPUUtilization"), _zero("CPUUtilization", least=1, at_night=0)),
    ),
    RuleCase(
        "replicas or scaling",
        inference_service.ONE_OWNER_OF_REPLICAS,
        "spec.replicas",
        (service({"replicas": 2}), _scaled(1, 2), service()),
        (service({"replicas": 1, "scaling.maxReplicas": 2}), service({"replicas": 0, "scaling.maxReplicas": 2})),
    ),
    RuleCase(
        "minAvailable can hold",
        inference_service.FLOOR_CAN_HOLD,
        "spec.rollout.minAvailable",
        (
            service({"replicas": 3, "rollout.minAvailable": 3}),
            service({"rollout.minAvailable": 1}),
            service({"replicas": 0}),
            service({"replicas": 0, "rollout.minAvailable": 5}),
        ),
        (service({"replicas": 2, "rollout.minAvailable": 3}), service({"rollout.minAvailable": 2})),
    ),
    RuleCase(
        "minAvailable can hold after a scale-in",
        inference_service.FLOOR_CAN_HOLD_WHEN_SCALED_IN,
        "spec.rollout.minAvailable",
        (_scaled(2, 4, floor=2), _scaled(1, 4, floor=0), _scaled(0, 4, floor=1), _scheduled(floor=2, minReplicas=3)),
        (
            _scaled(1, 4, floor=2),
            _scaled(0, 4, floor=2),
            service({"scaling.maxReplicas": 9, "rollout.minAvailable": 2}),
            _scheduled(floor=2, minReplicas=1),
        ),
    ),
    RuleCase(
        "env outside WINDLASS_",
        inference_service.ENV_IS_NOT_OURS,
        "spec.podTemplate.env[0].name",
        _env("HF_HUB_OFFLINE", "MY_WINDLASS_X", "WINDLASS"),
        _env("WINDLASS_PORT", "WINDLASS_"),
    ),
    RuleCase(
        "env keeps the loader",
        inference_service.ENV_KEEPS_THE_LOADER,
        "spec.podTemplate.env[0].name",
        _env("PYTHONUNBUFFERED", "OLD_PATH"),
        _env("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT"),
    ),
    RuleCase(
        "env keeps the devices",
        inference_service.ENV_KEEPS_THE_DEVICES,
        "spec.podTemplate.env[0].name",
        _env("CUDA_LAUNCH_BLOCKING", "OMP_NUM_THREADS"),
        _env("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"),
    ),
    RuleCase(
        "pod labels are free",
        inference_service.LABELS_ARE_FREE,
        "spec.podTemplate.labels",
        _labelled("labels", "team", "example.com/x", "kueue.x-k8s.io/queue-name", "notwindlass.dev/x"),
        _labelled(
            "labels",
            "windlass.dev/tenant",
            "a.windlass.dev/x",
            "app.kubernetes.io/name",
            "kubernetes.io/x",
            "pod-template-hash",
        ),
    ),
    RuleCase(
        "pod annotations are free",
        inference_service.ANNOTATIONS_ARE_FREE,
        "spec.podTemplate.annotations",
        _labelled("annotations", "note", "example.com/x", "sidecar.istio.io/inject"),
        _labelled(
            "annotations",
            "windlass.dev/x",
            "app.kubernetes.io/name",
            "controller.kubernetes.io/pod-deletion-cost",
            "k8s.v1.cni.cncf.io/networks",
        ),
    ),
    *(
        RuleCase(
            f"{field} keys are label keys",
            meta.KEYS_ARE_LABEL_KEYS,
            f"spec.podTemplate.{field}",
            _labelled(field, *_GOOD_KEYS),
            _labelled(field, *_BAD_KEYS),
        )
        for field in ("labels", "annotations", "nodeSelector")
    ),
    RuleCase(
        "pod tolerations name a taint",
        inference_service.TOLERATIONS_NAME_A_TAINT,
        "spec.podTemplate.tolerations",
        (service({"podTemplate.tolerations": [{"key": "team", "operator": "Exists"}]}),),
        (
            service({"podTemplate.tolerations": [{"operator": "Exists"}]}),
            service(
                {"podTemplate.tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]}
            ),
        ),
    ),
    RuleCase(
        "toleration Exists has no value",
        meta.EXISTS_HAS_NO_VALUE,
        "spec.podTemplate.tolerations[0].value",
        (
            service({"podTemplate.tolerations": [{"key": "a", "operator": "Exists", "value": ""}]}),
            service({"podTemplate.tolerations": [{"key": "a", "value": "b"}]}),
        ),
        (service({"podTemplate.tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}),),
    ),
    RuleCase(
        "power needs a gpu",
        inference_service.POWER_NEEDS_A_GPU,
        "spec.powerProfile",
        (service(), service({"powerProfile": "Eco", "accelerator": {"classes": ["h200"]}})),
        (service({"powerProfile": "Eco"}),),
    ),
    RuleCase(
        "small pages lie on one device",
        inference_service.SMALL_PAGES_ON_ONE_DEVICE,
        "spec.cache.bits",
        (
            service({"cache": {"bits": 4}}),
            service({"cache": {"bits": 4}, "accelerator": {"classes": ["h200"]}}),
            service({"cache": {"bits": 16}, "accelerator": {"classes": ["h200"], "count": 2}}),
            service({"accelerator": {"classes": ["h200"], "count": 2}}),
        ),
        (service({"cache": {"bits": 4}, "accelerator": {"classes": ["h200"], "count": 2}}),),
    ),
    RuleCase(
        "sparsity needs a cpu",
        inference_service.SPARSITY_NEEDS_A_CPU,
        "spec.sparsity.mode",
        (
            service({"sparsity.mode": "Max"}),
            service({"sparsity.mode": "Off", "accelerator": {"classes": ["h200"]}}),
        ),
        (service({"sparsity.mode": "Balanced", "accelerator": {"classes": ["h200"]}}),),
    ),
)

_TENANT_CASES = (
    RuleCase(
        "tenant name is a label",
        tenant.NAME_IS_A_LABEL,
        "metadata.name",
        (tenant_of(name="a"), tenant_of(name="7" * 63)),
        (tenant_of(name="a" * 64), tenant_of(name="a.b")),
    ),
    RuleCase(
        "namespaces outside kube-",
        tenant.NAMESPACES_ARE_NOT_THE_SYSTEMS,
        "spec.namespaces",
        (tenant_of({"namespaces": ["kube", "my-kube-x"]}),),
        (tenant_of({"namespaces": ["a", "kube-system"]}), tenant_of({"namespaces": ["kube-x"]})),
    ),
    RuleCase(
        "ServiceAccount has a namespace",
        tenant.ACCOUNT_HAS_A_NAMESPACE,
        "spec.subjects[0].namespace",
        _subjects({"kind": "ServiceAccount", "name": "a", "namespace": "ci"}),
        _subjects({"kind": "ServiceAccount", "name": "a"}, {"kind": "ServiceAccount", "name": "a", "namespace": ""}),
    ),
    RuleCase(
        "only a ServiceAccount has a namespace",
        tenant.ONLY_ACCOUNTS_HAVE_A_NAMESPACE,
        "spec.subjects[0].namespace",
        _subjects({"kind": "User", "name": "a"}, {"kind": "Group", "name": "a", "namespace": ""}),
        _subjects({"kind": "User", "name": "a", "namespace": "ci"}, {"kind": "Group", "name": "a", "namespace": "ci"}),
    ),
    RuleCase(
        "subjects are distinct",
        tenant.SUBJECTS_ARE_DISTINCT,
        "spec.subjects",
        (
            tenant_of({"subjects": [_ACCOUNT, {**_ACCOUNT, "kind": "Group"}]}),
            tenant_of({"subjects": [_ACCOUNT, {**_ACCOUNT, "name": "bob"}]}),
            tenant_of({"subjects": [_ACCOUNT, {**_ACCOUNT, "role": "Viewer"}]}),
        ),
        (tenant_of({"subjects": [_ACCOUNT, _ACCOUNT]}),),
    ),
    RuleCase(
        "lending is within nominal",
        tenant.LENDING_IS_WITHIN_NOMINAL,
        "spec.quota.gpus[0].lendingLimit",
        tuple(_lends(limit) for limit in (0, 4, REMOVED)),
        (_lends(5),),
    ),
    RuleCase(
        "limits need a cohort",
        tenant.LIMITS_NEED_A_COHORT,
        "spec.cohort",
        (
            tenant_of({"cohort": "research", "quota.gpus": [{"name": "h200", "nominal": 1, "borrowingLimit": 0}]}),
            tenant_of({"quota.gpus": [{"name": "h200", "nominal": 1}]}),
            tenant_of({"cohort": ""}),
        ),
        tuple(
            tenant_of({**cohort, "quota.gpus": [{"name": "h200", "nominal": 1, limit: 1}]})
            for limit in ("borrowingLimit", "lendingLimit")
            for cohort in ({}, {"cohort": ""})
        ),
    ),
    RuleCase(
        "rates of a service limit something",
        tenant.SERVICE_RATES_LIMIT_SOMETHING,
        "spec.rates.services[0]",
        (
            _service_rates({"requestsPerMinute": 1}),
            _service_rates({"tokensPerMinute": 1_000_000_000, "concurrentRequests": 1}),
        ),
        (_service_rates({}),),
    ),
    RuleCase(
        "rates are of services of the tenant",
        tenant.RATES_ARE_OF_OWN_SERVICES,
        "spec.rates",
        (_service_rates({"requestsPerMinute": 1}), tenant_of({"rates": {"requestsPerMinute": 1}})),
        (_service_rates({"requestsPerMinute": 1}, "team-other"), _service_rates({"tokensPerMinute": 1}, "team-acme-2")),
    ),
    RuleCase(
        "key digests are distinct",
        tenant.KEYS_ARE_DISTINCT,
        "spec.access.keys",
        (tenant_of({"access.keys": [{"name": f"k{i}", "sha256": digest} for i, digest in enumerate(_DIGESTS)]}),),
        (tenant_of({"access.keys": [{"name": f"k{i}", "sha256": _DIGESTS[0]} for i in range(2)]}),),
    ),
)

_GPU_CLASS_CASES = (
    RuleCase(
        "class name is a label",
        gpu_class.NAME_IS_A_LABEL,
        "metadata.name",
        (gpu_class_of(name="a100-80g"),),
        (gpu_class_of(name="a" * 64), gpu_class_of(name="a.b")),
    ),
    RuleCase(
        "resource of a device plugin",
        gpu_class.RESOURCE_IS_A_DEVICE,
        "spec.resourceName",
        (gpu_class_of({"resourceName": "nvidia.com/mig-1g.18gb"}), gpu_class_of({"resourceName": "amd.com/gpu"})),
        (
            gpu_class_of({"resourceName": "kubernetes.io/batch-cpu"}),
            gpu_class_of({"resourceName": "a.kubernetes.io/b"}),
        ),
    ),
    RuleCase(
        "selectors need a device class",
        gpu_class.SELECTORS_NEED_A_DEVICE_CLASS,
        "spec.deviceSelectors",
        (
            gpu_class_of({"deviceClassName": "gpu.nvidia.com", "deviceSelectors": ["device.driver == 'a'"]}),
            gpu_class_of({"deviceClassName": "gpu.nvidia.com"}),
            gpu_class_of({"deviceSelectors": []}),
        ),
        (gpu_class_of({"deviceSelectors": ["true"]}),),
    ),
    RuleCase(
        "slices are not shared",
        gpu_class.SLICES_ARE_NOT_SHARED,
        "spec.sharing",
        (gpu_class_of({"migProfile": "1g.10gb+me"}), gpu_class_of({"sharing.timeSlicedReplicas": 4})),
        (gpu_class_of({"migProfile": "1g.18gb", "sharing.timeSlicedReplicas": 2}),),
    ),
    RuleCase(
        "node label keys are label keys",
        meta.KEYS_ARE_LABEL_KEYS,
        "spec.nodeSelector",
        tuple(gpu_class_of({"nodeSelector": {key: "x"}}) for key in _GOOD_KEYS),
        tuple(gpu_class_of({"nodeSelector": {key: "x"}}) for key in _BAD_KEYS),
    ),
    RuleCase(
        "toleration Equal has a key",
        meta.EQUAL_HAS_A_KEY,
        "spec.tolerations[0].key",
        (gpu_class_of({"tolerations": [{"key": "a"}]}), gpu_class_of({"tolerations": [{"operator": "Exists"}]})),
        (gpu_class_of({"tolerations": [{"value": "a"}]}), gpu_class_of({"tolerations": [{"key": ""}]})),
    ),
    RuleCase(
        "watts have room",
        power.WATTS_HAVE_ROOM,
        "spec.power.bounds.maxWatts",
        (_power({"bounds.minWatts": 700}),),
        (_power({"bounds": {"minWatts": 700, "maxWatts": 699}, "profiles": {}}),),
    ),
    RuleCase(
        "clocks come as a pair",
        power.CLOCKS_COME_AS_A_PAIR,
        "spec.power.bounds",
        (_power(), _power({"bounds": {"minWatts": 1, "maxWatts": 700}})),
        (_power({"bounds.minGraphicsClockMHz": REMOVED}), _power({"bounds.maxGraphicsClockMHz": REMOVED})),
    ),
    RuleCase(
        "clocks have room",
        power.CLOCKS_HAVE_ROOM,
        "spec.power.bounds.maxGraphicsClockMHz",
        (_power({"bounds.minGraphicsClockMHz": 1980}),),
        (_power({"bounds.minGraphicsClockMHz": 1981}),),
    ),
    RuleCase(
        "a profile limits something",
        power.PROFILE_LIMITS_SOMETHING,
        "spec.power.profiles.eco",
        (_power({"profiles": {"eco": {"powerLimitWatts": 300}}}), _power({"profiles": {}})),
        (_power({"profiles": {"eco": {}}}),),
    ),
    *(
        RuleCase(
            f"{limit} of {profile} within bounds",
            entry,
            f"spec.power.profiles.{profile}.{limit}",
            tuple(_power({"profiles": {profile: {limit: value}}}) for value in (600, 700)),
            _out_of_bounds(profile, limit),
        )
        for entry, (limit, profile) in zip(
            power.IN_BOUNDS,
            product(("powerLimitWatts", "maxGraphicsClockMHz"), ("eco", "balanced", "performance")),
            strict=True,
        )
    ),
    *(
        RuleCase(
            f"{limit} rises from {lower} to {upper}",
            entry,
            f"spec.power.profiles.{upper}.{limit}",
            tuple(_profiles(lower, upper, limit, low, 700) for low in (600, 700)),
            (_profiles(lower, upper, limit, 700, 650),),
        )
        for entry, (limit, (lower, upper)) in zip(
            power.RISING,
            product(("powerLimitWatts", "maxGraphicsClockMHz"), combinations(("eco", "balanced", "performance"), 2)),
            strict=True,
        )
    ),
    RuleCase(
        "load has somewhere to go",
        power.LOAD_HAS_SOMEWHERE_TO_GO,
        "spec.power.followLoad",
        (_power({"followLoad": {}, "profiles.eco": {"powerLimitWatts": 300}}),),
        (_power({"followLoad": {}}), _power({"followLoad": {}, "profiles": {"eco": {"powerLimitWatts": 300}}})),
    ),
    RuleCase(
        "load has a middle",
        power.LOAD_HAS_A_MIDDLE,
        "spec.power.followLoad.stepUpAbovePercent",
        (
            _power(
                {
                    "profiles.eco": {"powerLimitWatts": 300},
                    "followLoad": {"stepDownBelowPercent": 40, "stepUpAbovePercent": 41},
                }
            ),
        ),
        (
            _power(
                {
                    "profiles.eco": {"powerLimitWatts": 300},
                    "followLoad": {"stepDownBelowPercent": 40, "stepUpAbovePercent": 40},
                }
            ),
        ),
    ),
)

_BATCH_CASES = (
    RuleCase(
        "path of a claim",
        batch_inference.PATH_STAYS_INSIDE,
        "spec.input",
        tuple(batch_of({"input": uri}) for uri in ("pvc://a.b/c/d.jsonl", "pvc://a/..b", "pvc://a/.b/c..")),
        tuple(batch_of({"input": uri}) for uri in ("pvc://a/../b", "pvc://a/b/..", "pvc://a/./b")),
    ),
    RuleCase(
        "workers and shards",
        batch_inference.WORKERS_HAVE_SHARDS,
        "spec.parallelism",
        (batch_of(), batch_of({"shards": 4, "parallelism": 4})),
        (batch_of({"parallelism": 2}), batch_of({"shards": 4, "parallelism": 5})),
    ),
    RuleCase("files of a batch stay", batch_inference.FILES_STAY, "spec", (batch_of(),), ()),
)
RULE_CASES: tuple[RuleCase, ...] = (
    *_SERVICE_CASES,
    *_CANARY_CASES,
    *_TENANT_CASES,
    *_GPU_CLASS_CASES,
    *_BATCH_CASES,
)

_TWICE = [{"type": "QueueDepth", "target": 1}, {"type": "QueueDepth", "target": 2}]
UNIQUENESS_CASES: tuple[RuleCase, ...] = (
    RuleCase(
        "precision alternatives",
        {},
        "spec.precision.alternatives[1]",
        (service({"precision.alternatives": [{"preset": "INT8"}, {"preset": "INT4"}], "model.shape": SHAPE}),),
        (service({"precision.alternatives": [{"preset": "INT8"}, {"preset": "INT8"}], "model.shape": SHAPE}),),
    ),
    RuleCase(
        "metric types",
        {},
        "spec.scaling.metrics[1]",
        (service({"scaling": {"maxReplicas": 2, "metrics": [_TWICE[0], {"type": "CacheUse", "target": 2}]}}),),
        (service({"scaling": {"maxReplicas": 2, "metrics": _TWICE}}),),
    ),
    RuleCase(
        "canary names",
        {},
        "spec.canaries[1]",
        (_canaries(_canary(name="a"), _canary(name="b")),),
        (_canaries(_canary(name="a"), _canary(name="a", trafficPercent=0)),),
    ),
    RuleCase(
        "canary metric types",
        {},
        "spec.canaries[0].analysis.metrics[1]",
        (_analysis(_ERRORS, {"type": "TokensPerSecond", "threshold": 10}),),
        (_analysis(_ERRORS, _ERRORS | {"threshold": 7}),),
    ),
    RuleCase(
        "env names",
        {},
        "spec.podTemplate.env[1]",
        (service({"podTemplate.env": [{"name": "A"}, {"name": "B"}]}),),
        (service({"podTemplate.env": [{"name": "A"}, {"name": "A", "value": "x"}]}),),
    ),
    RuleCase(
        "namespaces",
        {},
        "spec.namespaces[1]",
        (tenant_of({"namespaces": ["a", "b"]}),),
        (tenant_of({"namespaces": ["a", "a"]}),),
    ),
    RuleCase(
        "allowed tiers",
        {},
        "spec.allowedTiers[1]",
        (tenant_of({"allowedTiers": ["Batch", "Standard"]}),),
        (tenant_of({"allowedTiers": ["Batch", "Batch"]}),),
    ),
    RuleCase(
        "quota classes",
        {},
        "spec.quota.gpus[1]",
        (tenant_of({"quota.gpus": [{"name": "a", "nominal": 1}, {"name": "b", "nominal": 1}]}),),
        (tenant_of({"quota.gpus": [{"name": "a", "nominal": 1}, {"name": "a", "nominal": 2}]}),),
    ),
    RuleCase(
        "key names",
        {},
        "spec.access.keys[1]",
        (tenant_of({"access.keys": [{"name": "a", "sha256": _DIGESTS[0]}, {"name": "b", "sha256": _DIGESTS[1]}]}),),
        (tenant_of({"access.keys": [{"name": "a", "sha256": _DIGESTS[0]}, {"name": "a", "sha256": _DIGESTS[1]}]}),),
    ),
)
