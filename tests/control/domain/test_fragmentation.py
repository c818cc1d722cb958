"""Devices lost to fragmentation: against every way to arrange as many busy devices."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.builders import build_gpu_class, build_node, build_snapshot, build_workload
from windlass_operator.domain.fleet_plan import plan_gpu_class
from windlass_operator.domain.fragmentation import Fragmentation, measure_fragmentation
from windlass_operator.domain.snapshot import Workload


@pytest.mark.parametrize(
    ("capacity", "used", "expected"),
    [
        pytest.param({}, {}, Fragmentation(0, 0, 0), id="no nodes"),
        pytest.param({"a": 8, "b": 8}, {}, Fragmentation(16, 8, 0), id="nothing runs"),
        pytest.param({"a": 8, "b": 8}, {"a": 4}, Fragmentation(12, 8, 0), id="packed on one node"),
        pytest.param({"a": 8, "b": 8}, {"a": 2, "b": 2}, Fragmentation(12, 6, 8), id="four that fit on one node"),
        pytest.param({"a": 8, "b": 8}, {"a": 5, "b": 4}, Fragmentation(7, 4, 0), id="nine that do not"),
        pytest.param({"a": 8, "b": 8}, {"a": 8, "b": 8}, Fragmentation(0, 0, 0), id="full"),
        pytest.param({"a": 8, "b": 2}, {"a": 2}, Fragmentation(8, 6, 6), id="a small node would hold them"),
        pytest.param({"a": 4}, {"a": 1, "gone": 3}, Fragmentation(3, 3, 0), id="a node that is gone counts nothing"),
        pytest.param({"a": 4}, {"a": 9}, Fragmentation(0, 0, 0), id="more than the node says it has"),
    ],
)
def test_what_is_lost_is_what_repacking_would_free(capacity, used, expected):
    assert measure_fragmentation(capacity, used) == expected


nodes = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), max_size=6).map(
    lambda found: {f"n{index}": (size, min(size, busy)) for index, (size, busy) in enumerate(found)}
)


@settings(deadline=None)
@given(nodes)
def test_no_arrangement_frees_more_whole_nodes_than_the_best_one(found):
    capacity = {name: size for name, (size, _) in found.items()}
    used = {name: busy for name, (_, busy) in found.items()}
    busy = sum(used.values())

    covers = [
        sum(capacity[name] for name in chosen)
        for count in range(len(capacity) + 1)
        for chosen in itertools.combinations(capacity, count)
        if sum(capacity[name] for name in chosen) >= busy
    ]
    whole_now = sum(size for name, size in capacity.items() if used[name] == 0)

    measured = measure_fragmentation(capacity, used)

    assert measured.lost == sum(capacity.values()) - min(covers) - whole_now
    assert 0 <= measured.lost <= measured.free
    assert measured.largest_block <= measured.free


@settings(deadline=None)
@given(nodes, st.randoms())
def test_packing_onto_used_nodes_never_loses_more_than_any_other_order(found, random):
    """The rule that Pack gives the scheduler: the next replica goes to the fullest node that has room."""
    capacity = {name: size for name, (size, _) in found.items()}
    replicas = sum(busy for _, busy in found.values())

    def place(choose) -> dict[str, int]:
        used = dict.fromkeys(capacity, 0)
        for _ in range(replicas):
            open_nodes = [name for name in sorted(capacity) if used[name] < capacity[name]]
            used[choose(open_nodes, used)] += 1
        return used

    packed = place(lambda names, used: max(names, key=lambda name: (used[name] > 0, used[name], -capacity[name])))
    anyhow = place(lambda names, _: random.choice(names))
    spread = place(lambda names, used: min(names, key=lambda name: used[name] / capacity[name]))

    whole_packed, whole_anyhow, whole_spread = (
        sum(1 for name in capacity if used[name] == 0) for used in (packed, anyhow, spread)
    )
    if len(set(capacity.values())) <= 1:
        assert whole_packed >= whole_anyhow
        assert whole_packed >= whole_spread
        assert measure_fragmentation(capacity, packed).lost == 0


def test_a_class_reports_how_its_free_devices_lie():
    snapshot = build_snapshot(
        build_gpu_class("h200"),
        nodes=[build_node("a"), build_node("b"), build_node("c", gpu="a100")],
        workloads={
            "t/x": build_workload(1, gpu_class="h200", devices_by_node=(("a", 1),)),
            "t/y": build_workload(1, gpu_class="h200", devices_by_node=(("b", 1), ("c", 1))),
            "t/z": Workload(),
        },
    )

    plan = plan_gpu_class(snapshot.gpu_classes["h200"], snapshot)

    assert plan.fragmentation == Fragmentation(free=14, largest_block=7, lost=8)
