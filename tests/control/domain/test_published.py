"""Which published devices a class means, and how many replicas they hold: as the scheduler itself would count them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from support.builders import GPU_LABEL, build_gpu_class, build_node, build_service, build_snapshot, build_workload
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.fleet_plan import plan_gpu_class
from windlass_operator.domain.plan import plan_service
from windlass_operator.domain.published import Device, DeviceId, DeviceSlice, Published, offer_by_node
from windlass_operator.domain.snapshot import Revision, Snapshot
from windlass_operator.domain.suggestion import Remedy
from windlass_operator.domain.supply import Supply

DRIVER = "gpu.nvidia.com"
GIB = 2**30
ATTRIBUTES = {"productName": "NVIDIA-H200", "cudaComputeCapability": "9.0.0", "index": 3, "healthy": True}


def build_device(name: str, node: str = "n1", **attributes) -> Device:
    given = {DRIVER: ATTRIBUTES | attributes, "pci.example.com": {"root": "pci0"}}
    return Device(name, node, given, {DRIVER: {"memory": 141 * GIB}})


def build_slice(node: str = "n1", count: int = 4, *, generation: int = 1, parts: int = 1, first: int = 0):
    devices = tuple(build_device(f"gpu-{index}", node) for index in range(first, first + count))
    return DeviceSlice(DRIVER, node, generation, parts, devices)


def publish(*slices: DeviceSlice, allocated: tuple[DeviceId, ...] = (), selector: str = "") -> Published:
    own = (f"device.driver == '{DRIVER}'", *([selector] if selector else []))
    claims = {("team-a", f"claim-{index}"): (device,) for index, device in enumerate(allocated)}
    return Published({f"slice-{index}": one for index, one in enumerate(slices)}, {DRIVER: own}, claims)


def taken(node: str, *indexes: int) -> tuple[DeviceId, ...]:
    return tuple(DeviceId(DRIVER, node, f"gpu-{index}") for index in indexes)


H200 = build_gpu_class("h200", deviceClassName=DRIVER)


@pytest.mark.parametrize(
    ("selector", "meets"),
    [
        pytest.param(f"device.attributes['{DRIVER}'].productName == 'NVIDIA-H200'", True, id="text"),
        pytest.param(f"device.attributes['{DRIVER}'].productName.startsWith('NVIDIA-A')", False, id="a prefix"),
        pytest.param(f"device.attributes['{DRIVER}'].index < 4", True, id="a number"),
        pytest.param(f"device.attributes['{DRIVER}'].healthy", True, id="a truth"),
        pytest.param("device.attributes['pci.example.com'].root == 'pci0'", True, id="another domain"),
        pytest.param(f"device.attributes['{DRIVER}'].cudaComputeCapability.major() == 9", True, id="part of a version"),
        pytest.param(
            f"device.attributes['{DRIVER}'].cudaComputeCapability.compareTo(semver('10.0.0')) < 0",
            True,
            id="versions are no text: 9 comes before 10",
        ),
        pytest.param(
            f"device.capacity['{DRIVER}'].memory.compareTo(quantity('80Gi')) > 0", True, id="a quantity is larger"
        ),
        pytest.param(
            f"device.capacity['{DRIVER}'].memory.isLessThan(quantity('80Gi'))", False, id="a quantity is smaller"
        ),
        pytest.param(f"device.attributes['{DRIVER}'].uuid == 'x'", False, id="an attribute that it lacks"),
        pytest.param("device.attributes['none.example.com'].x", False, id="a domain that it lacks"),
        pytest.param("device.driver ==", False, id="no expression"),
        pytest.param("device.driver", False, id="no truth"),
    ],
)
def test_a_device_is_of_a_class_when_every_selector_holds(selector: str, meets: bool) -> None:
    by_class = build_gpu_class("h200", deviceClassName=DRIVER, deviceSelectors=[selector])

    found = offer_by_node(by_class.spec, publish(build_slice(count=1)))
    also = offer_by_node(H200.spec, publish(build_slice(count=1), selector=selector))

    assert bool(found) is bool(also) is meets


def test_only_the_newest_generation_of_a_complete_pool_counts() -> None:
    old, new = build_slice(count=8), build_slice(count=3, generation=2)
    half = build_slice("n2", count=4, generation=5, parts=2)
    whole = (build_slice("n3", 2, parts=2), build_slice("n3", 2, parts=2, first=2))

    found = offer_by_node(H200.spec, publish(old, new, half, *whole))

    assert {node: len(offer.devices) for node, offer in found.items()} == {"n1": 3, "n3": 4}


def test_devices_that_any_claim_was_given_are_not_free() -> None:
    found = offer_by_node(H200.spec, publish(build_slice(), allocated=taken("n1", 0, 2)))

    assert (len(found["n1"].devices), len(found["n1"].free)) == (4, 2)


def test_a_device_class_that_does_not_exist_offers_nothing() -> None:
    other = build_gpu_class("h200", deviceClassName="other.example.com")

    assert offer_by_node(other.spec, publish(build_slice())) == {}


def build_world(published: Published | None, *objects, workloads=None, **more) -> Snapshot:
    nodes = [build_node("n1", devices=0), build_node("n2", devices=0), build_node("n3", devices=0, ready=False)]
    return replace(build_snapshot(*objects, H200, nodes=nodes, workloads=workloads, **more), published=published)


@pytest.mark.parametrize(
    ("count", "nodes", "slots"),
    [pytest.param(1, 2, 5, id="1"), pytest.param(2, 2, 2, id="2"), pytest.param(4, 1, 0, id="4"), (8, 0, 0)],
)
def test_places_are_counted_on_usable_nodes(count: int, nodes: int, slots: int) -> None:
    """Three of four free on n1, two of two on n2; n3 is not ready."""
    published = publish(build_slice(), build_slice("n2", 2), build_slice("n3", 8), allocated=taken("n1", 1))
    supply = Supply(build_world(published))

    assert supply.claimable_nodes("h200", count) == nodes
    assert supply.claim_slots(["h200"], count) == slots


def test_a_device_that_two_classes_mean_counts_once() -> None:
    any_gpu = build_gpu_class("any", deviceClassName=DRIVER, nodeSelector={GPU_LABEL: "h200"})
    supply = Supply(build_world(publish(build_slice()), any_gpu))

    assert supply.claim_slots(["h200", "any"], 1) == 4
    assert supply.share_devices("h200", "any")


def test_a_pod_that_waits_for_its_claim_takes_a_place() -> None:
    waiting = build_workload(0, gpu_class="h200", wanted=1, replicas=1, devices=1, devices_per_pod=1)
    supply = Supply(build_world(publish(build_slice()), workloads={"team-a/x": waiting}))

    assert supply.claim_slots(["h200"], 1) == 3


def test_the_decision_and_the_class_tell_what_is_offered() -> None:
    service = build_service(accelerator={"classes": ["h200"], "allocation": "ResourceClaim"})
    published = publish(build_slice(), build_slice("n2", 2), allocated=taken("n1", 1))
    world = build_world(published, service)

    planned = plan_service(service, world, FleetSettings())
    counted = plan_gpu_class(H200, world)

    chosen = next(item for item in planned.decisions if item.topic == "accelerator")
    assert chosen.reason == (
        "the scheduler looks for its devices first; 2 ready nodes offer 6 to claims, 5 of them free"
    )
    assert (counted.nodes, counted.gpus, counted.fragmentation.largest_block) == (2, 6, 3)


def test_a_count_that_no_node_offers_is_told() -> None:
    service = build_service(accelerator={"classes": ["h200"], "allocation": "ResourceClaim", "count": 8})
    planned = plan_service(service, build_world(publish(build_slice()), service), FleetSettings())

    chosen = next(item for item in planned.decisions if item.topic == "accelerator")
    assert "no ready node offers 8 of them to claims, the largest offers 4" in chosen.reason


@pytest.mark.parametrize(
    ("published", "way"),
    [
        pytest.param(publish(build_slice(count=2), allocated=taken("n1", 0)), "Surge", id="a device is free"),
        pytest.param(publish(build_slice(count=1), allocated=taken("n1", 0)), "OneOutOneIn", id="none is free"),
    ],
)
def test_a_rollout_of_claims_surges_where_a_device_is_free(published: Published, way: str) -> None:

    service = build_service(
        accelerator={"classes": ["h200"], "allocation": "ResourceClaim"}, rollout={"minAvailable": 0}
    )
    running = build_workload(
        1,
        gpu_class="h200",
        template="b",
        devices_by_node=(("n1", 1),),
        claimed=(("h200", 1),),
        revisions=(Revision("a", 1, 1, "h200"),),
    )
    world = build_world(published, service, workloads={"team-a/chat": running})

    assert plan_service(service, world, FleetSettings()).rollout.way.value == way


def test_pods_that_wait_for_a_claim_are_told_where_the_fewest_devices_are_missing() -> None:
    service = build_service(accelerator={"classes": ["h200"], "allocation": "ResourceClaim", "count": 4})
    waiting = build_workload(
        0,
        gpu_class="h200",
        wanted=1,
        replicas=1,
        unplaced=1,
        devices=4,
        devices_per_pod=4,
        pending_reason="0/2 nodes are available: 2 cannot allocate all claims.",
    )
    published = publish(build_slice(), build_slice("n2", 4), allocated=(*taken("n1", 1), *taken("n2", 0, 1)))
    world = build_world(published, service, workloads={"team-a/chat": waiting})

    planned = plan_service(service, world, FleetSettings())

    (free,) = [item for item in planned.suggestions if item.remedy is Remedy.FREE_DEVICES]
    assert free.order == "free 1 x h200 (1 on n1): each replica needs 4 on one node"
