"""Places in a full gateway: none idle while anybody waits, shared by weight, nobody starves, nobody fills the line."""

from __future__ import annotations

import collections
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_gateway.fair_queue import FairQueue, Verdict

moves = st.lists(
    st.tuples(st.sampled_from(["ask", "leave", "give up"]), st.integers(0, 4), st.integers(0, 30)), max_size=120
)


class World:
    """A queue, who runs, and who waits by our own books."""

    def __init__(self, places: int, waiting: int, weights: dict[str, int]) -> None:
        self.queue: FairQueue[str] = FairQueue(places, waiting)
        self.weights = weights
        self.running: list[tuple[str, str]] = []
        self.lines: dict[str, list[str]] = collections.defaultdict(list)
        self._numbers = itertools.count()

    def ask(self, tenant: str) -> Verdict:
        request = f"{tenant}/{next(self._numbers)}"
        verdict = self.queue.ask(tenant, self.weights[tenant], request)
        if verdict is Verdict.RUNS:
            self.running.append((tenant, request))
        elif verdict is Verdict.WAITS:
            self.lines[tenant].append(request)
        return verdict

    def leave(self, position: int) -> str | None:
        tenant, _ = self.running.pop(position % len(self.running))
        request = self.queue.leave(tenant)
        if request is None:
            return None
        chosen = request.partition("/")[0]
        assert self.lines[chosen].pop(0) == request, "requests of a tenant go in their order"
        self.running.append((chosen, request))
        return chosen

    def give_up(self, tenant: str, position: int) -> None:
        line = self.lines[tenant]
        if line:
            self.queue.give_up(tenant, line.pop(position % len(line)))

    def count(self, tenant: str) -> int:
        return sum(owner == tenant for owner, _ in self.running)


@given(st.integers(1, 6), st.integers(0, 12), st.lists(st.integers(1, 9), min_size=5, max_size=5), moves)
def test_whatever_happens_books_balance_and_a_place_goes_to_whoever_runs_least_for_its_weight(
    places: int, waiting: int, weights: list[int], steps: list[tuple[str, int, int]]
) -> None:
    world = World(places, waiting, {f"t-{number}": weight for number, weight in enumerate(weights)})

    for action, number, position in steps:
        tenant = f"t-{number}"
        if action == "ask":
            world.ask(tenant)
        elif action == "give up":
            world.give_up(tenant, position)
        elif world.running:
            _check_choice(world, position)
        world.queue.check()
        assert world.queue.running == len(world.running)
        assert all(world.queue.waiting(name) == len(world.lines[name]) for name in world.weights)


def _check_choice(world: World, position: int) -> None:
    leaving = world.running[position % len(world.running)][0]
    load = {name: (world.count(name) - (name == leaving)) / weight for name, weight in world.weights.items()}
    waiting = [name for name in world.weights if world.lines[name]]

    chosen = world.leave(position)

    assert (chosen is None) == (not waiting)
    if chosen is not None:
        assert load[chosen] == min(load[name] for name in waiting)


@given(st.integers(7, 20), st.integers(1, 6), st.randoms(use_true_random=False))
def test_a_tenant_with_nothing_running_gets_one_of_the_next_places(hogs: int, newcomers: int, random: object) -> None:
    names = [f"new-{number}" for number in range(newcomers)]
    world = World(hogs, 10_000, {"hog": 1000, **dict.fromkeys(names, 1)})
    for _ in range(hogs * 3):
        world.ask("hog")
    for name in names:
        assert world.ask(name) is Verdict.WAITS

    served = [world.leave(random.randrange(hogs)) for _ in names]  # type: ignore[attr-defined]

    assert served == names, "each in the order in which they came, however heavy the other is"


@pytest.mark.parametrize("weights", [[1, 1], [1, 3], [2, 3, 5], [1, 1, 8]], ids=str)
def test_tenants_that_always_want_more_settle_at_their_weighted_parts(weights: list[int]) -> None:
    """Streams of the first tenant last nine times as long: turns alone would leave it most places."""
    places = 20
    world = World(places, 10_000, {f"t-{number}": weight for number, weight in enumerate(weights)})
    for name in world.weights:
        for _ in range(places * 2):
            world.ask(name)

    for step in range(600):
        short = [index for index, (name, _) in enumerate(world.running) if name != "t-0"]
        position = short[0] if short and step % 9 else 0
        world.leave(position)
        for name in world.weights:
            while len(world.lines[name]) < places:
                world.ask(name)

    parts = {name: places * weight / sum(weights) for name, weight in world.weights.items()}
    assert all(abs(world.count(name) - part) <= 1 for name, part in parts.items())


def test_one_tenant_leaves_others_room_to_wait() -> None:
    world = World(1, 10, {"a": 1, "b": 1})

    verdicts = [world.ask("a") for _ in range(20)]

    assert verdicts.count(Verdict.WAITS) == 5
    assert world.ask("b") is Verdict.WAITS
