"""A full gateway: requests wait for a place, tenants get theirs, and whoever leaves the line costs nobody a place."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

import openai
import pytest

from support.gateway import RIVAL_KEY, BuildBench, BuildReplica, build_route
from support.replica import Behaviour
from windlass_contract import metric_names
from windlass_contract.endpoints import Route
from windlass_gateway import answers
from windlass_gateway.entrance import Entrance
from windlass_gateway.metrics import Metrics

ONE = build_route([])
OTHER = dataclasses.replace(ONE, tenant="lab", weight=3)


def build(places: int = 1, waiting: int = 10, patience_s: float = 5.0) -> tuple[Entrance, Metrics]:
    metrics = Metrics()
    return Entrance(places, waiting, patience_s, metrics), metrics


async def occupy(entrance: Entrance, route: Route, until: asyncio.Event, inside: list[str]) -> None:
    async with entrance.enter(route):
        inside.append(route.tenant)
        await until.wait()


async def reached(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.001)


async def test_a_request_waits_until_another_one_ends() -> None:
    entrance, metrics = build()
    first, second, inside = asyncio.Event(), asyncio.Event(), list[str]()
    async with asyncio.TaskGroup() as group:
        group.create_task(occupy(entrance, ONE, first, inside))
        group.create_task(occupy(entrance, OTHER, second, inside))
        labels = {"namespace": "team", "service": "chat", "tenant": "lab"}
        read = metrics.registry.get_sample_value
        await reached(lambda: read(metric_names.GATEWAY_QUEUED, labels) == 1)
        assert inside == ["acme"]

        first.set()
        await reached(lambda: inside == ["acme", "lab"])

        assert read(metric_names.GATEWAY_QUEUED, labels) == 0
        assert read(f"{metric_names.GATEWAY_QUEUE_TIME}_count", {"tenant": "lab"}) == 1
        second.set()
    entrance.check()


async def test_whoever_waits_too_long_is_told_so_and_leaves_the_line() -> None:
    entrance, _ = build(patience_s=0.01)
    async with entrance.enter(ONE):
        with pytest.raises(answers.Refused) as caught:
            async with entrance.enter(OTHER):
                pytest.fail("there was no place")
        entrance.check()

    assert (caught.value.problem.status, caught.value.problem.code) == (503, "gateway_queue_timeout")
    assert caught.value.problem.retry_after_s > 0
    entrance.check()


async def test_without_room_to_wait_the_answer_comes_at_once() -> None:
    entrance, _ = build(waiting=0)
    async with entrance.enter(ONE):
        with pytest.raises(answers.Refused) as caught:
            async with entrance.enter(OTHER):
                pytest.fail("there was no room")

    assert caught.value.problem is answers.OVERLOADED


@pytest.mark.parametrize("given", [False, True], ids=["while it waits", "in the moment its turn comes"])
async def test_a_client_that_leaves_the_line_costs_nobody_a_place(given: bool) -> None:
    entrance, _ = build()
    end, inside = asyncio.Event(), list[str]()
    runs = asyncio.create_task(occupy(entrance, ONE, end, inside))
    await reached(lambda: bool(inside))
    waits = asyncio.create_task(occupy(entrance, OTHER, asyncio.Event(), inside))
    await asyncio.sleep(0)

    if given:
        end.set()
        while not runs.done():
            await asyncio.sleep(0)
    waits.cancel()
    await asyncio.wait([waits])
    end.set()
    await runs

    entrance.check()
    async with asyncio.timeout(1), entrance.enter(ONE):
        pass


async def test_a_tenant_gets_in_while_another_one_has_every_place(bench: BuildBench, replica: BuildReplica) -> None:
    hung, quick = await replica("a", Behaviour.SILENT), await replica("b")
    other = build_route([quick.address], service="search", key=RIVAL_KEY, tenant="rival")
    front = await bench(build_route([hung.address]), other, max_connections=20, running_share=0.1)
    hogs = [asyncio.create_task(ask(front.client())) for _ in range(6)]
    await reached(lambda: front.gateway.picker.in_flight(hung.address) == 2)
    rival = asyncio.create_task(ask(front.client(RIVAL_KEY, "search")))
    labels = {"namespace": "team", "service": "search", "tenant": "rival"}
    await reached(lambda: front.gateway.metrics.registry.get_sample_value(metric_names.GATEWAY_QUEUED, labels) == 1)

    for task in hogs:
        task.cancel()
    answer = await asyncio.wait_for(rival, 5)

    assert answer
    await asyncio.wait(hogs)


async def ask(client: openai.AsyncOpenAI) -> str:
    async with client:
        answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
        return str(answer.choices[0].message.content)
