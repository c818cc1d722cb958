from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from windlass_operator.power.energy import ServiceKey
from windlass_operator.power.limits import Holder
from windlass_operator.power.pods import ReplicaPod
from windlass_operator.power.tokens import TokenReader, parse_tokens

PAGE = """# TYPE windlass_generated_tokens_total counter
windlass_generated_tokens_total{tenant="a",model="m"} 40.0
windlass_generated_tokens_total{tenant="b",model="m"} 2.0
# TYPE windlass_generated_tokens_totals counter
windlass_generated_tokens_totals{tenant="b",model="m"} 7.0
windlass_requests_running{model="m"} 3.0
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(PAGE, 42.0, id="of all tenants together"),
        pytest.param("windlass_requests_running 1\n", None, id="not on the page"),
        pytest.param("", None, id="empty"),
        pytest.param("windlass_generated_tokens_total NaN\n", None, id="no number"),
        pytest.param("windlass_generated_tokens_total 0\n", 0.0, id="none yet"),
    ],
)
def test_tokens_are_read_from_a_page(text: str, expected: float | None) -> None:
    assert parse_tokens(text) == expected


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async def page(request: web.Request) -> web.Response:
        match request.match_info["pod"]:
            case "good":
                return web.Response(text=PAGE)
            case "moved":
                raise web.HTTPFound("http://169.254.169.254/")
            case "broken":
                return web.Response(text="windlass_generated_tokens_total{ 1\n")
            case _:
                return web.Response(status=503)

    app = web.Application()
    app.router.add_get("/{namespace}/{pod}/metrics", page)
    async with TestServer(app) as server:
        yield f"http://127.0.0.1:{server.port}/{{namespace}}/{{pod}}/metrics"


def replica(name: str, ip: str = "10.0.0.1") -> dict[str, ReplicaPod]:
    return {f"a/{name}": ReplicaPod(ServiceKey("a", "chat"), ip, Holder(f"a/{name}"))}


async def test_replicas_that_do_not_answer_well_are_absent(url: str) -> None:
    async with TokenReader(url, 5) as reader:
        names = ("good", "moved", "broken", "silent")
        found = await reader.read({key: value for name in names for key, value in replica(name).items()})

    assert found == {"a/good": 42.0}


async def test_a_replica_without_an_address_yet_is_not_asked(url: str) -> None:
    async with TokenReader(url, 5) as reader:
        assert await reader.read(replica("good", ip="")) == {}


async def test_counting_can_be_switched_off() -> None:
    async with TokenReader("", 5) as reader:
        assert await reader.read(replica("good")) == {}
