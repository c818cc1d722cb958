"""Compare renting GPUs with owning them, over levels of load. Plain arithmetic; money is of one currency.

Renting is elastic: what a load needs is paid by the hour, but never less than one GPU. Owning is not: machines for the
busiest hour are bought, paid off, housed and maintained whether they work or not, and draw power by how busy they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from windlass_operator.domain.cost import money_per_million

HOURS_PER_YEAR: Final = 8766.0
HOURS_PER_MONTH: Final = HOURS_PER_YEAR / 12
_STEPS: Final = 200
"""Halvings of an interval: beyond the precision of a float."""


@dataclass(frozen=True, slots=True)
class Rented:
    """GPUs of a price list."""

    name: str
    price_per_gpu_hour: float
    tokens_per_s: float
    """What one GPU serves when it is busy."""


@dataclass(frozen=True, slots=True)
class Owned:
    """One kind of own machine."""

    name: str
    gpus: int
    purchase: float
    amortisation_years: float
    tokens_per_s: float
    """What one of its GPUs serves when it is busy."""
    residual_value: float = 0.0
    """What it still brings at the end of that time."""
    maintenance_per_year: float = 0.0
    """Support, spare parts and people."""
    hosting_per_month: float = 0.0
    """Rack, network and cooling that is not part of the PUE."""
    idle_watts: float = 0.0
    full_watts: float = 0.0
    """Of the whole machine."""
    price_per_kwh: float = 0.0
    pue: float = 1.0
    """Power of the building per power of its machines."""

    @property
    def fixed_per_hour(self) -> float:
        """What one machine costs an hour whether it works or not, without power."""
        paid_off = (self.purchase - self.residual_value) / (self.amortisation_years * HOURS_PER_YEAR)
        return paid_off + self.maintenance_per_year / HOURS_PER_YEAR + self.hosting_per_month / HOURS_PER_MONTH

    def power_per_hour(self, utilisation: float) -> float:
        """What the power of one machine costs an hour at a share of its work, 0 to 1."""
        watts = self.idle_watts + (self.full_watts - self.idle_watts) * utilisation
        return watts / 1000 * self.pue * self.price_per_kwh

    @property
    def machine_tokens_per_s(self) -> float:
        """What one machine serves when all of it is busy."""
        return self.gpus * self.tokens_per_s


@dataclass(frozen=True, slots=True)
class Level:
    """Both ways at one level of load."""

    utilisation: float
    """Mean share of the own machines' work, 0 to 1."""
    tokens_per_hour: float
    machines: int
    rented_per_hour: float
    owned_per_hour: float

    @property
    def rented_per_million(self) -> float | None:
        return money_per_million(self.rented_per_hour, self.tokens_per_hour)

    @property
    def owned_per_million(self) -> float | None:
        return money_per_million(self.owned_per_hour, self.tokens_per_hour)


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Where owning begins to pay."""

    utilisation: float | None
    """Least mean share of the machines' work at which owning costs no more; None: at no share."""
    tokens_per_hour: float | None
    payback_months: float | None
    """Months until the purchase is earned at the present load; None: never."""


def machines_for(tokens_per_s: float, peak: float, owned: Owned) -> int:
    """Machines for the busiest hour; `peak` is its load as a multiple of the mean."""
    return max(1, math.ceil(tokens_per_s * peak / owned.machine_tokens_per_s - 1e-9))


def rented_per_hour(tokens_per_s: float, rented: Rented, headroom: float) -> float:
    """Price of an hour; `headroom` is the share that is rented beyond what the load needs."""
    gpus = tokens_per_s * (1 + headroom) / rented.tokens_per_s
    return max(1.0, gpus) * rented.price_per_gpu_hour


def owned_per_hour(utilisation: float, machines: int, owned: Owned) -> float:
    """Price of an hour of so many machines."""
    return machines * (owned.fixed_per_hour + owned.power_per_hour(utilisation))


def compare_at(utilisation: float, machines: int, rented: Rented, owned: Owned, headroom: float = 0.0) -> Level:
    """Both ways while the own machines work a share of their time."""
    tokens_per_s = utilisation * machines * owned.machine_tokens_per_s
    return Level(
        utilisation,
        tokens_per_s * 3600,
        machines,
        rented_per_hour(tokens_per_s, rented, headroom),
        owned_per_hour(utilisation, machines, owned),
    )


def solve_break_even(machines: int, rented: Rented, owned: Owned, headroom: float = 0.0) -> float | None:
    """Least utilisation from which on owning costs no more than renting; None when not even at full load.

    Renting costs one GPU at least. Up to the load that one GPU serves, what owning saves falls as its power rises;
    beyond, it is a straight line. So it is enough to look where that line begins and where it ends.
    """

    def saving(utilisation: float) -> float:
        level = compare_at(utilisation, machines, rented, owned, headroom)
        return level.rented_per_hour - level.owned_per_hour

    if saving(1.0) < 0:
        return None
    floor = _one_gpu(machines, rented, owned, headroom)
    return 0.0 if saving(floor) >= 0 else bisect(saving, floor, 1.0)


def _one_gpu(machines: int, rented: Rented, owned: Owned, headroom: float) -> float:
    """Utilisation up to which one rented GPU does."""
    needed = rented.tokens_per_s / (1 + headroom)
    return min(1.0, needed / (machines * owned.machine_tokens_per_s))


def bisect(rising: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function that is negative at `low` and not at `high` turns."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) >= 0 else (middle, high)
    return high


def payback_months(level: Level, owned: Owned) -> float | None:
    """Months until the purchase is earned by what is not rented; None when running alone costs as much."""
    years = owned.amortisation_years
    paid_off = level.machines * (owned.purchase - owned.residual_value) / (years * HOURS_PER_YEAR)
    saved_per_hour = level.rented_per_hour - (level.owned_per_hour - paid_off)
    return level.machines * owned.purchase / (saved_per_hour * HOURS_PER_MONTH) if saved_per_hour > 0 else None


def find_break_even(level: Level, rented: Rented, owned: Owned, headroom: float = 0.0) -> BreakEven:
    """Where owning begins to pay for so many machines, and when at the present load."""
    share = solve_break_even(level.machines, rented, owned, headroom)
    tokens = None if share is None else share * level.machines * owned.machine_tokens_per_s * 3600
    return BreakEven(share, tokens, payback_months(level, owned))
