"""Rolling replicas of several devices, each on one node: free devices that lie on several nodes are no place.

Never stuck unless declared blocked, and then truly; never below minAvailable by anything that the operator decides.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.rollout_checks import complaints, examine, is_at_rest
from support.rollout_world import Edit, Foreign, World, is_truly_blocked, settled_on, successors

H200 = "h200"


def nodes(*devices: int) -> tuple[tuple[str, int], ...]:
    return tuple((H200, count) for count in devices)


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize(
    ("promise", "free", "blocked"),
    [
        pytest.param(2, "a node", False, id="a node has enough: surge"),
        pytest.param(2, "scattered", True, id="the total is free but no node has enough: blocked"),
        pytest.param(1, "scattered", False, id="the total is free but no node has enough: one out, one in"),
        pytest.param(2, "nothing", True, id="nothing is free: blocked"),
    ],
)
def test_only_a_node_with_enough_free_devices_is_a_place(size: int, promise: int, free: str, blocked: bool) -> None:
    """Two replicas on a node each; what is free besides lies on a third node or beside the replicas."""
    spare = {"a node": (0, 0, size), "scattered": (size // 2, size - size // 2, 0), "nothing": (0, 0, 0)}[free]
    devices = nodes(size + spare[0], size + spare[1], spare[2])
    service = settled_on("x", size, (0, 1), promise)

    walk = examine(World((service,), devices, events=(Edit("x", "b", size=size),)))

    assert {is_truly_blocked(world, world.services[0]) for world in walk.resting()} == {blocked}
    assert {world.services[0].done for world in walk.resting()} == {not blocked}


@pytest.mark.parametrize("free", [2, 4, 6])
def test_rollouts_of_unlike_size_share_the_one_free_node(free: int) -> None:
    """Six free devices are a place for both; in four the small one can come first and leave the large one none."""
    services = settled_on("large", 4, (0,), 1), settled_on("small", 2, (1,), 1)
    events = (Edit("large", "b", size=4), Edit("small", "b", size=2))

    walk = examine(World(services, nodes(4, 2, free), events=events))

    done = {(large.done, small.done) for large, small in (world.services for world in walk.resting())}
    assert done == {2: {(False, True)}, 4: {(False, True), (True, True)}, 6: {(True, True)}}[free]


@pytest.mark.parametrize(
    ("before", "after", "promise", "blocked"),
    [
        pytest.param(1, 2, 0, False, id="growing where nothing is promised"),
        pytest.param(1, 2, 2, True, id="growing on a full node waits"),
        pytest.param(2, 1, 2, True, id="shrinking on a full node waits too"),
        pytest.param(2, 1, 1, False, id="shrinking, one out, one in"),
    ],
)
def test_another_number_of_devices_per_replica_is_rolled_out_like_any_edit(
    before: int, after: int, promise: int, blocked: bool
) -> None:
    service = settled_on("x", before, (0, 0), promise)
    capacity = max(2 * before, 2 * after) if not blocked else 2 * before

    walk = examine(World((service,), nodes(capacity), events=(Edit("x", "b", size=after),)))

    assert {is_truly_blocked(world, world.services[0]) for world in walk.resting()} == {blocked}


sizes = st.sampled_from([1, 2, 4, 8])


@st.composite
def fleets(draw: st.DrawFn) -> World:
    """Up to three services of unlike sizes on nodes of eight devices, some of which strangers hold."""
    free = [8] * draw(st.integers(1, 4))
    services = []
    for name in "xyz":
        size, wanted = draw(sizes), draw(st.integers(1, 3))
        places = []
        for _ in range(wanted):
            node = next((index for index, left in enumerate(free) if left >= size), None)
            if node is not None:
                free[node] -= size
                places.append(node)
        if places:
            services.append(settled_on(name, size, places, draw(st.integers(0, len(places)))))
    names = [service.name for service in services]
    edits = st.builds(Edit, st.sampled_from(names), st.sampled_from("abc"), st.just(H200), sizes)
    events = draw(st.lists(st.one_of(edits, st.builds(Foreign, st.just(H200), st.integers(0, 8))), max_size=5))
    broken = frozenset(draw(st.sampled_from(["", "", "b"])))
    return World(tuple(services), nodes(*[8] * len(free)), events=tuple(events), broken=broken)


@settings(max_examples=150, deadline=None)
@given(fleets(), st.randoms(use_true_random=False))
def test_random_orders_with_replicas_of_many_sizes_end_well(start: World, random) -> None:
    world, steps = start, 0
    while following := list(successors(world)):
        who, after = random.choice(following)
        assert list(complaints(start, world, who, after)) == []
        world, steps = after, steps + 1
        assert steps < 5000, "never comes to rest"

    assert [service for service in world.services if not is_at_rest(world, service)] == []
