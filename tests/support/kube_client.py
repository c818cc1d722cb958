"""A small Kubernetes client for tests: JSON in, JSON out, no caching, every refusal with the server's own words."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from support.control_plane import ControlPlane, loopback_tls

Manifest = dict[str, Any]
T = TypeVar("T")

CLUSTER_SCOPED = {"Namespace", "Node", "CustomResourceDefinition", "PriorityClass", "Tenant", "GPUClass", "ClusterRole"}
PLURALS = {"NetworkPolicy": "networkpolicies", "PriorityClass": "priorityclasses", "GPUClass": "gpuclasses"}


class RefusedError(Exception):
    """The API server answered with an error; `code` is the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class KubeClient:
    """Speaks to one API server as one user."""

    def __init__(self, plane: ControlPlane, token: str | None = None) -> None:
        self._url = plane.url
        self._token = token or plane.token

    def request(
        self, method: str, path: str, body: Manifest | None = None, content_type: str = "application/json"
    ) -> Any:
        """One call. Raises RefusedError."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content_type, "Accept": "application/json"}
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self._url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, context=loopback_tls(), timeout=30) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as exc:
            text = exc.read().decode(errors="replace")
            raise RefusedError(
                exc.code, json.loads(text).get("message", text) if text.startswith("{") else text
            ) from exc

    def apply(self, manifest: Manifest, *, manager: str = "e2e", dry_run: bool = False) -> Manifest:
        """Server-side apply with force."""
        query = {"fieldManager": manager, "force": "true"} | ({"dryRun": "All"} if dry_run else {})
        path = f"{path_of(manifest)}?{urllib.parse.urlencode(query)}"
        applied: Manifest = self.request("PATCH", path, manifest, "application/apply-patch+yaml")
        return applied

    def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Plain create, as client-side apply does it; strict about unknown fields."""
        query = "?fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        created: Manifest = self.request("POST", path_of(manifest).rsplit("/", 1)[0] + query, manifest)
        return created

    def merge(self, manifest: Manifest, change: Mapping[str, Any], *, subresource: str = "") -> Manifest:
        """JSON merge patch of the object or one subresource."""
        path = path_of(manifest) + (f"/{subresource}" if subresource else "")
        merged: Manifest = self.request("PATCH", path, dict(change), "application/merge-patch+json")
        return merged

    def get(self, api_version: str, kind: str, name: str, namespace: str = "") -> Manifest | None:
        """The object, or None when there is none."""
        metadata = {"name": name, "namespace": namespace}
        try:
            found: Manifest = self.request(
                "GET", path_of({"apiVersion": api_version, "kind": kind, "metadata": metadata})
            )
        except RefusedError as exc:
            if exc.code == 404:
                return None
            raise
        return found

    def list(self, api_version: str, kind: str, namespace: str = "", selector: str = "") -> list[Manifest]:
        """All objects of a kind, in one namespace or everywhere."""
        path = collection_of(api_version, kind, namespace) + f"?labelSelector={urllib.parse.quote(selector)}"
        found: list[Manifest] = self.request("GET", path)["items"]
        return found

    def delete(self, api_version: str, kind: str, name: str, namespace: str = "") -> None:
        """Delete; an object that is gone already is fine."""
        metadata = {"name": name, "namespace": namespace}
        try:
            self.request("DELETE", path_of({"apiVersion": api_version, "kind": kind, "metadata": metadata}))
        except RefusedError as exc:
            if exc.code != 404:
                raise


def path_of(manifest: Mapping[str, Any]) -> str:
    """URL path of one object."""
    metadata = manifest["metadata"]
    namespace = metadata.get("namespace", "") if manifest["kind"] not in CLUSTER_SCOPED else ""
    return f"{collection_of(manifest['apiVersion'], manifest['kind'], namespace)}/{metadata['name']}"


def collection_of(api_version: str, kind: str, namespace: str) -> str:
    """URL path of a collection."""
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    plural = PLURALS.get(kind, kind.lower() + "s")
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"


def eventually(read: Callable[[], T], accept: Callable[[T], bool], *, timeout_s: float = 20.0) -> T:
    """Read until accepted. Raises AssertionError with the last value seen."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = read()
        if accept(value):
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s; last seen: {json.dumps(value, default=str)[:4000]}")
        time.sleep(0.05)
