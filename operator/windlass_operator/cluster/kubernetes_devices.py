"""Fold what drivers publish for claims, and what claims were given, into what the planner reads. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from windlass_operator.domain.published import Device, DeviceId, DeviceSlice, number_of

Json = Mapping[str, Any]

_REPELS: Final = frozenset({"NoSchedule", "NoExecute"})
_VALUES: Final = ("string", "int", "bool", "version")


def fold_slice(manifest: Json) -> DeviceSlice:
    """Read a ResourceSlice: devices of single nodes that no taint keeps claims from."""
    spec = manifest["spec"]
    pool = spec.get("pool") or {}
    return DeviceSlice(
        driver=str(spec.get("driver", "")),
        pool=str(pool.get("name", "")),
        generation=int(pool.get("generation") or 0),
        parts=int(pool.get("resourceSliceCount") or 1),
        devices=tuple(_devices(spec)),
    )


def fold_device_class(manifest: Json) -> tuple[str, ...]:
    """CEL selectors of a DeviceClass."""
    selectors = manifest["spec"].get("selectors") or ()
    return tuple(str((selector.get("cel") or {}).get("expression", "false")) for selector in selectors)


def fold_allocation(manifest: Json) -> tuple[DeviceId, ...]:
    """Devices that a ResourceClaim was given for itself; administrators look at devices without taking them."""
    allocation = (manifest.get("status") or {}).get("allocation") or {}
    results = (allocation.get("devices") or {}).get("results") or ()
    return tuple(
        DeviceId(str(item.get("driver", "")), str(item.get("pool", "")), str(item.get("device", "")))
        for item in results
        if not item.get("adminAccess")
    )


def _devices(spec: Json) -> Iterator[Device]:
    driver = str(spec.get("driver", ""))
    for device in spec.get("devices") or ():
        node = spec.get("nodeName") or device.get("nodeName")
        repelled = any(taint.get("effect") in _REPELS for taint in device.get("taints") or ())
        if node and not repelled:
            attributes = {name: _value(one) for name, one in (device.get("attributes") or {}).items()}
            capacity = {name: number_of(str(one["value"])) for name, one in (device.get("capacity") or {}).items()}
            yield Device(device["name"], str(node), _by_domain(attributes, driver), _by_domain(capacity, driver))


def _value(attribute: Json) -> Any:
    return next((attribute[kind] for kind in _VALUES if kind in attribute), "")


def _by_domain(values: Mapping[str, Any], driver: str) -> dict[str, dict[str, Any]]:
    """`domain/name` by domain; a name without one is of the driver's."""
    found: dict[str, dict[str, Any]] = {driver: {}}
    for name, value in values.items():
        domain, _, short = name.rpartition("/")
        found.setdefault(domain or driver, {})[short] = value
    return found
