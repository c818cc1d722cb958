"""Tell which physical GPU a device belongs to: ids of device plugins and of ResourceClaims. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from windlass_operator.power.devices import Gpu

_MINOR: Final = re.compile(r"^nvidia(\d+)(/.*)?$")
"""Google's device plugin numbers GPUs, and writes a slice or a share after a slash."""


@dataclass(frozen=True, slots=True)
class ClaimedDevice:
    """A device that a ResourceClaim gave to a pod."""

    driver: str
    pool: str
    name: str


@dataclass(frozen=True, slots=True)
class PodDevices:
    """What one pod holds."""

    namespace: str
    name: str
    ids: tuple[str, ...] = ()
    """Device ids of device plugins."""
    claimed: tuple[ClaimedDevice, ...] = ()


def holders_by_gpu(
    gpus: Iterable[Gpu], pods: Iterable[PodDevices], claimed: Mapping[ClaimedDevice, str]
) -> dict[str, tuple[PodDevices, ...]]:
    """Return the pods that hold each GPU or a part of it, by the GPU's UUID. Devices that are no GPU are skipped.

    claimed  UUID of each device that drivers published, a GPU's or a slice's
    """
    whole = {name: gpu.uuid for gpu in gpus for name in (gpu.uuid, *gpu.slices, f"nvidia{gpu.index}")}
    held: dict[str, tuple[PodDevices, ...]] = {}
    for pod in pods:
        names = [*map(_device_of, pod.ids), *(claimed.get(device, "") for device in pod.claimed)]
        for uuid in dict.fromkeys(whole[name] for name in names if name in whole):
            held[uuid] = (*held.get(uuid, ()), pod)
    return held


def _device_of(plugin_id: str) -> str:
    """Strip what a device plugin adds for shares: `GPU-...::3`, `nvidia0/vgpu1`."""
    numbered = _MINOR.match(plugin_id)
    return f"nvidia{numbered[1]}" if numbered else plugin_id.partition("::")[0]
