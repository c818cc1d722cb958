"""Choose the power profile of a service: the planner explains it, the node agent obeys it."""

from __future__ import annotations

from dataclasses import dataclass

from windlass_operator.api.v1alpha1.inference_service import Tier
from windlass_operator.api.v1alpha1.power import Power, PowerLimits, PowerProfile
from windlass_operator.domain.decision import Decision, decide


@dataclass(frozen=True, slots=True)
class ProfileChoice:
    """A profile and why."""

    profile: PowerProfile
    reason: str


def choose_profile(wanted: PowerProfile | None, tier: Tier, power: Power | None) -> ProfileChoice:
    """What the service says, else what the class gives its tier, else Balanced."""
    if power is None:
        return ProfileChoice(PowerProfile.BALANCED, "the GPUClass has no power profiles, so nobody touches its GPUs")
    if wanted is not None:
        return ProfileChoice(wanted, "spec.powerProfile")
    given = {
        Tier.REALTIME: power.tier_defaults.realtime,
        Tier.STANDARD: power.tier_defaults.standard,
        Tier.BATCH: power.tier_defaults.batch,
    }[tier]
    if given is None:
        return ProfileChoice(PowerProfile.BALANCED, f"the GPUClass names none for tier {tier.value}")
    return ProfileChoice(given, f"the GPUClass gives it to tier {tier.value}")


def limits_of(power: Power, profile: PowerProfile) -> PowerLimits:
    """Return what a profile asks for; nothing where the class does not list it."""
    listed = {
        PowerProfile.ECO: power.profiles.eco,
        PowerProfile.BALANCED: power.profiles.balanced,
        PowerProfile.PERFORMANCE: power.profiles.performance,
    }[profile]
    return listed or PowerLimits()


def explain_power(wanted: PowerProfile | None, tier: Tier, power: Power | None) -> tuple[Decision, ...]:
    """Say which profile is meant; nothing where neither service nor class speaks of power."""
    if power is None and wanted is None:
        return ()
    choice = choose_profile(wanted, tier, power)
    if power is None:
        return (decide("power", "Unchanged", choice.reason),)
    return (decide("power", choice.profile.value, f"{choice.reason}: {describe(power, choice.profile)}"),)


def describe(power: Power, profile: PowerProfile) -> str:
    """Say in words what a profile asks of a GPU."""
    if profile is PowerProfile.BALANCED and power.follow_load is not None:
        return "limits follow the load between eco and performance"
    limits, words = limits_of(power, profile), []
    if limits.power_limit_watts is not None:
        words.append(f"at most {limits.power_limit_watts} W per GPU")
    if limits.max_graphics_clock_mhz is not None:
        words.append(f"graphics clock at most {limits.max_graphics_clock_mhz} MHz")
    return ", ".join(words) or "GPUs stay as they are"
