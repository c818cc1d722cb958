"""The routing table while it changes: no request is lost, and a bad file changes nothing."""

from __future__ import annotations

import asyncio
import pathlib

import pytest

from support.gateway import BuildBench, BuildReplica, build_route, write_table
from windlass_contract.endpoints import Replica
from windlass_gateway.routes import RouteBook


@pytest.mark.parametrize("text", ["", "{", '{"routes": [{}]}', '{"routes": 3}', "[]"])
async def test_a_bad_file_leaves_the_last_good_table(tmp_path: pathlib.Path, text: str) -> None:
    table = tmp_path / "routes.json"
    write_table(table, build_route([Replica("a", "http://a")]))
    book = RouteBook(table)
    await book.refresh()

    await asyncio.to_thread(table.write_text, text)
    changed = await book.refresh()

    assert not changed
    assert list(book.directory.routes) == [("team", "chat")]


async def test_a_file_that_comes_late_is_read_when_it_is_there(tmp_path: pathlib.Path) -> None:
    book = RouteBook(tmp_path / "routes.json")

    early = (await book.refresh(), book.loaded)
    write_table(tmp_path / "routes.json", build_route([]))
    late = (await book.refresh(), book.loaded)
    again = await book.refresh()

    assert (early, late, again) == ((False, False), (True, True), False)


async def test_replicas_that_come_and_go_under_load_lose_no_request(bench: BuildBench, replica: BuildReplica) -> None:
    a, b = await replica("a", words=3), await replica("b", words=3)
    front = await bench(build_route([a.address]))
    answers: list[str] = []

    async def keep_asking(client_number: int) -> None:
        async with front.client() as client:
            for number in range(20):
                stream = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": f"{client_number} {number}"}], stream=True
                )
                answers.append("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))

    async def keep_changing() -> None:
        for turn in range(1000):
            addresses = ([a.address], [b.address], [a.address, b.address])[turn % 3]
            await asyncio.to_thread(write_table, front.table, build_route(addresses))
            await asyncio.sleep(0.01)

    changing = asyncio.create_task(keep_changing())
    await asyncio.gather(*(keep_asking(number) for number in range(5)))
    changing.cancel()

    assert len(answers) == 100
    assert set(answers) == {"a0 a1 a2 ", "b0 b1 b2 "}
