"""The JSON bodies of the metrics APIs: values, discovery documents and refusals. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from fractions import Fraction
from http import HTTPStatus
from typing import Any, Final

from windlass_contract import metric_names
from windlass_operator.api.meta import API_VERSION
from windlass_operator.serve.paths import (
    CUSTOM_GROUP,
    CUSTOM_VERSION,
    EXTERNAL_GROUP,
    EXTERNAL_VERSION,
    PODS,
    SERVICES,
)
from windlass_operator.serve.readings import PodReading, ServiceReading, external_labels
from windlass_operator.serve.samples import METRICS, Sample

Json = dict[str, Any]

GROUPS: Final = {CUSTOM_GROUP: CUSTOM_VERSION, EXTERNAL_GROUP: EXTERNAL_VERSION}
_CUSTOM: Final = f"{CUSTOM_GROUP}/{CUSTOM_VERSION}"
_EXTERNAL: Final = f"{EXTERNAL_GROUP}/{EXTERNAL_VERSION}"
_REASONS: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    500: "InternalError",
    503: "ServiceUnavailable",
}


def format_quantity(value: float) -> str:
    """A Kubernetes quantity in thousandths, the finest that autoscalers read: 4 is `4`, 0.8125 is `812m`."""
    thousandths = round(Fraction(value) * 1000)
    whole, rest = divmod(thousandths, 1000)
    return f"{thousandths}m" if rest else str(whole)


def format_time(at_s: float) -> str:
    """A time as the API writes it."""
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def render_pods(metric: str, readings: Iterable[PodReading]) -> Json:
    """A MetricValueList of pods."""
    return _value_list(
        _value("Pod", "/v1", reading.key.namespace, reading.key.name, metric, reading.sample) for reading in readings
    )


def render_service(metric: str, reading: ServiceReading) -> Json:
    """A MetricValueList of one InferenceService."""
    return _value_list(
        [_value("InferenceService", API_VERSION, reading.namespace, reading.service, metric, reading.sample)]
    )


def render_external(metric: str, readings: Iterable[ServiceReading]) -> Json:
    """An ExternalMetricValueList."""
    items = [
        {
            "metricName": metric,
            "metricLabels": external_labels(reading.namespace, reading.service),
            **_measured(reading.sample, "window"),
        }
        for reading in readings
    ]
    return {"kind": "ExternalMetricValueList", "apiVersion": _EXTERNAL, "metadata": {}, "items": items}


def render_groups() -> Json:
    """The APIGroupList of /apis."""
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(group) for group in GROUPS]}


def render_group(group: str) -> Json:
    """The APIGroup of /apis/GROUP; KeyError for others."""
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(group)}


def render_resources(group: str, version: str) -> Json | None:
    """The APIResourceList of /apis/GROUP/VERSION; None for others."""
    if GROUPS.get(group) != version:
        return None
    external = group == EXTERNAL_GROUP
    of_pods = [f"{PODS}/{metric}" for metric in METRICS if metric != metric_names.SERVICE_DEMAND]
    names = METRICS if external else [*of_pods, *(f"{SERVICES}/{metric}" for metric in METRICS)]
    kind = "ExternalMetricValueList" if external else "MetricValueList"
    resources = [
        {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get"]} for name in names
    ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}",
        "resources": resources,
    }


def render_refusal(code: int, message: str) -> Json:
    """A Status object."""
    reason = _REASONS.get(code) or HTTPStatus(code).phrase.replace(" ", "")
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def _value(kind: str, api_version: str, namespace: str, name: str, metric: str, sample: Sample) -> Json:
    return {
        "describedObject": {"kind": kind, "namespace": namespace, "name": name, "apiVersion": api_version},
        "metric": {"name": metric},
        **_measured(sample, "windowSeconds"),
    }


def _measured(sample: Sample, window: str) -> Json:
    # A gauge is read at one moment, so its window is zero; absent, autoscalers would assume a minute.
    return {"timestamp": format_time(sample.at_s), window: 0, "value": format_quantity(sample.value)}


def _value_list(items: Iterable[Json]) -> Json:
    return {"kind": "MetricValueList", "apiVersion": _CUSTOM, "metadata": {}, "items": list(items)}


def _group(group: str) -> Json:
    version = {"groupVersion": f"{group}/{GROUPS[group]}", "version": GROUPS[group]}
    versions: Sequence[Json] = [version]
    return {"name": group, "versions": versions, "preferredVersion": version}
