"""Power policy: what a GPUClass allows its GPUs to draw, and the profiles that services choose among.

Nothing here touches a GPU: the node agent does, where it is installed, and only on GPUs of classes with `power`.
"""

from __future__ import annotations

import enum
from itertools import combinations
from typing import Annotated, Final

from pydantic import ConfigDict, Field

from windlass_operator.api.meta import ApiModel
from windlass_operator.api.rules import Schema, constrained, rule

_PROFILES: Final = ("eco", "balanced", "performance")
_LIMITS: Final = {"powerLimitWatts": "Watts", "maxGraphicsClockMHz": "GraphicsClockMHz"}
"""Limit of a profile -> how its bounds end, after `min` and `max`."""


class PowerProfile(enum.StrEnum):
    """How much power a service is worth; from least to most."""

    ECO = "Eco"
    BALANCED = "Balanced"
    PERFORMANCE = "Performance"


WATTS_HAVE_ROOM: Final = rule(
    "self.minWatts <= self.maxWatts",
    "at least minWatts",
    found="string(self.maxWatts) + ' below ' + string(self.minWatts)",
    field=".maxWatts",
)
CLOCKS_COME_AS_A_PAIR: Final = rule(
    "has(self.minGraphicsClockMHz) == has(self.maxGraphicsClockMHz)",
    "minGraphicsClockMHz and maxGraphicsClockMHz together",
    found="'one of them'",
)
CLOCKS_HAVE_ROOM: Final = rule(
    "!has(self.minGraphicsClockMHz) || !has(self.maxGraphicsClockMHz)"
    " || self.minGraphicsClockMHz <= self.maxGraphicsClockMHz",
    "at least minGraphicsClockMHz",
    found="string(self.maxGraphicsClockMHz) + ' below ' + string(self.minGraphicsClockMHz)",
    field=".maxGraphicsClockMHz",
)
PROFILE_LIMITS_SOMETHING: Final = rule(
    "has(self.powerLimitWatts) || has(self.maxGraphicsClockMHz)",
    "powerLimitWatts, maxGraphicsClockMHz or both",
    found="'neither'",
)
LOAD_HAS_A_MIDDLE: Final = rule(
    "self.stepDownBelowPercent < self.stepUpAbovePercent",
    "more than stepDownBelowPercent, or the profile would never rest",
    found="string(self.stepUpAbovePercent) + ' with stepDownBelowPercent ' + string(self.stepDownBelowPercent)",
    field=".stepUpAbovePercent",
)
LOAD_HAS_SOMEWHERE_TO_GO: Final = rule(
    "!has(self.followLoad) || (has(self.profiles.eco) && has(self.profiles.performance))",
    "profiles eco and performance, between which the load moves Balanced",
    found="'not both'",
    field=".followLoad",
)


def _given(profile: str, limit: str) -> str:
    return f"has(self.profiles.{profile}) && has(self.profiles.{profile}.{limit})"


def _stays_in_bounds(profile: str, limit: str) -> dict[str, str]:
    low, high = (f"self.bounds.{end}{_LIMITS[limit]}" for end in ("min", "max"))
    value = f"self.profiles.{profile}.{limit}"
    return rule(
        f"!({_given(profile, limit)}) || (has({low}) && has({high}) && {low} <= {value} && {value} <= {high})",
        f"a value within bounds.min{_LIMITS[limit]} and bounds.max{_LIMITS[limit]}",
        found=f"string({value})",
        field=f".profiles.{profile}.{limit}",
    )


def _rises(lower: str, upper: str, limit: str) -> dict[str, str]:
    return rule(
        f"!({_given(lower, limit)} && {_given(upper, limit)})"
        f" || self.profiles.{lower}.{limit} <= self.profiles.{upper}.{limit}",
        f"at least the {limit} of {lower}, because profiles rise",
        found=f"string(self.profiles.{upper}.{limit})",
        field=f".profiles.{upper}.{limit}",
    )


IN_BOUNDS: Final = tuple(_stays_in_bounds(profile, limit) for limit in _LIMITS for profile in _PROFILES)
RISING: Final = tuple(_rises(lower, upper, limit) for limit in _LIMITS for lower, upper in combinations(_PROFILES, 2))

_POWER_RULES: Final[Schema] = constrained(*IN_BOUNDS, *RISING, LOAD_HAS_SOMEWHERE_TO_GO)


class PowerBounds(ApiModel):
    """What no profile may leave. The GPU's own limits hold besides."""

    model_config = ConfigDict(json_schema_extra=constrained(WATTS_HAVE_ROOM, CLOCKS_COME_AS_A_PAIR, CLOCKS_HAVE_ROOM))

    min_watts: Annotated[int, Field(ge=1, le=10_000, description="Lowest power limit of one GPU, in watts.")]
    max_watts: Annotated[int, Field(ge=1, le=10_000, description="Highest power limit of one GPU, in watts.")]
    min_graphics_clock_mhz: Annotated[
        int | None,
        Field(
            alias="minGraphicsClockMHz",
            ge=1,
            le=10_000,
            description="Lowest cap of the graphics clock, in MHz. Needed where a profile caps it.",
        ),
    ] = None
    max_graphics_clock_mhz: Annotated[
        int | None,
        Field(alias="maxGraphicsClockMHz", ge=1, le=10_000, description="Highest cap of the graphics clock, in MHz."),
    ] = None


class PowerLimits(ApiModel):
    """What one profile asks of a GPU. What it does not name stays as the agent finds it."""

    model_config = ConfigDict(json_schema_extra=constrained(PROFILE_LIMITS_SOMETHING))

    power_limit_watts: Annotated[
        int | None, Field(ge=1, le=10_000, description="Power limit of the whole GPU, in watts.")
    ] = None
    max_graphics_clock_mhz: Annotated[
        int | None,
        Field(alias="maxGraphicsClockMHz", ge=1, le=10_000, description="Cap of the graphics clock, in MHz."),
    ] = None


class PowerProfiles(ApiModel):
    """Limits by profile. A profile that is not listed leaves GPUs as they are."""

    eco: PowerLimits | None = None
    balanced: PowerLimits | None = None
    performance: PowerLimits | None = None


class TierProfiles(ApiModel):
    """Profile of the services of a tier that name none. Unset: Balanced."""

    realtime: Annotated[PowerProfile | None, Field(description="For tier Realtime.")] = None
    standard: Annotated[PowerProfile | None, Field(description="For tier Standard.")] = None
    batch: Annotated[PowerProfile | None, Field(description="For tier Batch, such as Eco.")] = None


class FollowLoad(ApiModel):
    """Move GPUs under Balanced between eco and performance by how busy they are."""

    model_config = ConfigDict(json_schema_extra=constrained(LOAD_HAS_A_MIDDLE))

    step_down_below_percent: Annotated[
        int, Field(ge=0, le=100, description="GPU use below which limits go one profile down.")
    ] = 30
    step_up_above_percent: Annotated[
        int, Field(ge=0, le=100, description="GPU use above which limits go one profile up.")
    ] = 80
    hold_seconds: Annotated[int, Field(ge=5, le=3600, description="How long the use must last, for each step.")] = 60


class Power(ApiModel):
    """Power policy of a class."""

    model_config = ConfigDict(json_schema_extra=_POWER_RULES)

    bounds: PowerBounds
    profiles: PowerProfiles
    tier_defaults: TierProfiles = TierProfiles()
    follow_load: FollowLoad | None = None
