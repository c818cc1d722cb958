"""Devices as drivers publish them for claims (ResourceSlices), and which of them a GPUClass means.

What a scheduler would not use does not count: pools of which a part is missing, older generations of a pool, tainted
devices. Devices that no single node has are left out, because replicas stay on one node.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import cel

from windlass_operator.api.v1alpha1.gpu_class import GPUClassSpec
from windlass_operator.domain.quantity import parse_quantity


class DeviceId(NamedTuple):
    """One device of one cluster."""

    driver: str
    pool: str
    device: str


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a slice."""

    name: str
    node: str
    attributes: Mapping[str, Mapping[str, str | int | bool]]
    """By domain, then name. Versions are text such as `10.0.0`."""
    capacity: Mapping[str, Mapping[str, int | float]]
    """By domain, then name."""


@dataclass(frozen=True, slots=True, eq=False)
class DeviceSlice:
    """A part of a pool. Each is a value of its own, so that what was found out about it can be remembered."""

    driver: str
    pool: str
    generation: int
    parts: int
    """Slices that this generation of the pool has."""
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """Everything there is to claim, and what is claimed already."""

    slices: Mapping[str, DeviceSlice]
    """By the name of their ResourceSlice."""
    device_classes: Mapping[str, tuple[str, ...]]
    """CEL selectors of each DeviceClass; all must hold."""
    allocated: Mapping[tuple[str, str], tuple[DeviceId, ...]]
    """By namespace and name of the ResourceClaim, whoever made it."""


class Offered(NamedTuple):
    """Devices of a class on one node."""

    devices: frozenset[DeviceId]
    free: frozenset[DeviceId]


def offer_by_node(spec: GPUClassSpec, published: Published) -> dict[str, Offered]:
    """Which published devices are of a class, by node, and which of those no claim was given."""
    own = published.device_classes.get(spec.device_class_name or "")
    if own is None:
        return {}
    selectors, found = (*own, *spec.device_selectors), dict[str, set[DeviceId]]()
    for one in current_slices(published.slices.values()):
        for device in _matching(one, selectors):
            found.setdefault(device.node, set()).add(DeviceId(one.driver, one.pool, device.name))
    taken = {device for devices in published.allocated.values() for device in devices}
    return {node: Offered(frozenset(devices), frozenset(devices - taken)) for node, devices in found.items()}


def current_slices(slices: Iterable[DeviceSlice]) -> list[DeviceSlice]:
    """Slices of the newest generation of each pool, of pools that are complete."""
    pools: dict[tuple[str, str], list[DeviceSlice]] = {}
    for one in slices:
        known = pools.setdefault((one.driver, one.pool), [])
        if known and known[0].generation < one.generation:
            known.clear()
        if not known or known[0].generation == one.generation:
            known.append(one)
    return [one for parts in pools.values() if len(parts) == parts[0].parts for one in parts]


@functools.lru_cache(maxsize=4096)
def _matching(one: DeviceSlice, selectors: tuple[str, ...]) -> tuple[Device, ...]:
    return tuple(device for device in one.devices if all(_holds(text, device, one.driver) for text in selectors))


def _holds(expression: str, device: Device, driver: str) -> bool:
    """Whether a device meets a selector. One that cannot be evaluated is met by no device, as for the scheduler."""
    context = cel.Context()
    for name, function in _FUNCTIONS.items():
        context.add_function(name, function)
    context.add_variable("device", {"driver": driver, "attributes": device.attributes, "capacity": device.capacity})
    try:
        return _compile(expression).execute(context) is True
    except (RuntimeError, TypeError, ValueError, KeyError, OverflowError):
        return False


@functools.cache
def _compile(expression: str) -> cel.Program:
    return cel.compile(expression)


# -- the CEL library of Kubernetes, as far as selectors of devices use it ----------------------------------------------


def number_of(quantity: str) -> int | float:
    """Value of a quantity. Raises ValueError."""
    value = parse_quantity(quantity)
    return int(value) if value.denominator == 1 else float(value)


def _version(text: str) -> tuple[int, ...]:
    """Major, minor and patch of a semantic version. Raises ValueError."""
    return tuple(int(part) for part in text.partition("+")[0].partition("-")[0].split("."))


def _compare(one: Any, other: Any) -> int:
    """Quantities are numbers here, and versions are text."""
    if isinstance(one, str):
        one, other = _version(one), _version(other)
    return int(one > other) - int(one < other)


_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "quantity": number_of,
    "semver": lambda text: text,
    "compareTo": _compare,
    "isGreaterThan": lambda one, other: _compare(one, other) > 0,
    "isLessThan": lambda one, other: _compare(one, other) < 0,
    "major": lambda text: _version(text)[0],
    "minor": lambda text: _version(text)[1],
    "patch": lambda text: _version(text)[2],
}
