"""Replicas of several devices: where they find room, what fits over them, and which classes cannot give them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.builders import build_gpu_class, build_node, build_service, build_snapshot, build_tenant, build_workload
from windlass_contract.launch_spec import Precision
from windlass_operator.domain.fleet import FleetSettings
from windlass_operator.domain.fragmentation import count_missing
from windlass_operator.domain.model_fit import judge_fit
from windlass_operator.domain.plan import ServicePlan, plan_service
from windlass_operator.domain.supply import Supply

SHAPE_70B = {
    "layers": 80,
    "hiddenSize": 8192,
    "feedForwardSize": 28672,
    "queryHeads": 64,
    "keyValueHeads": 8,
    "headSize": 128,
    "vocabularySize": 128256,
    "maxPositions": 131072,
}
"""70.6 billion parameters: 131 GiB in 16 bits."""
A100 = build_gpu_class("a100", memory="80Gi", capability="8.0")


def plan(count: int, *gpu_classes, nodes=(), tenant=None, workloads=None, **spec) -> ServicePlan:
    accelerator = {"classes": [item.metadata.name for item in gpu_classes], "count": count, "sharing": "TimeSliced"}
    service = build_service(accelerator=accelerator, **spec)
    objects = [service, *gpu_classes, *([tenant] if tenant else [])]
    return plan_service(service, build_snapshot(*objects, nodes=nodes, workloads=workloads), FleetSettings())


def told(planned: ServicePlan, topic: str) -> str:
    return next(item.reason for item in planned.decisions if item.topic == topic)


free_and_held = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=5)


@given(free_and_held, st.integers(0, 3), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]))
def test_slots_are_never_more_than_any_way_of_placing_the_waiting_pods_leaves(nodes, waiting, size, count) -> None:
    """Whatever the scheduler does with pods that wait, so many replicas find a place afterwards, or fewer wait."""
    built = [build_node(f"n{index}", devices=devices) for index, (devices, _) in enumerate(nodes)]
    held = [(f"n{index}", min(used, devices)) for index, (devices, used) in enumerate(nodes)]
    workload = build_workload(
        1,
        gpu_class="h200",
        devices=sum(used for _, used in held) + waiting * size,
        devices_per_pod=size,
        devices_by_node=tuple(held),
    )
    supply = Supply(build_snapshot(build_gpu_class(), nodes=built, workloads={"team-a/x": workload}))
    free = [devices - min(used, devices) for devices, used in nodes]

    def fewest(left: tuple[int, ...], pods: int) -> int:
        """Slots after the worst placement of some pods of `size`; pods without a place change nothing."""
        places = [index for index, devices in enumerate(left) if devices >= size]
        if not pods or not places:
            return sum(devices // count for devices in left)
        return min(fewest((*left[:index], left[index] - size, *left[index + 1 :]), pods - 1) for index in places)

    slots = supply.slots("h200", count)

    assert slots is not None
    assert slots <= fewest(tuple(free), waiting)
    if not waiting:
        assert slots == sum(devices // count for devices in free)
    if count == 1:
        assert slots == supply.free("h200")


def test_a_class_without_a_node_that_is_large_enough_comes_last_and_says_so() -> None:
    nodes = [build_node("n1", devices=4), build_node("n2", gpu="a100", devices=8)]
    h200 = build_gpu_class()

    planned = plan(8, h200, A100, nodes=nodes)

    assert planned.gpu_class.name == "a100"
    assert "not h200: no ready node has 8 of its devices, the largest has 4" in told(planned, "accelerator")
    assert "1 ready node, 8 of 8 devices free, which hold 1 replica of 8 devices" in told(planned, "accelerator")
    assert planned.launch.device_count == planned.gpu_class.count == 8


def test_free_devices_on_several_nodes_are_told_as_no_place() -> None:
    nodes = [build_node("n1", devices=4), build_node("n2", devices=4)]
    busy = build_workload(6, gpu_class="h200", devices=6, devices_by_node=(("n1", 3), ("n2", 3)), devices_per_pod=1)

    planned = plan(2, build_gpu_class(), nodes=nodes, workloads={"team-a/busy": busy})

    assert "2 of 8 devices free, which hold 0 replicas of 2 devices" in told(planned, "accelerator")


@pytest.mark.parametrize(
    ("gpu_class", "words"),
    [
        pytest.param(
            build_gpu_class("mig", memory="40Gi", migProfile="3g.40gb"),
            "a replica cannot use several MIG slices, and spec.accelerator.count is 2",
            id="MIG",
        ),
        pytest.param(
            build_gpu_class("shared", sharing={"timeSlicedReplicas": 4}),
            "a replica cannot use several time slices, and spec.accelerator.count is 2",
            id="time slices",
        ),
    ],
)
def test_parts_of_gpus_cannot_be_added_up(gpu_class, words: str) -> None:
    planned = plan(2, gpu_class, cache={"memory": "1Gi"})

    assert planned.refusal is not None
    assert planned.refusal.reason == "CountNotSupported"
    assert words in planned.refusal.message
    assert planned.refusal.next_step == "Set spec.accelerator.count to 1, or use a class of whole GPUs"


@pytest.mark.parametrize(("count", "fits"), [(1, False), (2, True), (4, True)])
def test_a_model_fits_over_as_many_devices_as_hold_its_layers(count: int, fits: bool) -> None:
    service = build_service(
        model={"uri": "hf://org/chat@v1", "shape": SHAPE_70B},
        accelerator={"classes": ["a100"], "count": count},
        limits={"maxSequenceTokens": 8192},
    )

    fit = judge_fit(service.spec, Precision.BF16, A100.spec)

    assert fit is not None
    assert fit.fits is fits
    assert fit.available == count * 80 * 2**30
    assert fit.need.total == fit.need.weights + fit.need.cache + fit.need.workspace
    if count > 1:
        assert f"of {count} x 80Gi, the fullest device" in fit.arithmetic


def test_a_model_too_large_for_one_device_is_told_how_many_would_do() -> None:
    refused = plan(1, A100, model={"uri": "hf://org/chat@v1", "shape": SHAPE_70B}, limits={"maxSequenceTokens": 131072})
    admitted = plan(
        4, A100, model={"uri": "hf://org/chat@v1", "shape": SHAPE_70B}, limits={"maxSequenceTokens": 131072}
    )

    assert refused.refusal is not None
    assert refused.refusal.next_step == "Set spec.accelerator.count to 4"
    assert admitted.refusal is None


def test_more_devices_than_layers_are_refused() -> None:
    shape = {**SHAPE_70B, "layers": 3}
    planned = plan(4, A100, model={"uri": "hf://org/chat@v1", "shape": shape})

    assert planned.refusal is not None
    assert "4 devices, and the model has 3 layers to split over them" in planned.refusal.message


def test_quota_counts_every_device_of_a_replica() -> None:
    tenant = build_tenant(gpus={"a100": 7})

    planned = plan(4, A100, tenant=tenant, replicas=2, nodes=[build_node(gpu="a100")])

    assert planned.refusal is not None
    assert planned.refusal.message == "needs 8 x a100, acme uses 0 of 7"
    assert [item.order for item in planned.suggestions] == [
        "raise nominal of a100 in Tenant acme from 7 to 8",
        "lower spec.replicas to 1",
    ]


@pytest.mark.parametrize(
    ("free", "replicas", "expected"),
    [
        pytest.param({"a": 4, "b": 0}, 1, {}, id="a node is free"),
        pytest.param({"a": 2, "b": 3}, 1, {"b": 1}, id="the node that misses fewest"),
        pytest.param({"a": 2, "b": 3}, 2, {"a": 2, "b": 1}, id="two replicas, two nodes"),
        pytest.param({"a": 4, "b": 4}, 3, None, id="more than all nodes hold"),
    ],
)
def test_what_must_be_freed_is_counted_where_it_is_least(free, replicas: int, expected) -> None:
    assert count_missing(free, {"a": 4, "b": 4}, 4, replicas) == expected
