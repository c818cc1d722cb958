"""Tokens of service accounts, as a kubelet would request them."""

from __future__ import annotations

from support.kube_client import KubeClient, Manifest


def request_token(kube: KubeClient, namespace: str, account: str) -> str:
    """A token of a service account."""
    request: Manifest = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": 4 * 3600},
    }
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    token: str = kube.request("POST", path, request)["status"]["token"]
    return token
