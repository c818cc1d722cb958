"""Rolling in whole fleets: every order of events on small ones, random orders on larger ones.

Never stuck unless declared blocked, and then truly; never below minAvailable by anything that the operator decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.rollout_checks import complaints, examine, is_at_rest
from support.rollout_world import (
    READY,
    UNPLACED,
    Break,
    Edit,
    Event,
    Foreign,
    Scale,
    Service,
    Walk,
    World,
    is_truly_blocked,
    settled,
    successors,
    workload_of,
)
from windlass_operator.domain.rollout import observe_replacement

SIZES = [(replicas, promise) for replicas in (1, 2, 3) for promise in range(replicas + 1)]


def build_world(*services: Service, free: int = 0, other: int = 0, events: Iterable[Event] = (), **more) -> World:
    """Services on exactly as many devices as they hold, and `free` more; `other` devices of a second class."""
    held = sum(service.wanted for service in services)
    devices = (("a100", other), ("h200", held + free))
    return World(services, devices, events=tuple(events), **more)


@pytest.mark.parametrize("free", [0, 1])
@pytest.mark.parametrize(("replicas", "promise"), SIZES)
@pytest.mark.parametrize(
    ("events", "broken"),
    [
        pytest.param([Edit("x", "b")], "", id="an edit"),
        pytest.param([Edit("x", "b")], "b", id="an edit that never becomes ready"),
        pytest.param([Edit("x", "b"), Edit("x", "a")], "", id="taken back midway"),
        pytest.param([Edit("x", "b"), Edit("x", "a")], "b", id="a broken edit taken back midway"),
        pytest.param([Edit("x", "b"), Edit("x", "c")], "", id="another edit midway"),
        pytest.param([Edit("x", "b"), Edit("x", "c")], "b", id="a broken edit mended midway"),
        pytest.param([Edit("x", "b"), Foreign("h200", 1)], "", id="a foreign pod takes a device midway"),
        pytest.param([Break("x"), Edit("x", "b")], "", id="an old pod breaks"),
        pytest.param([Edit("x", "b"), Scale("x", 1)], "", id="the autoscaler shrinks midway"),
        pytest.param([Edit("x", "b"), Scale("x", 4)], "", id="the autoscaler grows midway"),
    ],
)
def test_every_order_of_events_ends_well_for_one_service(replicas, promise, free, events, broken):
    # An autoscaler stays above minReplicas, and minAvailable is at most that.
    events = [
        Scale(event.name, max(promise, event.replicas)) if isinstance(event, Scale) else event for event in events
    ]

    examine(build_world(settled("x", replicas, promise), free=free, events=events, broken=frozenset(broken)))


@pytest.mark.parametrize("other", [0, 1, 2])
@pytest.mark.parametrize(("replicas", "promise"), SIZES)
@pytest.mark.parametrize("back", [None, "a", "c"], ids=["to stay", "taken back midway", "and on to a third template"])
def test_a_move_to_another_class_ends_well(replicas, promise, other, back):
    events = [Edit("x", "b", "a100"), *([Edit("x", back)] if back else [])]

    examine(build_world(settled("x", replicas, promise), other=other, events=events))


@pytest.mark.parametrize("free", [0, 1, 2])
@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param((1, 1), (1, 1), id="two that must surge"),
        pytest.param((1, 0), (1, 1), id="one that need not"),
        pytest.param((2, 2), (2, 2), id="two pods each"),
        pytest.param((2, 1), (2, 2), id="mixed"),
    ],
)
def test_two_services_that_roll_at_once_share_the_free_devices(one, two, free):
    services = [settled("x", *one), settled("y", *two)]

    walk = examine(build_world(*services, free=free, events=[Edit("x", "b"), Edit("y", "b")]))

    if free:
        assert all(service.done for world in walk.resting() for service in world.services)


def test_three_services_take_the_one_free_device_in_turns():
    services = [settled(name, 1, 1) for name in "xyz"]

    walk = examine(build_world(*services, free=1, events=[Edit(name, "b") for name in "xyz"]))

    assert all(service.done for world in walk.resting() for service in world.services)
    surging = [sum(len(one.staying) > one.wanted for one in world.services) for world in walk.steps]
    assert max(surging) == 1
    assert not any(one.count(UNPLACED) for world in walk.steps for one in world.services)


def test_the_quota_is_a_limit_like_the_devices():
    services = [settled("x", 1, 1), settled("y", 1, 1)]

    walk = examine(build_world(*services, free=5, quota=3, events=[Edit("x", "b"), Edit("y", "b")]))

    assert all(service.done for world in walk.resting() for service in world.services)
    assert max(sum(workload_of(one).devices for one in world.services) for world in walk.steps) == 3


@pytest.mark.parametrize(
    ("replicas", "promise", "blocked"),
    [(1, 0, False), (1, 1, True), (3, 2, False), (3, 3, True)],
)
def test_a_full_fleet_blocks_only_what_may_lose_no_pod(replicas, promise, blocked):
    walk = examine(build_world(settled("x", replicas, promise), events=[Edit("x", "b")]))

    assert [is_truly_blocked(world, world.services[0]) for world in walk.resting()] == [blocked]


def test_the_search_finds_the_deadlock_of_the_usual_strategy():
    """What Kubernetes does by default, so that a search which finds nothing means something."""
    start = build_world(settled("x", 2, 1), events=[Edit("x", "b")])
    usual = Walk(start, as_usual)
    usual.explore()

    assert [world.services[0].done for world in usual.resting()] == [False]


def as_usual(world: World) -> Iterable[tuple[str, World]]:
    """The same steps, with an operator that always surges."""
    for who, after in successors(world):
        if who.startswith("operator"):
            service = after.services[0]
            after = after.with_service(replace(service, max_surge=1, max_unavailable=0, paused=False, status=None))
        if after != world:
            yield who, after


events = st.lists(
    st.one_of(
        st.builds(Edit, st.sampled_from("xyz"), st.sampled_from("abc")),
        st.builds(Edit, st.sampled_from("xyz"), st.sampled_from("de"), st.just("a100")),
        st.builds(Scale, st.sampled_from("xyz"), st.integers(1, 6)),
        st.builds(Foreign, st.sampled_from(["h200", "a100"]), st.integers(0, 3)),
        st.builds(Break, st.sampled_from("xyz")),
    ),
    min_size=1,
    max_size=6,
)


@st.composite
def fleets(draw: st.DrawFn) -> World:
    """Up to three services, exactly full or not, with what users and strangers do."""
    services = []
    for name in "xyz"[: draw(st.integers(1, 3))]:
        replicas = draw(st.integers(1, 5))
        services.append(settled(name, replicas, draw(st.integers(0, replicas))))
    names = {service.name for service in services}
    floors = {service.name: service.min_available for service in services}
    happening = [event for event in draw(events) if isinstance(event, Foreign) or event.name in names]
    happening = [
        Scale(event.name, max(event.replicas, floors[event.name])) if isinstance(event, Scale) else event
        for event in happening
    ]
    broken = frozenset(draw(st.sampled_from(["", "", "b"])))
    return build_world(
        *services, free=draw(st.integers(0, 3)), other=draw(st.integers(0, 4)), events=happening, broken=broken
    )


@settings(max_examples=150, deadline=None)
@given(fleets(), st.randoms(use_true_random=False))
def test_random_orders_on_larger_fleets_end_well(start, random):
    world, steps = start, 0
    while following := list(successors(world)):
        who, after = random.choice(following)
        assert list(complaints(start, world, who, after)) == []
        world, steps = after, steps + 1
        assert steps < 5000, "never comes to rest"

    assert [service for service in world.services if not is_at_rest(world, service)] == []


@settings(max_examples=100, deadline=None)
@given(fleets(), st.randoms(use_true_random=False))
def test_going_back_to_the_old_template_keeps_every_old_pod_that_still_serves(start, random):
    """From the moment of the revert no serving pod of the old template stops."""
    first = start.services[0]
    world = build_world(*start.services, free=1, events=[Edit(first.name, "b")])
    for _ in range(random.randint(1, 25)):
        following = list(successors(world))
        world = random.choice(following)[1] if following else world
    world = replace(world, events=(Edit(first.name, "a"),))
    world = next(after for who, after in successors(world) if who == "event")
    world = next((after for who, after in successors(world) if who == f"operator {first.name}"), world)
    world = next((after for who, after in successors(world) if who == f"controller {first.name}"), world)
    kept = world.services[0].count(READY, template="a")
    while following := list(successors(world)):
        world = random.choice(following)[1]
        assert world.services[0].count(READY, template="a") >= kept
        kept = max(kept, min(world.services[0].count(READY, template="a"), first.wanted))

    assert observe_replacement(workload_of(world.services[0]), "a").old == 0
