"""Count what GPU classes offer: nodes, devices, and devices nobody of ours holds; each class once per snapshot."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from windlass_operator.api.v1alpha1.gpu_class import GPUClass
from windlass_operator.domain.fragmentation import Fragmentation, measure_fragmentation
from windlass_operator.domain.published import DeviceId, Offered, offer_by_node
from windlass_operator.domain.snapshot import Node, Snapshot


@dataclass(frozen=True, slots=True)
class Offer:
    """What one class has."""

    nodes: frozenset[str]
    """Names of ready, schedulable nodes that carry it."""
    devices: int


class Supply:
    """Counts over one snapshot, remembered."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._offers: dict[str, Offer] = {}
        self._claimable: dict[str, Mapping[str, Offered]] = {}
        self._slots: dict[tuple[str, int], int] = {}
        self._shared: dict[tuple[str, str], bool] = {}

    def nodes(self, gpu_class: str, count: int = 1) -> int | None:
        """Usable nodes of a class with at least so many devices each; None while nodes are unknown."""
        if self._snapshot.nodes is None:
            return None
        return sum(devices >= count for devices in self.capacity(gpu_class).values())

    def largest_node(self, gpu_class: str) -> int:
        """Most devices of a class on one usable node; 0 while nodes are unknown."""
        return max(self.capacity(gpu_class).values(), default=0)

    def labelled(self, gpu_class: str) -> int:
        """Usable nodes with the labels of a class, whether or not a device plugin reports devices there."""
        wanted = self._snapshot.gpu_classes[gpu_class]
        return sum(_is_labelled(node, wanted) for node in (self._snapshot.nodes or {}).values())

    def claimable(self, gpu_class: str) -> Mapping[str, Offered] | None:
        """Devices of a class that drivers publish for claims, on its usable nodes; None while they are unknown."""
        published, nodes = self._snapshot.published, self._snapshot.nodes
        if published is None or nodes is None:
            return None
        if gpu_class not in self._claimable:
            wanted = self._snapshot.gpu_classes[gpu_class]
            offers = offer_by_node(wanted.spec, published).items()
            usable = {node: offer for node, offer in offers if node in nodes and _is_labelled(nodes[node], wanted)}
            self._claimable[gpu_class] = usable
        return self._claimable[gpu_class]

    def claimable_nodes(self, gpu_class: str, count: int) -> int | None:
        """Usable nodes with at least so many devices to claim; None while they are unknown."""
        offers = self.claimable(gpu_class)
        return None if offers is None else sum(len(offer.devices) >= count for offer in offers.values())

    def claim_slots(self, gpu_classes: Sequence[str], count: int) -> int | None:
        """Replicas that could claim `count` devices of one of some classes on one node now; None while unknown.

        A device that several classes mean counts once, for the first of them.
        """
        slots, counted = 0, set[DeviceId]()
        for name in gpu_classes:
            offers = self.claimable(name)
            if offers is None:
                return None
            slots += sum(len(offer.free - counted) // count for offer in offers.values()) - self._spoilt(name, count)
            counted |= {device for offer in offers.values() for device in offer.free}
        return slots

    def devices(self, gpu_class: str) -> int:
        """Devices on the usable nodes of a class; 0 while nodes are unknown."""
        return self._offer(gpu_class).devices

    def held(self, gpu_class: str) -> int:
        """Devices of a class that replicas of ours hold or wait for."""
        return self._held_by_class.get(gpu_class, 0)

    def free(self, gpu_class: str) -> int | None:
        """Devices of a class that no replica of ours holds or waits for; negative while more wait than exist.

        Classes may select the same nodes; replicas of any such class count as users of this one, so the figure is never
        too high for that reason. Devices held by other pods are unknown here. None while nodes are unknown.
        """
        if self._snapshot.nodes is None:
            return None
        rivals = [name for name in self._snapshot.gpu_classes if self.share_devices(gpu_class, name)]
        return self._offer(gpu_class).devices - sum(self.held(name) for name in rivals)

    def slots(self, gpu_class: str, count: int) -> int | None:
        """Replicas of `count` devices each that the free devices make room for: a replica lies on one node.

        Where pods wait that no node has yet, each is taken to spoil as many slots as it can. For one device it is
        `free`; None while nodes are unknown.
        """
        free = self.free(gpu_class)
        if free is None:
            return None
        if (gpu_class, count) not in self._slots:
            whole = sum(left // count for left in self.free_by_node(gpu_class).values())
            self._slots[gpu_class, count] = min(free // count, whole - self._spoilt(gpu_class, count))
        return self._slots[gpu_class, count]

    def free_by_node(self, gpu_class: str) -> dict[str, int]:
        """Devices of each usable node of a class that no pod of ours holds."""
        used = self._used_by_resource.get(self._snapshot.gpu_classes[gpu_class].spec.resource, {})
        return {node: max(0, count - used.get(node, 0)) for node, count in self.capacity(gpu_class).items()}

    def _spoilt(self, gpu_class: str, count: int) -> int:
        """Slots that pods without a node take at most."""
        spoilt = 0
        for workload in self._snapshot.workloads.values():
            behind = workload.devices_to_come - workload.devices
            waiting = workload.devices - max(0, sum(devices for _, devices in workload.devices_by_node) - behind)
            if waiting > 0 and self.share_devices(gpu_class, workload.gpu_class):
                size = max(1, workload.devices_per_pod)
                spoilt += -(-waiting // size) * slots_taken(size, count)
        return spoilt

    def share_devices(self, gpu_class: str, other: str) -> bool:
        """Whether two classes select the same devices of some node."""
        classes = self._snapshot.gpu_classes
        if gpu_class == other or gpu_class not in classes or other not in classes:
            return gpu_class == other
        if (gpu_class, other) not in self._shared:
            self._shared[gpu_class, other] = self._meet(gpu_class, other)
        return self._shared[gpu_class, other]

    def _meet(self, gpu_class: str, other: str) -> bool:
        classes = self._snapshot.gpu_classes
        same_resource = classes[gpu_class].spec.resource == classes[other].spec.resource
        if same_resource and self._offer(gpu_class).nodes & self._offer(other).nodes:
            return True
        offers, others = self.claimable(gpu_class) or {}, self.claimable(other) or {}
        return any(offers[node].devices & others[node].devices for node in offers.keys() & others.keys())

    def fragmentation(self, gpu_class: str) -> Fragmentation:
        """How the free devices of a class lie on its nodes, as far as replicas of ours hold the others."""
        used = dict(self._used_by_resource.get(self._snapshot.gpu_classes[gpu_class].spec.resource, {}))
        for node, offer in (self.claimable(gpu_class) or {}).items():
            used[node] = max(used.get(node, 0), len(offer.devices - offer.free))
        return measure_fragmentation(self.offered(gpu_class), used)

    def offered(self, gpu_class: str) -> dict[str, int]:
        """Devices of each usable node of a class, by whichever way it offers more: plugin and driver see the same."""
        offered = self.capacity(gpu_class)
        for node, offer in (self.claimable(gpu_class) or {}).items():
            offered[node] = max(offered.get(node, 0), len(offer.devices))
        return offered

    def capacity(self, gpu_class: str) -> dict[str, int]:
        """Devices of each usable node of a class."""
        resource = self._snapshot.gpu_classes[gpu_class].spec.resource
        nodes = self._snapshot.nodes or {}
        return {name: nodes[name].allocatable.get(resource, 0) for name in self._offer(gpu_class).nodes}

    def _offer(self, gpu_class: str) -> Offer:
        if gpu_class not in self._offers:
            self._offers[gpu_class] = _count(self._snapshot.gpu_classes[gpu_class], self._snapshot)
        return self._offers[gpu_class]

    @functools.cached_property
    def _used_by_resource(self) -> dict[str, dict[str, int]]:
        """Devices in use, by resource and node."""
        used: dict[str, dict[str, int]] = {}
        for workload in self._snapshot.workloads.values():
            gpu_class = self._snapshot.gpu_classes.get(workload.gpu_class)
            if gpu_class is not None:
                on_nodes = used.setdefault(gpu_class.spec.resource, {})
                for node, count in workload.devices_by_node:
                    on_nodes[node] = on_nodes.get(node, 0) + count
        return used

    @functools.cached_property
    def _held_by_class(self) -> dict[str, int]:
        held: dict[str, int] = {}
        for workload in self._snapshot.workloads.values():
            # Claims tell which class was taken where a pod had alternatives; what they do not cover, labels tell.
            left_behind = () if workload.claimed else workload.devices_left_behind
            waiting = workload.devices - sum(count for _, count in workload.claimed)
            for name, count in (*workload.claimed, *left_behind, (workload.gpu_class, max(0, waiting))):
                held[name] = held.get(name, 0) + count
        return held


def slots_taken(devices: int, count: int) -> int:
    """Slots of `count` devices that a pod with some devices on one node can take at most."""
    return -(-devices // count)


def _count(gpu_class: GPUClass, snapshot: Snapshot) -> Offer:
    nodes = [node for node in (snapshot.nodes or {}).values() if _carries(node, gpu_class)]
    return Offer(
        frozenset(node.name for node in nodes),
        sum(node.allocatable.get(gpu_class.spec.resource, 0) for node in nodes),
    )


def _carries(node: Node, gpu_class: GPUClass) -> bool:
    return node.allocatable.get(gpu_class.spec.resource, 0) > 0 and _is_labelled(node, gpu_class)


def _is_labelled(node: Node, gpu_class: GPUClass) -> bool:
    selector = gpu_class.spec.node_selector.items()
    return node.ready and node.schedulable and all(node.labels.get(key) == value for key, value in selector)
