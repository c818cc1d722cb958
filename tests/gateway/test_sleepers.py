"""Requests for a service that sleeps: held, bounded, and let go together when a replica is there."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

import aiohttp
import openai
import pytest

from support.gateway import Bench, BuildBench, BuildReplica, build_route, write_table
from windlass_contract.endpoints import Route

MESSAGES = [{"role": "user", "content": "hello"}]


def sleeping(hold_s: float = 5.0, max_held: int = 100) -> Route:
    """A route without a replica, whose requests may wait."""
    return dataclasses.replace(build_route([]), hold_s=hold_s, max_held=max_held)


def wake(front: Bench, route: Route, *replicas: object) -> None:
    """What the control plane does once the first replica is ready."""
    write_table(front.table, dataclasses.replace(route, replicas=tuple(replicas)))  # type: ignore[arg-type]


async def ask(front: Bench) -> str:
    async with front.client() as client:
        answer = await client.chat.completions.create(model="m", messages=MESSAGES)  # type: ignore[arg-type]
        return str(answer.choices[0].message.content)


async def held(front: Bench, count: int) -> None:
    """Return once so many requests wait; the test's own timeout bounds the time."""
    await reached(lambda: metric(front, "windlass_gateway_requests_held") == count)


async def reached(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


def metric(front: Bench, name: str) -> float | None:
    """One gauge of the one route, as a scraper would see it."""
    proxy = front.gateway._proxy
    front.gateway.metrics.show_sleepers(proxy._sleepers.readings(front.gateway.routes.directory.routes.values()))
    labels = {"namespace": "team", "service": "chat", "tenant": "acme"}
    return front.gateway.metrics.registry.get_sample_value(name, labels)


async def refusal(front: Bench) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        await ask(front)
    return caught.value


async def test_a_request_for_a_sleeping_service_is_answered_once_it_is_awake(
    bench: BuildBench, replica: BuildReplica
) -> None:
    a, route = await replica("a", words=2), sleeping()
    front = await bench(route)
    asking = asyncio.create_task(ask(front))
    await held(front, 1)

    wake(front, route, a.address)

    assert await asking == "a0 a1 "


async def test_all_who_wait_go_on_together_and_every_one_is_answered(bench: BuildBench, replica: BuildReplica) -> None:
    a, b, route = await replica("a", words=1), await replica("b", words=1), sleeping()
    front = await bench(route)
    asking = [asyncio.create_task(ask(front)) for _ in range(20)]
    await held(front, 20)

    wake(front, route, a.address, b.address)

    assert sorted(await asyncio.gather(*asking)) == ["a0 "] * 10 + ["b0 "] * 10
    front.gateway.sleepers.room.check()  # type: ignore[union-attr]


async def test_one_request_too_many_is_refused_with_a_time_to_come_back(bench: BuildBench) -> None:
    front = await bench(sleeping(max_held=2))
    asking = [asyncio.create_task(ask(front)) for _ in range(2)]
    await held(front, 2)

    refused = await refusal(front)

    assert (refused.status_code, refused.code) == (503, "wake_queue_full")
    assert refused.response.headers["Retry-After"] == "10"
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)


async def test_waiting_ends_at_its_deadline(bench: BuildBench) -> None:
    front = await bench(sleeping(hold_s=0.1))

    refused = await refusal(front)

    assert (refused.status_code, refused.code) == (503, "wake_timeout")
    assert refused.response.headers["Retry-After"] == "10"
    await held(front, 0)


async def test_a_client_that_leaves_makes_room(bench: BuildBench) -> None:
    front = await bench(sleeping(max_held=1))
    asking = asyncio.create_task(ask(front))
    await held(front, 1)

    asking.cancel()

    await held(front, 0)


async def test_a_service_that_never_sleeps_is_refused_at_once(bench: BuildBench) -> None:
    refused = await refusal(await bench(build_route([])))

    assert (refused.status_code, refused.code) == (503, "no_ready_replica")


async def test_a_gateway_that_ends_sends_those_who_wait_to_another_one(bench: BuildBench) -> None:
    front = await bench(sleeping())
    asking = asyncio.create_task(refusal(front))
    await held(front, 1)

    front.gateway.sleepers.close()  # type: ignore[union-attr]

    refused = await asking
    assert (refused.status_code, refused.code) == (503, "no_ready_replica")


async def test_replicas_that_are_gone_but_still_listed_do_not_end_the_waiting(
    bench: BuildBench, replica: BuildReplica, dead_address: object
) -> None:
    a, route = await replica("a", words=1), sleeping()
    front = await bench(dataclasses.replace(route, replicas=(dead_address,)))  # type: ignore[arg-type]
    asking = asyncio.create_task(ask(front))
    await asyncio.sleep(0.05)

    wake(front, route, a.address)

    assert await asking == "a0 "


async def test_a_service_that_left_the_table_is_not_waited_for(bench: BuildBench) -> None:
    front = await bench(sleeping())
    asking = asyncio.create_task(refusal(front))
    await held(front, 1)

    write_table(front.table)

    # The key opens nothing any more, but this request was let in before.
    assert (await asking).status_code == 503


async def test_the_demand_is_the_peak_of_the_last_minute_under_the_name_of_the_service(
    bench: BuildBench, replica: BuildReplica
) -> None:
    a = await replica("a")
    front = await bench(dataclasses.replace(sleeping(), replicas=(a.address,)), build_route([], service="awake"))
    await asyncio.gather(ask(front), ask(front))

    async with aiohttp.ClientSession() as session, session.get(f"{front.url}/metrics") as answer:
        lines = [line for line in (await answer.text()).splitlines() if line.startswith("windlass_gateway_demand")]

    name = 'windlass_gateway_demand_requests{namespace="team",service="chat",tenant="acme"}'
    assert lines in ([f"{name} 2.0"], [f"{name} 1.0"])  # the two may have come one after the other


async def test_limits_count_those_who_wait(bench: BuildBench) -> None:
    """A tenant cannot get around its concurrency by asking for what sleeps."""
    from windlass_contract.endpoints import TenantRates

    front = await bench(sleeping(), rates=[TenantRates("acme", concurrent_requests=1)])
    asking = asyncio.create_task(ask(front))
    await held(front, 1)

    assert (await refusal(front)).status_code == 429
    asking.cancel()
    await asyncio.wait([asking])
