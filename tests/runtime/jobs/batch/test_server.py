"""What a server's answers do to a row: settled, tried again, waited for, or the end of the worker."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from windlass_runtime.errors import BatchError
from windlass_runtime.jobs.batch.rows import Row
from windlass_runtime.jobs.batch.server import Patience, Sender

ROW = Row(0, "a", "/v1/completions", {"prompt": "hi"})


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


@contextlib.asynccontextmanager
async def asking(*answers: web.Response | int, **patience: Any) -> AsyncIterator[tuple[Sender, Time, list[Any]]]:
    """A sender to a server that gives these answers in turn, the last one for ever."""
    seen: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.path, await request.json()))
        found = answers[min(len(seen), len(answers)) - 1]
        if isinstance(found, int):
            return web.json_response({"status": found}, status=found, headers={"x-request-id": "r1"})
        return web.Response(status=found.status, headers=found.headers, text=found.text)

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    time = Time()
    limits = Patience(**{"attempts": 3, "timeout_s": 5.0, "give_up_s": 100.0, **patience})
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/"
    async with aiohttp.ClientSession() as session:
        yield Sender(session, url, limits, "digest", lambda: time.now_s, time.sleep), time, seen
    await runner.cleanup()


async def test_an_answer_becomes_a_row_with_the_body_as_the_server_sent_it() -> None:
    async with asking(200) as (sender, _, seen):
        row = await sender.answer(ROW)

    assert seen == [("/v1/completions", {"prompt": "hi"})]
    assert row["response"] == {"status_code": 200, "request_id": "r1", "body": {"status": 200}}
    assert (row["custom_id"], row["error"]) == ("a", None)


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_a_refused_request_is_not_asked_again(status: int) -> None:
    async with asking(status, 200) as (sender, time, seen):
        row = await sender.answer(ROW)

    assert row["response"]["status_code"] == status  # type: ignore[index]
    assert (len(seen), time.slept) == (1, [])


async def test_a_failing_request_is_given_up_after_its_attempts_and_keeps_the_last_answer() -> None:
    async with asking(500) as (sender, time, seen):
        row = await sender.answer(ROW)

    assert row["response"]["status_code"] == 500  # type: ignore[index]
    assert (len(seen), time.slept) == (3, [0.5, 1.0])


async def test_a_busy_server_is_waited_for_as_long_as_it_says_without_an_attempt_spent() -> None:
    busy = web.Response(status=429, headers={"Retry-After": "40"}, text="{}")
    async with asking(*[busy] * 9, 200) as (sender, time, _):
        row = await sender.answer(ROW)

    assert row["response"]["status_code"] == 200  # type: ignore[index]
    assert time.slept == [40.0] * 9


async def test_a_server_that_is_away_is_waited_for_and_then_ends_the_worker() -> None:
    async with asking(503, 502, 200) as (sender, _, _):
        assert (await sender.answer(ROW))["response"]["status_code"] == 200  # type: ignore[index]
    async with asking(503, give_up_s=30.0) as (sender, time, _):
        with pytest.raises(BatchError, match="expected a server within 30 s, found HTTP 503"):
            await sender.answer(ROW)
    assert 30 < time.now_s <= 90


async def test_nobody_at_the_address_is_a_server_that_is_away() -> None:
    async with asking(200, give_up_s=1.0) as (sender, _, _):
        pass
    async with aiohttp.ClientSession() as session:
        sender._session = session
        with pytest.raises(BatchError, match="expected a server within 1 s, found ClientConnectorError"):
            await sender.answer(ROW)


async def test_a_key_that_is_not_accepted_ends_the_worker_at_once() -> None:
    async with asking(401) as (sender, _, seen):
        with pytest.raises(BatchError, match="expected to be let in, found HTTP 401"):
            await sender.answer(ROW)

    assert len(seen) == 1


async def test_an_answer_that_is_no_json_is_kept_as_text() -> None:
    async with asking(web.Response(status=413, text="too big")) as (sender, _, _):
        row = await sender.answer(ROW)

    assert row["response"]["body"] == "too big"  # type: ignore[index]
