"""What a URL asks for, and what permission that needs."""

from __future__ import annotations

import pytest

from windlass_operator.serve.paths import (
    Attributes,
    ExternalQuery,
    PodsQuery,
    Query,
    ServiceQuery,
    attributes_of,
    parse_query,
)

CUSTOM = "/apis/custom.metrics.k8s.io/v1beta2"
EXTERNAL = "/apis/external.metrics.k8s.io/v1beta1"
GROUP, VERSION = "custom.metrics.k8s.io", "v1beta2"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"{CUSTOM}/namespaces/a/pods/*/m", PodsQuery("a", "m")),
        (f"{CUSTOM}/namespaces/a/pods/p/m", PodsQuery("a", "m", "p")),
        (f"{CUSTOM}/namespaces/a/inferenceservices.windlass.dev/chat/m", ServiceQuery("a", "m", "chat")),
        (f"{CUSTOM}/namespaces/a/inferenceservices.windlass.dev/*/m", None),
        (f"{CUSTOM}/namespaces/a/inferenceservices/chat/m", None),
        (f"{CUSTOM}/namespaces/a/services/chat/m", None),
        (f"{CUSTOM}/namespaces/a/metrics/m", None),
        (f"{CUSTOM}/namespaces/a/pods/*/m/more", None),
        ("/apis/custom.metrics.k8s.io/v1beta1/namespaces/a/pods/*/m", None),
        (f"{EXTERNAL}/namespaces/a/m", ExternalQuery("a", "m")),
        (f"{EXTERNAL}/m", None),
        ("/api/v1/namespaces/a/pods/p/log", None),
        (CUSTOM, None),
        ("/", None),
    ],
)
def test_a_path_asks_for(path: str, expected: Query | None) -> None:
    assert parse_query(path) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            f"{CUSTOM}/namespaces/a/pods/*/m",
            Attributes("get", "", GROUP, VERSION, "a", "pods", "m", "*"),
        ),
        (f"{CUSTOM}/namespaces/a/pods/p/m/x", Attributes("get", "", GROUP, VERSION, "a", "pods", "m", "p")),
        (f"{CUSTOM}/namespaces/a/pods", Attributes("list", "", GROUP, VERSION, "a", "pods")),
        (
            f"{EXTERNAL}/namespaces/a/m",
            Attributes("list", "", "external.metrics.k8s.io", "v1beta1", "a", "m"),
        ),
        (CUSTOM, Attributes("get", CUSTOM)),
        (f"{CUSTOM}/", Attributes("get", f"{CUSTOM}/")),
        ("/apis", Attributes("get", "/apis")),
        ("/metrics", Attributes("get", "/metrics")),
        (f"{CUSTOM}/nodes/n/m", Attributes("get", "", GROUP, VERSION, "", "nodes", "m", "n")),
    ],
)
def test_a_path_needs_permission_for(path: str, expected: Attributes) -> None:
    assert attributes_of(path) == expected
