"""The gateway's routing table as a Secret in the operator's own namespace: read once, then written when it changes.

A Secret, because it holds digests of tenants' keys. Not watched: the operator may read and write this one alone, and a
watch by label would need the right to read all of them.
"""

from __future__ import annotations

import base64
import logging
from typing import Final

from windlass_contract.endpoints import ROUTES_KEY, RoutingTable
from windlass_operator import errors
from windlass_operator.cluster.kubernetes_client import APPLY, KubernetesClient
from windlass_operator.cluster.kubernetes_kinds import FIELD_MANAGER, ApiKind
from windlass_operator.cluster.kubernetes_lease import Leadership

log = logging.getLogger(__name__)

SECRET: Final = ApiKind("v1", "Secret", "secrets")
MAX_PACKED_BYTES: Final = 1_000_000
"""A Secret holds 1 MiB, with everything around its data."""


class RoutesSecret:
    """Keeps one Secret equal to the newest table."""

    def __init__(self, client: KubernetesClient, leadership: Leadership, namespace: str, name: str) -> None:
        self._client = client
        self._leadership = leadership
        self._path = SECRET.path(namespace, name)
        self._metadata = {"name": name, "namespace": namespace}
        self._stored: str | None = None
        """What the Secret holds, as far as this process knows; None: unknown."""

    def forget(self) -> None:
        """Read the Secret before the next write: another process may have written it."""
        self._stored = None

    async def publish(self, table: RoutingTable) -> bool:
        """Write the table unless it is there already; return whether it was written.

        Raises RetryLater, ClusterUnavailable, and ApplyRejected for a table that does not fit into a Secret.
        """
        packed = table.pack()
        if len(packed) > MAX_PACKED_BYTES:
            raise errors.ApplyRejected(
                f"routing table of {len(table.routes)} services: expected at most {MAX_PACKED_BYTES} packed bytes, "
                f"found {len(packed)}; use fewer keys per tenant, or several operators with watchNamespaces",
                reason="TooLarge",
            )
        text = base64.b64encode(packed).decode()
        if self._stored is None:
            found = await self._client.get_at(self._path) or {}
            self._stored = (found.get("data") or {}).get(ROUTES_KEY, "")
        if self._stored == text:
            return False
        manifest = {
            "apiVersion": SECRET.api_version,
            "kind": SECRET.kind,
            "metadata": self._metadata,
            "data": {ROUTES_KEY: text},
        }
        self._stored = None  # an answer that never comes leaves us not knowing
        async with self._leadership.writing():
            await self._client.request(
                "PATCH",
                self._path,
                manifest,
                content_type=APPLY,
                params={"fieldManager": FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"},
            )
        self._stored = text
        return True
