"""The JSON form of Kubernetes objects, and the parts all of ours share."""

from __future__ import annotations

from typing import Any

Manifest = dict[str, Any]
"""apiVersion, kind, metadata and the rest; the same type as `cluster.protocol.Manifest`."""
