"""Shares of a route's traffic: exact over time, and steady for sessions."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_contract.endpoints import Canary, Route
from windlass_gateway.splitting import Splitter, choose_for_session

STABLE = ""


def build_route(**weights: int) -> Route:
    canaries = tuple(Canary(name, weight) for name, weight in weights.items())
    return Route("team", "chat", "acme", (), (), canaries=canaries)


def deal(splitter: Splitter, route: Route, count: int) -> list[str]:
    return [canary.name if (canary := splitter.choose(route)) else STABLE for _ in range(count)]


weights_of_canaries = st.lists(st.integers(0, 100), max_size=4).filter(lambda weights: sum(weights) <= 100)


@given(weights_of_canaries, st.integers(1, 500))
def test_shares_are_exact_over_time(weights: list[int], count: int) -> None:
    route = build_route(**{f"c{number}": weight for number, weight in enumerate(weights)})

    dealt = Counter(deal(Splitter(), route, count))

    for canary in route.canaries:
        assert abs(dealt[canary.name] - count * canary.weight / 100) <= len(weights)


@given(weights_of_canaries)
def test_a_hundred_requests_in_a_row_hit_every_weight_exactly(weights: list[int]) -> None:
    route = build_route(**{f"c{number}": weight for number, weight in enumerate(weights)})
    splitter = Splitter()

    rounds = [Counter(deal(splitter, route, 100)) for _ in range(3)]

    assert all(dealt[canary.name] == canary.weight for dealt in rounds for canary in route.canaries)


def test_a_dark_launch_gets_no_turn() -> None:
    assert set(deal(Splitter(), build_route(dark=0), 1000)) == {STABLE}


def test_a_canary_may_take_everything() -> None:
    assert set(deal(Splitter(), build_route(strict=100), 100)) == {"strict"}


def test_turns_are_spread_and_not_bunched() -> None:
    turns = deal(Splitter(), build_route(strict=25), 17)

    taken = [number for number, name in enumerate(turns) if name == "strict"]

    assert [later - earlier for earlier, later in pairwise(taken)] == [4, 4, 4]


def test_a_changed_weight_counts_at_once() -> None:
    splitter = Splitter()
    deal(splitter, build_route(strict=1), 50)

    aborted = deal(splitter, build_route(strict=0), 100)

    assert set(aborted) == {STABLE}


def test_a_session_stays_on_its_revision() -> None:
    route = build_route(strict=50)

    answers = {choose_for_session(route, "user-1") for _ in range(5)}

    assert len(answers) == 1
    assert {Splitter().choose(route, "user-1") for _ in range(5)} == answers, "on every gateway"


@pytest.mark.parametrize("weight", [5, 30, 75])
def test_sessions_are_shared_out_by_weight(weight: int) -> None:
    route = build_route(strict=weight)

    chosen = [choose_for_session(route, f"session-{number}") for number in range(4000)]

    share = 100 * sum(canary is not None for canary in chosen) / len(chosen)
    assert abs(share - weight) < 2.5  # three standard deviations of 4,000 draws are 2.4 points at most


def test_a_growing_weight_moves_sessions_to_the_canary_only() -> None:
    sessions = [f"session-{number}" for number in range(500)]
    before = {name for name in sessions if choose_for_session(build_route(strict=10), name)}

    after = {name for name in sessions if choose_for_session(build_route(strict=40), name)}

    assert before < after


def test_routes_that_left_are_forgotten() -> None:
    splitter = Splitter()
    route = build_route(strict=50)
    first = deal(splitter, route, 1)

    splitter.keep_only(())

    assert deal(splitter, route, 1) == first
