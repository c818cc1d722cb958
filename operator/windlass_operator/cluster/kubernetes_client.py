"""A thin asynchronous client of the Kubernetes API: JSON in, JSON out, every failure mapped to what the caller can do.

The generated clients lose bodies of creating applies and cost a model class per kind; the few verbs we need are below.
Nothing is retried here except one request after a 401 with fresh credentials: the work queue owns retries.

  404                          NotFound
  409                          ApplyConflict (RetryLater)
  410, 429, 5xx, timeouts      RetryLater, after Retry-After where the server says so
  400, 403 on writes, 413, 422 ApplyRejected with a reason for the owner's status
  500 for want of a webhook    the same
  401, no route                ClusterUnavailable
  403 on reads                 Forbidden (ClusterUnavailable)
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from windlass_operator import errors
from windlass_operator.cluster.kubernetes_access import Access, AccessLoader
from windlass_operator.cluster.kubernetes_kinds import FIELD_MANAGER, KINDS, ApiKind, Ref, ref_of

Json = dict[str, Any]

APPLY: Final = "application/apply-patch+yaml"  # JSON is YAML
MERGE: Final = "application/merge-patch+json"
METADATA_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
PAGE_SIZE: Final = 500
LISTED: Final = ("name", "namespace", "uid", "resourceVersion")
MAX_RETRY_AFTER_S: Final = 120.0
WEBHOOK_FAILED: Final = "failed calling webhook"
"""How the server's words begin when an admission webhook does not answer."""


class NotFound(errors.ApplyRejected):
    """The object, its namespace or its kind does not exist."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="NotFound")


class Forbidden(errors.ClusterUnavailable):
    """We may not read this."""


class KubernetesClient:
    """One connection pool to one API server. Use as an asynchronous context manager."""

    def __init__(self, load_access: AccessLoader, request_timeout_s: float = 45.0, connections: int = 32) -> None:
        self._load_access = load_access
        self._timeout = aiohttp.ClientTimeout(total=request_timeout_s)
        self._connections = connections
        self._access: Access | None = None
        self._session: aiohttp.ClientSession | None = None
        self._renewing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._connect(await self._load_access())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def access(self) -> Access:
        """The access in use; valid after entering."""
        assert self._access is not None, "the client is not open"
        return self._access

    async def version(self) -> str:
        """Return the server's git version; the cheapest way to learn whether it is there."""
        return str((await self.request("GET", "/version")).get("gitVersion", "unknown"))

    async def serves(self, kind: ApiKind) -> bool:
        """Return whether the server knows the kind."""
        try:
            listed = await self.request("GET", f"/{'apis' if kind.group else 'api'}/{kind.api_version}")
        except NotFound:
            return False
        return any(resource.get("name") == kind.plural for resource in listed.get("resources", ()))

    async def get(self, ref: Ref) -> Json | None:
        """Return one object of a known kind; None when it does not exist."""
        return await self.get_at(KINDS[ref.kind].path(ref.namespace, ref.name))

    async def get_recent(self, ref: Ref) -> Json | None:
        """Like `get`, from the server's cache: costs it far less, and may be some milliseconds old."""
        kind = KINDS[ref.kind]
        try:
            return await self.request("GET", kind.path(ref.namespace, ref.name), params={"resourceVersion": "0"})
        except NotFound:
            return None

    async def get_at(self, path: str) -> Json | None:
        """Return the object at a path; None when it does not exist."""
        try:
            return await self.request("GET", path)
        except NotFound:
            return None

    async def list_metadata(self, kind: ApiKind, namespace: str, selector: str) -> list[Json]:
        """Return name, namespace, uid and version of all objects of a kind."""
        # Field managers and annotations are most of what metadata weighs, and nobody asks for them.
        return [
            {key: item["metadata"][key] for key in LISTED if key in item["metadata"]}
            async for item in self.list_items(kind.path(namespace), selector, accept=METADATA_ONLY)
        ]

    async def list_items(
        self, path: str, selector: str, *, accept: str = "application/json", fields: str = ""
    ) -> AsyncIterator[Json]:
        """Yield all objects of a collection that match a label and a field selector, asking for a page at a time.

        No version is asked for: servers since 1.31 answer consistently from their cache, and a list of version 0 comes
        as one page, however long.
        """
        params = {"limit": str(PAGE_SIZE)}
        if selector:
            params["labelSelector"] = selector
        if fields:
            params["fieldSelector"] = fields
        while True:
            page = await self.request("GET", path, params=params, accept=accept)
            for item in page.get("items") or ():
                yield item
            token = page.get("metadata", {}).get("continue")
            if not token:
                return
            params = {**params, "continue": token}

    async def apply(self, manifest: Mapping[str, Any], manager: str = FIELD_MANAGER) -> Json:
        """Server-side apply with force, creating if needed; returns the object as stored."""
        ref = ref_of(manifest)
        return await self.request(
            "PATCH",
            KINDS[ref.kind].path(ref.namespace, ref.name),
            manifest,
            content_type=APPLY,
            params={"fieldManager": manager, "force": "true", "fieldValidation": "Strict"},
        )

    async def patch_status(self, ref: Ref, patch: Mapping[str, Any]) -> Json:
        """Merge `patch` into the object through its status subresource; returns the object as stored."""
        return await self.request(
            "PATCH",
            KINDS[ref.kind].path(ref.namespace, ref.name, "status"),
            patch,
            content_type=MERGE,
            params={"fieldManager": FIELD_MANAGER},
        )

    async def delete(self, ref: Ref, uid: str) -> bool:
        """Delete exactly the object with that uid; return whether there was one."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        try:
            await self.request("DELETE", KINDS[ref.kind].path(ref.namespace, ref.name), body)
        except NotFound:
            return False
        return True

    async def create(self, kind: ApiKind, namespace: str, manifest: Mapping[str, Any]) -> Json:
        """Create an object; one that exists is an ApplyConflict."""
        return await self.request("POST", kind.path(namespace), manifest)

    async def replace(self, kind: ApiKind, manifest: Mapping[str, Any]) -> Json:
        """Replace an object; a stale resourceVersion is an ApplyConflict."""
        metadata = manifest["metadata"]
        return await self.request("PUT", kind.path(metadata.get("namespace", ""), metadata["name"]), manifest)

    async def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Json:
        """Send one request and return the decoded answer; raises as the module docstring says."""
        status, headers, text = await self._send(method, path, body, params or {}, content_type, accept)
        if status == 401:
            await self._renew(self.access)
            status, headers, text = await self._send(method, path, body, params or {}, content_type, accept)
        answer = _decode(text)
        if status >= 300:
            raise error_of(method, path, status, headers, answer, text)
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        params: Mapping[str, str],
        content_type: str,
        accept: str,
    ) -> tuple[int, Mapping[str, str], str]:
        assert self._session is not None, "the client is not open"
        access = self.access
        headers = {"Accept": accept}
        if access.authorization:
            headers["Authorization"] = access.authorization
        data = None
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body), content_type
        try:
            async with self._session.request(
                method,
                access.server + path,
                params=params,
                data=data,
                headers=headers,
                proxy=access.proxy or None,
                server_hostname=access.server_hostname or None,
            ) as response:
                return response.status, response.headers, await response.text()
        except TimeoutError as exc:
            raise errors.RetryLater(
                f"{method} {path}: no answer within {self._timeout.total:g} s", after_s=2.0
            ) from exc
        except aiohttp.ClientConnectorError as exc:
            raise errors.ClusterUnavailable(f"{access.server} ({access.source}): {exc}") from exc
        except aiohttp.ClientError as exc:
            raise errors.RetryLater(f"{method} {path}: {type(exc).__name__}: {exc}") from exc

    async def _renew(self, refused: Access) -> None:
        async with self._renewing:
            if self._access is refused:  # several requests meet the same 401; the first one logs in for all
                await self._connect(await self._load_access())

    async def _connect(self, access: Access) -> None:
        old, self._access = self._session, access
        connector = aiohttp.TCPConnector(
            limit=self._connections, ssl=access.ssl_context() if access.server.startswith("https") else False
        )
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        if old is not None:
            # Requests that still run on the old pool meet a closed connection and become RetryLater.
            await old.close()


def error_of(
    method: str,
    path: str,
    status: int,
    headers: Mapping[str, str],
    answer: Mapping[str, Any],
    text: str,
) -> errors.WindlassError:
    """Map an answer of the API server to one of our errors."""
    message = str(answer.get("message") or text.strip()[:300] or f"HTTP {status}")
    where = f"{method} {path}: {status}: {message}"
    if status == 404:
        return NotFound(message if answer.get("message") else where)
    if status == 409:
        return errors.ApplyConflict(where, after_s=0.2)
    if status == 500 and WEBHOOK_FAILED in message:
        # Down for hours, maybe: the owner's status must tell, and the other objects need not wait for it.
        return errors.ApplyRejected(message, reason="WebhookFailed")
    if status == 429 or status >= 500 or status == 410:
        return errors.RetryLater(where, after_s=_retry_after_s(headers))
    if status == 401:
        return errors.ClusterUnavailable(f"{where}: expected valid credentials, found none that the server accepts")
    if status == 403 and method == "GET":
        return Forbidden(f"{where}: expected the permission to read")
    return errors.ApplyRejected(message, reason=_rejection_reason(status, message))


def _rejection_reason(status: int, message: str) -> str:
    if status == 403 and "exceeded quota" in message:
        return "QuotaExceeded"
    return {403: "Forbidden", 422: "Invalid", 400: "Invalid", 413: "TooLarge"}.get(status, "Rejected")


def _retry_after_s(headers: Mapping[str, str]) -> float:
    try:
        return min(max(float(headers.get("Retry-After", "1")), 0.0), MAX_RETRY_AFTER_S)
    except ValueError:  # the HTTP-date form; the API server never sends it, a proxy might
        return 5.0


def _decode(text: str) -> Json:
    try:
        answer = json.loads(text) if text else {}
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
