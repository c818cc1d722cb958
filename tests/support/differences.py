"""What a server stored otherwise than it was told."""

from __future__ import annotations

from typing import Any


def differences(wanted: Any, stored: Any, path: str = "") -> list[str]:
    """Fields of `wanted` that the server keeps otherwise; what it adds is its own business."""
    if isinstance(wanted, dict) and isinstance(stored, dict):
        return [text for key, value in wanted.items() for text in differences(value, stored.get(key), f"{path}.{key}")]
    if isinstance(wanted, list) and isinstance(stored, list) and len(wanted) == len(stored):
        pairs = enumerate(zip(wanted, stored, strict=True))
        return [text for index, (left, right) in pairs for text in differences(left, right, f"{path}[{index}]")]
    return [] if wanted == stored else [f"{path}: wrote {wanted!r}, stored {stored!r}"]
