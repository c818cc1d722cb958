"""Move a GPU between profiles by how busy it is: one step at a time, and only after the use has lasted. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from windlass_operator.api.v1alpha1.power import FollowLoad, PowerProfile

_LADDER: Final = (PowerProfile.ECO, PowerProfile.BALANCED, PowerProfile.PERFORMANCE)


@dataclass(frozen=True, slots=True)
class LoadLevel:
    """Where a GPU stands, and since when its use asks for another step."""

    profile: PowerProfile = PowerProfile.BALANCED
    low_since_s: float | None = None
    high_since_s: float | None = None


def step_level(level: LoadLevel, use_percent: int | None, follow: FollowLoad, now_s: float) -> LoadLevel:
    """Return the level after one look. A GPU that does not report its use stays where it is."""
    if use_percent is None:
        return LoadLevel(level.profile)
    if use_percent < follow.step_down_below_percent:
        since = now_s if level.low_since_s is None else level.low_since_s
        if now_s - since >= follow.hold_seconds:
            return LoadLevel(_step(level.profile, -1))
        return LoadLevel(level.profile, low_since_s=since)
    if use_percent > follow.step_up_above_percent:
        since = now_s if level.high_since_s is None else level.high_since_s
        if now_s - since >= follow.hold_seconds:
            return LoadLevel(_step(level.profile, 1))
        return LoadLevel(level.profile, high_since_s=since)
    return LoadLevel(level.profile)


def _step(profile: PowerProfile, steps: int) -> PowerProfile:
    position = _LADDER.index(profile) + steps
    return _LADDER[min(max(position, 0), len(_LADDER) - 1)]
