"""Count what tenants hold, borrow and lend now, and the most each may ever hold. Numbers of the Tenant's side."""

from __future__ import annotations

from collections.abc import Iterable

from windlass_operator.api.v1alpha1.tenant import GpuUse, Tenant
from windlass_operator.domain.fleet_view import FleetView, circle_of
from windlass_operator.domain.quota import ClassTerms


def most_devices(tenant: Tenant, gpu_class: str, view: FleetView) -> int:
    """Devices of a listed class that a tenant can hold when everybody lends all that they may."""
    terms = view.quotas[tenant.metadata.name].get(gpu_class, ClassTerms(0))
    lendable = sum(
        view.quotas[other.metadata.name][gpu_class].lendable
        for other in view.members(circle_of(tenant))
        if other.metadata.name != tenant.metadata.name and gpu_class in view.quotas[other.metadata.name]
    )
    return terms.nominal + (lendable if terms.borrowing_limit is None else min(lendable, terms.borrowing_limit))


def count_use(tenant: Tenant, view: FleetView) -> tuple[GpuUse, ...]:
    """Use per class: those of the quota, and those that services hold without one."""
    held = view.held_by(tenant.metadata.name)
    listed = view.quotas[tenant.metadata.name]
    return tuple(
        GpuUse(
            name=name,
            nominal=listed[name].nominal if name in listed else 0,
            used=held.get(name, 0),
            borrowed=_borrowed(tenant, name, view),
            lent=_lent(tenant, name, view),
        )
        for name in sorted({*listed, *held})
    )


def _borrowed(tenant: Tenant, gpu_class: str, view: FleetView) -> int:
    if not tenant.spec.cohort or gpu_class not in view.quotas[tenant.metadata.name]:
        return 0
    return max(
        0, view.held_by(tenant.metadata.name).get(gpu_class, 0) - view.quotas[tenant.metadata.name][gpu_class].nominal
    )


def _lent(tenant: Tenant, gpu_class: str, view: FleetView) -> int:
    """Its part of what the cohort borrows. Whose device is whose nobody knows: those with most idle ones lend first."""
    members = view.members(circle_of(tenant))
    left = sum(_borrowed(member, gpu_class, view) for member in members)
    for idle, name in sorted(_idle(members, gpu_class, view), key=lambda item: (-item[0], item[1])):
        lent = min(idle, left)
        if name == tenant.metadata.name:
            return lent
        left -= lent
    return 0


def _idle(members: Iterable[Tenant], gpu_class: str, view: FleetView) -> list[tuple[int, str]]:
    found = []
    for member in members:
        terms = view.quotas[member.metadata.name].get(gpu_class)
        if terms is not None:
            unused = max(0, terms.nominal - view.held_by(member.metadata.name).get(gpu_class, 0))
            found.append((min(terms.lendable, unused), member.metadata.name))
    return found
