"""A small Kubernetes client for tests: JSON in, JSON out, no cache of objects, refusals in the server's words."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from support.control_plane import Access
from support.patience import stretched

Manifest = dict[str, Any]
T = TypeVar("T")

DISCOVERY_TIMEOUT_S = 10.0
BUSY_TIMEOUT_S = 10.0


class RefusedError(Exception):
    """The API server answered with an error; `code` is the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Resource(NamedTuple):
    """How a kind is spelled in paths."""

    plural: str
    namespaced: bool


class KubeClient:
    """Speaks to one API server as one user."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._tls = access.ssl_context()
        self._resources: dict[tuple[str, str], Resource] = {}

    def request(
        self, method: str, path: str, body: Manifest | None = None, content_type: str = "application/json"
    ) -> Any:
        """One call, repeated while the server answers 429. Raises RefusedError."""
        deadline = time.monotonic() + stretched(BUSY_TIMEOUT_S)
        while True:
            try:
                return self._send(method, path, body, content_type)
            except RefusedError as exc:
                # The server asks for patience, for instance while the storage of a new CRD starts.
                if exc.code != 429 or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _send(self, method: str, path: str, body: Manifest | None, content_type: str) -> Any:
        headers = {**self._access.headers, "Content-Type": content_type, "Accept": "application/json"}
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self._access.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, context=self._tls, timeout=30) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as exc:
            text = exc.read().decode(errors="replace")
            raise RefusedError(
                exc.code, json.loads(text).get("message", text) if text.startswith("{") else text
            ) from exc

    def apply(self, manifest: Manifest, *, manager: str = "e2e", dry_run: bool = False, force: bool = True) -> Manifest:
        """Server-side apply."""
        query = (
            {"fieldManager": manager} | ({"force": "true"} if force else {}) | ({"dryRun": "All"} if dry_run else {})
        )
        path = f"{self.path_of(manifest)}?{urllib.parse.urlencode(query)}"
        applied: Manifest = self.request("PATCH", path, manifest, "application/apply-patch+yaml")
        return applied

    def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Plain create, as client-side apply does it; strict about unknown fields."""
        query = "?fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        path = self.collection_of(manifest["apiVersion"], manifest["kind"], manifest["metadata"].get("namespace", ""))
        created: Manifest = self.request("POST", path + query, manifest)
        return created

    def merge(self, manifest: Manifest, change: Mapping[str, Any], *, subresource: str = "") -> Manifest:
        """JSON merge patch of the object or one subresource."""
        path = self.path_of(manifest) + (f"/{subresource}" if subresource else "")
        merged: Manifest = self.request("PATCH", path, dict(change), "application/merge-patch+json")
        return merged

    def get(self, api_version: str, kind: str, name: str, namespace: str = "") -> Manifest | None:
        """The object, or None when there is none."""
        try:
            found: Manifest = self.request("GET", self._path(api_version, kind, name, namespace))
        except RefusedError as exc:
            if exc.code == 404:
                return None
            raise
        return found

    def list(self, api_version: str, kind: str, namespace: str = "", selector: str = "") -> list[Manifest]:
        """All objects of a kind, in one namespace or everywhere."""
        path = self.collection_of(api_version, kind, namespace) + f"?labelSelector={urllib.parse.quote(selector)}"
        items = self.request("GET", path)["items"] or []
        return [{"apiVersion": api_version, "kind": kind, **item} for item in items]  # lists leave both out

    def delete(self, api_version: str, kind: str, name: str, namespace: str = "") -> None:
        """Delete; an object that is gone already is fine."""
        try:
            self.request("DELETE", self._path(api_version, kind, name, namespace))
        except RefusedError as exc:
            if exc.code != 404:
                raise

    def may(self, verb: str, group: str, resource: str, namespace: str = "", name: str = "") -> bool:
        """Whether this user may do something, by the server's own judgement; `resource` as in `pods/log`."""
        plural, _, subresource = resource.partition("/")
        attributes = {"verb": verb, "group": group, "resource": plural, "subresource": subresource}
        attributes |= {"namespace": namespace, "name": name}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = self.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return bool(answer["status"]["allowed"])

    def path_of(self, manifest: Mapping[str, Any]) -> str:
        """URL path of one object."""
        metadata = manifest["metadata"]
        return self._path(manifest["apiVersion"], manifest["kind"], metadata["name"], metadata.get("namespace", ""))

    def collection_of(self, api_version: str, kind: str, namespace: str) -> str:
        """URL path of a collection; the namespace counts for namespaced kinds only."""
        resource = self._resource(api_version, kind)
        root = _root(api_version)
        inside = f"/namespaces/{namespace}" if namespace and resource.namespaced else ""
        return f"{root}{inside}/{resource.plural}"

    def _path(self, api_version: str, kind: str, name: str, namespace: str) -> str:
        return f"{self.collection_of(api_version, kind, namespace)}/{name}"

    def _resource(self, api_version: str, kind: str) -> Resource:
        deadline = time.monotonic() + stretched(DISCOVERY_TIMEOUT_S)
        while (api_version, kind) not in self._resources:
            self._discover(api_version)
            if time.monotonic() > deadline:
                raise AssertionError(f"the server knows no {kind} of {api_version}")
        return self._resources[api_version, kind]

    def _discover(self, api_version: str) -> None:
        try:
            listed = self.request("GET", _root(api_version))
        except RefusedError as exc:
            if exc.code not in (404, 503):  # a CRD or an APIService that is not served yet
                raise
            time.sleep(0.1)
            return
        for item in listed["resources"]:
            if "/" not in item["name"]:
                self._resources[api_version, item["kind"]] = Resource(item["name"], item["namespaced"])


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def eventually(read: Callable[[], T], accept: Callable[[T], bool], *, timeout_s: float = 20.0) -> T:
    """Read until accepted. Raises AssertionError with the last value seen. A busy machine gets more time."""
    timeout_s = stretched(timeout_s)
    deadline = time.monotonic() + timeout_s
    while True:
        value = read()
        if accept(value):
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s; last seen: {json.dumps(value, default=str)[:4000]}")
        time.sleep(0.05)
