"""A metrics API on loopback for the real HorizontalPodAutoscaler controller: one value per pod, set by the test.

It is registered as an aggregated API through an ExternalName Service: the API server proxies to it as to any adapter.
"""

from __future__ import annotations

import contextlib
import datetime
import http.server
import json
import re
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.certificates import Authority
from support.kube_client import KubeClient, eventually

GROUP = "custom.metrics.k8s.io"
VERSION = "v1beta2"
NAMESPACE = "metrics-api"
_QUERY = re.compile(rf"^/apis/{GROUP}/{VERSION}/namespaces/([^/]+)/pods/\*/([^?]+)(?:[?]labelSelector=(.+))?$")


@dataclass
class MetricsApi:
    """`pods(namespace, selector)` names pods; `values` gives the value of each metric, a quantity, for all of them."""

    pods: Callable[[str, str], list[str]]
    values: dict[str, str] = field(default_factory=dict)
    users: set[str] = field(default_factory=set)
    """Who asked, as the aggregation layer vouches for them."""

    def answer(self, path: str, user: str) -> tuple[int, dict[str, Any]]:
        """Status and body of one GET."""
        if path.rstrip("/") == f"/apis/{GROUP}/{VERSION}":
            return 200, _resources(list(self.values))
        asked = _QUERY.match(path)
        if asked is None or asked.group(2) not in self.values:
            return 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        self.users.add(user)
        return 200, self._value_list(asked.group(1), asked.group(2), asked.group(3) or "")

    def _value_list(self, namespace: str, metric: str, selector: str) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        items = [
            {
                "describedObject": {"kind": "Pod", "apiVersion": "/v1", "namespace": namespace, "name": name},
                "metric": {"name": metric},
                "timestamp": now,
                "value": self.values[metric],
            }
            for name in self.pods(namespace, selector)
        ]
        return {"kind": "MetricValueList", "apiVersion": f"{GROUP}/{VERSION}", "metadata": {}, "items": items}


def _resources(metrics: list[str]) -> dict[str, Any]:
    resources = [
        {"name": f"pods/{name}", "singularName": "", "namespaced": True, "kind": "MetricValueList", "verbs": ["get"]}
        for name in metrics
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/{VERSION}", "resources": resources}


@contextlib.contextmanager
def serving_metrics(kube: KubeClient, folder: Path, api: MetricsApi) -> Iterator[None]:
    """Serve it, register it, wait until the API server finds it available; take everything away afterwards."""
    with _server(folder, api) as port:
        _register(kube, port)
        try:
            eventually(lambda: _is_available(kube), bool, timeout_s=60)
            yield
        finally:
            kube.delete("apiregistration.k8s.io/v1", "APIService", f"{VERSION}.{GROUP}")
            kube.delete("v1", "Namespace", NAMESPACE)
            eventually(lambda: kube.get("v1", "Namespace", NAMESPACE), lambda found: not found, timeout_s=60)


@contextlib.contextmanager
def _server(folder: Path, api: MetricsApi) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, body = api.answer(urllib.parse.unquote(self.path), self.headers.get("X-Remote-User", ""))
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    files = Authority(folder, "metrics-authority").server("metrics-api", ("localhost", "127.0.0.1"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(str(files.certificate), str(files.key))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def _register(kube: KubeClient, port: int) -> None:
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "metrics", "namespace": NAMESPACE},
            "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
        }
    )
    kube.apply(
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{VERSION}.{GROUP}"},
            "spec": {
                "group": GROUP,
                "version": VERSION,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "insecureSkipTLSVerify": True,
                "service": {"namespace": NAMESPACE, "name": "metrics", "port": port},
            },
        }
    )


def _is_available(kube: KubeClient) -> bool:
    found = kube.get("apiregistration.k8s.io/v1", "APIService", f"{VERSION}.{GROUP}") or {}
    conditions = (found.get("status") or {}).get("conditions") or []
    return any(item["type"] == "Available" and item["status"] == "True" for item in conditions)
