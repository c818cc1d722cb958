"""Requests on a route with canaries, through a real gateway to replicas that behave and to replicas that do not."""

from __future__ import annotations

import dataclasses
from collections import Counter

import aiohttp
import pytest

from support.gateway import KEY, Bench, BuildBench, BuildReplica, build_route, write_table
from support.replica import Behaviour
from windlass_contract.endpoints import REPORT_USAGE_HEADER, Canary, Replica, Route


def with_canary(route: Route, *replicas: Replica, weight: int = 50, name: str = "strict") -> Route:
    return dataclasses.replace(route, canaries=(*route.canaries, Canary(name, weight, replicas)))


async def ask(front: Bench, **headers: str) -> tuple[int, str]:
    """Status and revision of one chat completion."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    all_headers = {
        "Authorization": f"Bearer {KEY}",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{front.url}/team/chat/v1/chat/completions", json=body, headers=all_headers) as answer,
    ):
        await answer.read()
        return answer.status, answer.headers.get("X-Windlass-Canary", "")


async def test_each_revision_gets_its_share(bench: BuildBench, replica: BuildReplica) -> None:
    stable, canary = await replica("a"), await replica("b")
    front = await bench(with_canary(build_route([stable.address]), canary.address, weight=25))

    answers = Counter([await ask(front) for _ in range(40)])

    assert answers == {(200, ""): 30, (200, "strict"): 10}
    assert (stable.counts["finished"], canary.counts["finished"]) == (30, 10)


async def test_a_dark_launch_answers_only_those_who_ask_for_it(bench: BuildBench, replica: BuildReplica) -> None:
    stable, canary = await replica("a"), await replica("b")
    front = await bench(with_canary(build_route([stable.address]), canary.address, weight=0))

    usual = {await ask(front) for _ in range(20)}
    asked = await ask(front, X_Windlass_Canary="strict")

    assert usual == {(200, "")}
    assert asked == (200, "strict")
    assert canary.counts["finished"] == 1


async def test_a_canary_that_is_not_there_cannot_be_asked_for(bench: BuildBench, replica: BuildReplica) -> None:
    front = await bench(build_route([(await replica("a")).address]))

    assert await ask(front, X_Windlass_Canary="strict") == (404, "")


@pytest.mark.parametrize("behaviour", [Behaviour.FULL, Behaviour.DRAINING])
async def test_what_a_canary_does_not_take_the_stable_revision_answers(
    bench: BuildBench, replica: BuildReplica, behaviour: Behaviour
) -> None:
    stable, canary = await replica("a"), await replica("b", behaviour)
    front = await bench(with_canary(build_route([stable.address]), canary.address, weight=100))

    answers = {await ask(front) for _ in range(4)}

    assert answers == {(200, "")}


async def test_a_canary_without_replicas_costs_nobody_an_answer(
    bench: BuildBench, replica: BuildReplica, dead_address: Replica
) -> None:
    stable = await replica("a")
    front = await bench(
        with_canary(with_canary(build_route([stable.address]), weight=50), dead_address, weight=50, name="dead")
    )

    answers = {await ask(front) for _ in range(6)}

    assert answers == {(200, "")}


async def test_who_asked_for_a_canary_is_not_answered_by_another_revision(
    bench: BuildBench, replica: BuildReplica
) -> None:
    stable, canary = await replica("a"), await replica("b", Behaviour.DRAINING)
    front = await bench(with_canary(build_route([stable.address]), canary.address))

    assert await ask(front, X_Windlass_Canary="strict") == (503, "")


async def test_a_session_stays_on_one_revision(bench: BuildBench, replica: BuildReplica) -> None:
    stable, canary = await replica("a"), await replica("b")
    front = await bench(with_canary(build_route([stable.address]), canary.address))

    answers = {number: {await ask(front, X_Windlass_Session=f"s-{number}") for _ in range(3)} for number in range(12)}

    assert all(len(seen) == 1 for seen in answers.values())
    assert len(set.union(*answers.values())) == 2, "twelve sessions on one revision: one in two thousand"


async def test_a_replica_cannot_pose_as_a_canary(bench: BuildBench, replica: BuildReplica) -> None:
    stable = await replica("a")
    front = await bench(build_route([stable.address]))

    await ask(front, X_Windlass_Session="s")

    sent = stable.seen[0].headers
    ours = [name for name in sent if name.lower().startswith("x-windlass")]
    assert ours == [REPORT_USAGE_HEADER], "what clients say in our headers ends at the gateway"


async def test_an_abort_in_the_table_ends_the_share(bench: BuildBench, replica: BuildReplica) -> None:
    stable, canary = await replica("a"), await replica("b")
    route = with_canary(build_route([stable.address]), canary.address, weight=100)
    front = await bench(route)
    before = await ask(front)

    write_table(front.table, dataclasses.replace(route, canaries=()))
    await front.gateway.routes.refresh()

    assert (before, await ask(front)) == ((200, "strict"), (200, ""))


async def test_requests_are_counted_by_revision(bench: BuildBench, replica: BuildReplica) -> None:
    stable, canary = await replica("a"), await replica("b", Behaviour.DIES_BEFORE_ANSWER)
    front = await bench(with_canary(build_route([stable.address]), canary.address))
    for _ in range(4):
        await ask(front)

    lines = [
        line
        for line in front.gateway.metrics.render().decode().splitlines()
        if line.startswith("windlass_gateway_canary_requests_total{")
    ]

    assert sorted(lines) == [
        'windlass_gateway_canary_requests_total{canary="",code="200",namespace="team",service="chat"} 2.0',
        'windlass_gateway_canary_requests_total{canary="strict",code="502",namespace="team",service="chat"} 2.0',
    ]
