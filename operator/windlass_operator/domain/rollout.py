"""Decide how pods are replaced."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """Never both zero; never below `min_available`."""

    max_surge: int
    max_unavailable: int
    min_available: int
    """Replicas that stay ready, as the disruption budget demands too; 0 means no budget."""
    blocked: bool = False
    """True: a rollout now waits for a device, because stopping a replica first would break `min_available`."""
