"""Bodies as Kubernetes clients parse them."""

from __future__ import annotations

import pytest

from windlass_contract.metric_names import KV_USE_RATIO, REQUESTS_WAITING
from windlass_operator.domain.quantity import parse_quantity
from windlass_operator.serve.answers import (
    format_quantity,
    render_external,
    render_group,
    render_groups,
    render_pods,
    render_refusal,
    render_resources,
    render_service,
)
from windlass_operator.serve.readings import PodReading, ServiceReading
from windlass_operator.serve.samples import METRICS, PodKey, Sample


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (4, "4"),
        (4.0, "4"),
        (0.8, "800m"),
        (0.8125, "812m"),
        (1.5, "1500m"),
        (0.0004, "0"),
        (1e9, "1000000000"),
    ],
)
def test_quantities_are_whole_or_in_thousandths(value: float, expected: str) -> None:
    assert format_quantity(value) == expected
    assert float(parse_quantity(expected)) == pytest.approx(value, abs=0.0005)


def test_pods() -> None:
    body = render_pods(REQUESTS_WAITING, [PodReading(PodKey("team-a", "chat-1"), Sample(4, 1_767_225_600.9))])

    assert body == {
        "kind": "MetricValueList",
        "apiVersion": "custom.metrics.k8s.io/v1beta2",
        "metadata": {},
        "items": [
            {
                "describedObject": {"kind": "Pod", "namespace": "team-a", "name": "chat-1", "apiVersion": "/v1"},
                "metric": {"name": REQUESTS_WAITING},
                "timestamp": "2026-01-01T00:00:00Z",
                "windowSeconds": 0,
                "value": "4",
            }
        ],
    }


def test_a_service() -> None:
    (item,) = render_service(KV_USE_RATIO, ServiceReading("team-a", "chat", Sample(0.5, 0)))["items"]

    assert item["describedObject"] == {
        "kind": "InferenceService",
        "namespace": "team-a",
        "name": "chat",
        "apiVersion": "windlass.dev/v1alpha1",
    }
    assert item["value"] == "500m"


def test_external_values() -> None:
    body = render_external(REQUESTS_WAITING, [ServiceReading("team-a", "chat", Sample(4, 0))])

    assert (body["kind"], body["apiVersion"]) == ("ExternalMetricValueList", "external.metrics.k8s.io/v1beta1")
    assert body["items"] == [
        {
            "metricName": REQUESTS_WAITING,
            "metricLabels": {"namespace": "team-a", "service": "chat"},
            "timestamp": "1970-01-01T00:00:00Z",
            "window": 0,
            "value": "4",
        }
    ]


def test_discovery_names_groups_versions_and_metrics() -> None:
    groups = {group["name"]: group["preferredVersion"]["version"] for group in render_groups()["groups"]}

    assert groups == {"custom.metrics.k8s.io": "v1beta2", "external.metrics.k8s.io": "v1beta1"}
    for group, version in groups.items():
        assert render_group(group)["kind"] == "APIGroup"
        resources = render_resources(group, version)
        assert resources is not None
        assert resources["groupVersion"] == f"{group}/{version}"
        assert {item["name"].rpartition("/")[2] for item in resources["resources"]} == set(METRICS)
        assert all(item["namespaced"] and item["verbs"] == ["get"] for item in resources["resources"])
    assert render_resources("custom.metrics.k8s.io", "v1beta1") is None
    assert render_resources("apps", "v1") is None


@pytest.mark.parametrize(
    ("code", "reason"), [(401, "Unauthorized"), (403, "Forbidden"), (404, "NotFound"), (418, "I'maTeapot")]
)
def test_a_refusal_is_a_status(code: int, reason: str) -> None:
    body = render_refusal(code, "why")

    assert (body["kind"], body["status"]) == ("Status", "Failure")
    assert (body["code"], body["reason"], body["message"]) == (code, reason, "why")
