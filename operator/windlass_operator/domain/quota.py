"""Values of sharing GPUs: what a tenant may have, what a service wants, what it gets. `sharing` decides on them."""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from windlass_operator.api.v1alpha1.inference_service import Tier
from windlass_operator.domain.snapshot import Key, Taking, TakingCause

__all__ = ["URGENCY", "ClassTerms", "Grant", "Request", "Taking", "TakingCause", "Terms", "Wait"]

URGENCY: Final = {tier: place for place, tier in enumerate((Tier.REALTIME, Tier.STANDARD, Tier.BATCH))}
"""Tiers in the order they are served; a higher number yields to a lower one."""


@dataclass(frozen=True, slots=True)
class ClassTerms:
    """What one tenant may have of one class."""

    nominal: int
    """Devices that are its own."""
    borrowing_limit: int | None = None
    """Devices beyond its own that it may borrow; None: as many as others lend."""
    lending_limit: int | None = None
    """Devices of its own that others may use while it does not; None: all."""

    @property
    def lendable(self) -> int:
        """Devices that others may use while the tenant does not."""
        return self.nominal if self.lending_limit is None else min(self.nominal, self.lending_limit)


@dataclass(frozen=True, slots=True)
class Terms:
    """What one tenant may have. A tenant without a cohort shares with nobody."""

    tenant: str
    classes: Mapping[str, ClassTerms]
    """A class that is not listed may neither be used nor borrowed."""
    cohort: str = ""
    weight: int = 1
    """How large a part of what is lent the tenant is due, against others."""
    allowance: int | None = None
    """Replicas that others' claims may still take from it now; None: no limit."""


class Wait(enum.StrEnum):
    """What a service waits for that has less than it needs."""

    ROOM = "Room"
    """The quota has no room; somebody must change something."""
    RETURN = "Return"
    """Devices are being taken back for it; waiting helps."""
    ALLOWANCE = "Allowance"
    """Devices are its own, and taking more replicas must wait for the budget of those who hold them."""


@dataclass(frozen=True)
class Request:
    """What one service wants. Kept from one decision to the next, and so is what is reckoned from it."""

    key: Key
    created: str
    """Creation timestamp; the older service is served first, the key breaks ties."""
    classes: tuple[str, ...]
    """Usable classes, best first; never empty."""
    least: int
    """Replicas without which it cannot run as asked."""
    most: int
    """Replicas it may grow to."""
    devices_per_replica: int = 1
    held_class: str = ""
    held_devices: int = 0
    """Devices its pods hold or wait for, of `held_class`."""
    tenant: str = ""
    tier: Tier = Tier.STANDARD
    floor: int = 0
    """Replicas that are promised to stay ready; kept as far as the tenant's own devices cover them."""
    told: int | None = None
    """Replicas it has been told to run; more of them are on their way out, and taking those costs no budget. None: as
    many as it holds."""
    demand: int = 0
    """Replicas that its load asks for; claimed within the tenant's own devices, not beyond."""
    fixed: bool = False
    """True: its spec cannot be carried out now, so what runs stays as it is, or goes as a whole."""
    promised_devices: int = 0
    """Devices of `held_class` for pods that a rollout may start now and that do not exist yet."""

    @functools.cached_property
    def held(self) -> int:
        """Replicas its pods make up."""
        return self.held_devices // self.devices_per_replica

    @functools.cached_property
    def kept(self) -> int:
        """Replicas among those that it may go on running, as far as its own spec goes."""
        return self.held if self.fixed else min(self.held, self.most)

    @functools.cached_property
    def leaving_devices(self) -> int:
        """Devices of pods that its own spec lets go."""
        return self.held_devices - self.kept * self.devices_per_replica


@dataclass(frozen=True, slots=True)
class Grant:
    """What one service gets."""

    gpu_class: str
    replicas: int
    """Replicas it may run, at most `most`."""
    least: int
    """What it asked for to run at all."""
    used: int
    """Devices of the class that were reserved for other services of the tenant when this one's turn came."""
    nominal: int
    """The tenant's own devices of the class."""
    spare_devices: int
    """Devices of the class that the tenant could take now: what a rollout may use."""
    devices_per_replica: int = 1
    cohort: str = ""
    borrowing_limit: int | None = 0
    """Of the class; None: as many as others lend. 0 without a cohort."""
    lendable: int = 0
    """Devices that the cohort could lend when this one's turn came."""
    borrowed: int = 0
    """Devices of this grant that are the cohort's, not the tenant's own."""
    taken: int = 0
    """Replicas that this decision takes from it and that were not counted before."""
    cause: TakingCause | None = None
    """For whom replicas are taken; None: none are."""
    wait: Wait = Wait.ROOM
    """What it waits for, if it is short."""

    @property
    def short(self) -> bool:
        """Whether the quota gives less than the service needs."""
        return self.replicas < self.least
