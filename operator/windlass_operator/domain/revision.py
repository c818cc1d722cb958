"""Tell pod templates apart: a fingerprint of what we render, carried by a Deployment and copied to its ReplicaSets.

The cluster's own `pod-template-hash` covers what servers default and others add, so only a cluster can compute it; ours
is known before anything is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

_LENGTH: Final = 12


def fingerprint(template: Mapping[str, Any]) -> str:
    """Return a short digest of a rendered pod template, independent of key order."""
    text = json.dumps(template, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]
