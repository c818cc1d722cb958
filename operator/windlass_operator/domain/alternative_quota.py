"""Reserve quota for the alternatives of device claims.

A claim with alternatives may end on any of its classes, and only the scheduler knows on which. Its first class is
shared out like every other request; in each other class the tenant's own devices are set aside for all of its replicas,
oldest claim first, as Kubernetes' own quota counts it. So whatever the scheduler takes, no class is overdrawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from windlass_operator.domain.decision import Refusal
from windlass_operator.domain.snapshot import Key


@dataclass(frozen=True, slots=True)
class AlternativeClaim:
    """What one service may take besides its first class."""

    key: Key
    created: str
    classes: tuple[str, ...]
    devices: int
    """In each of the classes, at most."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Devices of one tenant set aside."""

    devices: Mapping[str, int] = field(default_factory=dict)
    refusals: Mapping[Key, Refusal] = field(default_factory=dict)
    """Services for whose alternatives there is no room."""


def reserve_alternatives(claims: Iterable[AlternativeClaim], nominal: Mapping[str, int], tenant: str) -> Reservation:
    """Set devices aside in the order of age; a claim gets room in all of its classes or is refused."""
    reserved: dict[str, int] = {}
    refusals: dict[Key, Refusal] = {}
    for claim in sorted(claims, key=lambda claim: (claim.created, claim.key)):
        short = [name for name in claim.classes if reserved.get(name, 0) + claim.devices > nominal.get(name, 0)]
        if short:
            refusals[claim.key] = _refuse(claim, short[0], reserved, nominal, tenant)
            continue
        for name in claim.classes:
            reserved[name] = reserved.get(name, 0) + claim.devices
    return Reservation(reserved, refusals)


def _refuse(
    claim: AlternativeClaim, short: str, reserved: Mapping[str, int], nominal: Mapping[str, int], tenant: str
) -> Refusal:
    return Refusal(
        "QuotaExceeded",
        f"its claim may end on {short} with all replicas, which needs {claim.devices} x {short}; {tenant} has "
        f"{nominal.get(short, 0)}, of which {reserved.get(short, 0)} are set aside for other claims",
        f"Take {short} out of spec.accelerator.classes, lower replicas, or ask the platform team to raise "
        f"spec.quota.gpus of Tenant {tenant}",
    )
