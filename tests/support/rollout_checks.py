"""What must hold while fleets roll (`rollout_world`): of every step, and of every end."""

from __future__ import annotations

from collections.abc import Iterable

from support.rollout_world import BROKEN, READY, Break, Service, Walk, World, is_truly_blocked


def low_water(service: Service, world: World) -> int:
    """Ready pods that no step of ours may go below: the promise, or what breaks by itself leaves of it."""
    breaks = sum(isinstance(event, Break) and event.name == service.name for event in world.events)
    return service.count(READY) - breaks


def complaints(start: World, before: World, who: str, after: World) -> Iterable[str]:
    """What is wrong with one step."""
    for old, new, begun in zip(before.services, after.services, start.services, strict=True):
        fell = new.count(READY) < old.count(READY) and who.startswith("controller")
        if fell and new.count(READY) < min(new.promise, low_water(begun, start)):
            yield f"{who} went below {new.promise}: {old} -> {new}"
    for node, (gpu_class, count) in enumerate(after.devices):
        held = sum(pod.size for one in after.services for pod in one.pods if pod.node == node)
        if held > count:
            yield f"{who} oversubscribed node {node} of {gpu_class}: {after}"


def is_at_rest(world: World, service: Service) -> bool:
    """Whether a service may stay as it is for ever."""
    rolled = service.template == service.target and all(pod.template == service.target for pod in service.pods)
    # A new pod that never becomes ready is for its owner to mend; nothing else is given up for it.
    return rolled or service.count(BROKEN, template=service.target) > 0 or is_truly_blocked(world, service)


def examine(start: World) -> Walk:
    """Walk every order of events and check every step and every end."""
    walk = Walk(start)
    walk.explore()
    for before, steps in walk.steps.items():
        for who, after in steps:
            assert list(complaints(start, before, who, after)) == []
    for world in walk.resting():
        assert [service for service in world.services if not is_at_rest(world, service)] == []
    assert walk.stuck() == []
    return walk
