"""Count what scattered replicas cost: devices that work for whole nodes cannot use, and could after repacking.

A node with one busy device of eight keeps out whatever needs all eight. Were the busy devices moved together, whole
nodes would come free; the difference between that best case and what is free now is lost to fragmentation. Only
replicas of ours are seen, so devices that other pods hold count as free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fragmentation:
    """Free devices of one class, and how they lie."""

    free: int
    largest_block: int
    """Most free devices on one node."""
    lost: int
    """Devices of nodes that would be wholly free if the busy devices lay together."""


def measure_fragmentation(capacity: Mapping[str, int], used: Mapping[str, int]) -> Fragmentation:
    """Compare how devices are used with the best way to use as many.

    capacity  devices per node
    used      devices in use per node; nodes that are not in `capacity` are passed over
    """
    busy = {node: min(used.get(node, 0), count) for node, count in capacity.items()}
    free = {node: count - busy[node] for node, count in capacity.items()}
    whole = sum(count for node, count in free.items() if busy[node] == 0)
    most_whole = sum(capacity.values()) - _smallest_cover(list(capacity.values()), sum(busy.values()))
    return Fragmentation(sum(free.values()), max(free.values(), default=0), most_whole - whole)


def count_missing(
    free: Mapping[str, int], capacity: Mapping[str, int], count: int, replicas: int
) -> dict[str, int] | None:
    """Devices to free on each node so that some replicas of `count` devices each find a place, the fewest at a time.

    None where all nodes together are too small, whoever leaves them.
    """
    left, idle = dict(capacity), dict(free)
    missing: dict[str, int] = {}
    for _ in range(replicas):
        open_to = [node for node, devices in left.items() if devices >= count]
        if not open_to:
            return None
        node = min(open_to, key=lambda node: (max(0, count - idle.get(node, 0)), node))
        short = max(0, count - idle.get(node, 0))
        if short:
            missing[node] = missing.get(node, 0) + short
        idle[node] = max(0, idle.get(node, 0) - count)
        left[node] -= count
    return missing


def _smallest_cover(sizes: list[int], needed: int) -> int:
    """Least sum of some of the sizes that is at least `needed`, which must not exceed their sum."""
    reachable = {0}
    for size in sizes:
        # Sums beyond what is needed grow no further: adding to them only makes them larger.
        reachable |= {total + size for total in reachable if total < needed}
    return min(total for total in reachable if total >= needed)
