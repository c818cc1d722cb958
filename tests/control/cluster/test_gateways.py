"""What gateways are asked for, read from real servers on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from windlass_operator.cluster.gateways import Demand, Gateways, add_up, parse_demand

PAGE = """\
# TYPE windlass_gateway_demand_requests gauge
windlass_gateway_demand_requests{namespace="team-a",service="chat",tenant="a"} 3
windlass_gateway_demand_requests{namespace="team-a",service="embed",tenant="a"} 0
windlass_gateway_requests_in_flight{namespace="team-a",service="chat",tenant="a"} 99
"""


@contextlib.asynccontextmanager
async def gateway(answers: dict[str, str]) -> AsyncIterator[str]:
    """One server in the place of several gateways: `/POD` answers what that pod would, 503 where there is nothing."""

    async def answer(request: web.Request) -> web.Response:
        text = answers.get(request.path.strip("/"))
        return web.Response(text=text or "", status=200 if text is not None else 503)

    app = web.Application()
    app.router.add_get("/{pod}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/{{pod}}"
    finally:
        await runner.cleanup()


def pod(name: str, ip: str = "10.0.0.1", phase: str = "Running") -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": {"podIP": ip, "phase": phase}}


async def read(answers: dict[str, str], *pods: dict[str, Any]) -> Demand:
    async def listed() -> AsyncIterator[dict[str, Any]]:
        for item in pods:
            yield item

    async with gateway(answers) as url, Gateways(listed, url) as gateways:
        return await gateways.read()


def test_the_demand_of_a_page_is_by_service() -> None:
    assert parse_demand(PAGE) == {("team-a", "chat"): 3.0, ("team-a", "embed"): 0.0}


def test_a_page_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="float"):
        parse_demand('windlass_gateway_demand_requests{namespace="a"} many\n')


async def test_gateways_add_up() -> None:
    found = await read({"one": PAGE, "two": PAGE}, pod("one"), pod("two"))

    assert (found.of("team-a", "chat"), found.of("team-b", "chat"), found.missing) == (6.0, 0.0, 0)


async def test_a_gateway_that_does_not_answer_is_missing_and_not_zero() -> None:
    found = await read({"one": PAGE}, pod("one"), pod("two"))

    assert (found.of("team-a", "chat"), found.missing, found.asked) == (3.0, 1, 2)


async def test_gateways_that_do_not_run_are_not_asked() -> None:
    found = await read({"one": PAGE}, pod("one"), pod("two", ip=""), pod("three", phase="Pending"))

    assert (found.missing, found.asked) == (0, 1)


def test_nobody_asked_is_a_demand_of_nothing() -> None:
    assert add_up([]) == Demand({}, 0, 0)
