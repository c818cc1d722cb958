"""Split a model's layers over the devices of one replica: each holds neighbouring layers and their key/value pages.

Both planes use it: the control plane to see whether a model fits, the replica to place it. Among all splits the one
that leaves the most memory per layer wins, because a page of the pool needs a part on every device: the tightest one
bounds the pool. Standard library only.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelParts:
    """Bytes of weights by what must stay together."""

    layers: tuple[int, ...]
    """Of each layer."""
    embedding: int
    """With the first layer."""
    head: int
    """With the last layer: final norm and output head."""
    shared: int = 0
    """Of `head`, what is the embedding itself where both are on one device: a tied output head."""

    def on(self, layers: range) -> int:
        """Bytes of a device that holds these layers."""
        return sum(self.layers[layers.start : layers.stop]) + self.tables(layers.start, layers.stop)

    def tables(self, first: int, stop: int) -> int:
        """Of that, what belongs to no layer."""
        begins, ends = first == 0, stop == len(self.layers)
        return self.embedding * begins + self.head * ends - self.shared * (begins and ends)

    @property
    def total(self) -> int:
        """Bytes on a single device."""
        return self.on(range(len(self.layers)))


@dataclass(frozen=True, slots=True)
class LayerSplit:
    """Which layers each device holds, and how large the pool of pages can be."""

    stages: tuple[range, ...]
    """Neighbouring layers of each device, in the order of the devices; none is empty."""
    pool_bytes: int
    """Most bytes of pages over all devices, bounded by the tightest one; negative where the weights do not fit."""


def split_layers(parts: ModelParts, free_bytes: tuple[int, ...]) -> LayerSplit | None:
    """Choose the split; None where there are fewer layers than devices.

    free_bytes  of each device, for weights and pages
    """
    return _split(parts, free_bytes) if 0 < len(free_bytes) <= len(parts.layers) else None


@functools.lru_cache(maxsize=1024)
def _split(parts: ModelParts, free_bytes: tuple[int, ...]) -> LayerSplit:
    """Remembered, because a control plane asks about few shapes often."""
    count, devices = len(parts.layers), len(free_bytes)
    sums = tuple(itertools.accumulate(parts.layers, initial=0))

    def room(device: int, first: int, stop: int) -> int:
        """Bytes left per layer of one device."""
        return (free_bytes[device] - parts.tables(first, stop) - sums[stop] + sums[first]) // (stop - first)

    @functools.cache
    def best(device: int, first: int) -> tuple[int, tuple[int, ...]]:
        """The most room per layer for the layers from `first` on over the devices from `device` on, and their stops."""
        if device == devices - 1:
            return room(device, first, count), (count,)
        options = []
        for stop in range(first + 1, count - (devices - 1 - device) + 1):
            rest, stops = best(device + 1, stop)
            options.append((min(room(device, first, stop), rest), (stop, *stops)))
        return max(options, key=lambda option: option[0])

    per_layer, stops = best(0, 0)
    bounds = (0, *stops)
    return LayerSplit(tuple(map(range, bounds, bounds[1:])), per_layer * count)
