"""One reading for all who ask, and patience after a failure."""

from __future__ import annotations

import asyncio

import pytest

from windlass_operator.errors import RetryLater
from windlass_operator.serve.shared_read import SharedRead


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Reading:
    """Counts up with each call; waits while `gate` is closed, fails while `broken`."""

    def __init__(self) -> None:
        self.calls = 0
        self.broken = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> int:
        self.calls += 1
        await self.gate.wait()
        if self.broken:
            raise RetryLater("away")
        return self.calls


async def test_many_who_ask_at_once_share_one_reading() -> None:
    reading = Reading()
    reading.gate.clear()
    shared = SharedRead("x", reading, 0, interval_s=10, clock=Clock())

    asked = [asyncio.create_task(shared.get()) for _ in range(50)]
    await asyncio.sleep(0)
    reading.gate.set()

    assert await asyncio.gather(*asked) == [1] * 50
    assert reading.calls == 1


async def test_a_reading_serves_for_its_interval() -> None:
    reading, clock = Reading(), Clock()
    shared = SharedRead("x", reading, 0, interval_s=10, clock=clock)

    assert await shared.get() == 1
    clock.now += 9.9
    assert await shared.get() == 1
    clock.now += 0.1
    assert await shared.get() == 2


async def test_a_failure_keeps_the_last_value_and_is_not_repeated_for_every_question() -> None:
    reading, clock = Reading(), Clock()
    seen: list[tuple[str, bool]] = []
    shared = SharedRead(
        "x", reading, 0, interval_s=10, clock=clock, observe=lambda name, worked, _: seen.append((name, worked))
    )
    await shared.get()
    reading.broken, clock.now = True, clock.now + 10

    assert [await shared.get() for _ in range(5)] == [1] * 5
    assert (reading.calls, shared.problem) == (2, "away")
    reading.broken, clock.now = False, clock.now + 10
    assert await shared.get() == 3
    assert shared.problem == ""
    assert seen == [("x", True), ("x", False), ("x", True)]


async def test_who_leaves_does_not_end_the_reading_of_the_others() -> None:
    reading = Reading()
    reading.gate.clear()
    shared = SharedRead("x", reading, 0, interval_s=10, clock=Clock())
    leaver, other = asyncio.create_task(shared.get()), asyncio.create_task(shared.get())
    await asyncio.sleep(0)

    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    reading.gate.set()

    assert await other == 1


async def test_closing_ends_a_reading_that_hangs() -> None:
    reading = Reading()
    reading.gate.clear()
    shared = SharedRead("x", reading, 0, interval_s=10, clock=Clock())
    waiting = asyncio.create_task(shared.get())
    await asyncio.sleep(0)

    await shared.close()

    with pytest.raises(asyncio.CancelledError):
        await waiting
