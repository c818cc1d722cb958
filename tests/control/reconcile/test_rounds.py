"""Parts beside the reconciling look again and again, whatever happens in one look."""

from __future__ import annotations

import asyncio
import logging

import pytest

from windlass_operator import errors
from windlass_operator.reconcile.rounds import look_for_ever


async def at_once() -> None:
    """Leading, all the time."""


async def look_at(outcomes: list[Exception | None]) -> None:
    """One look per outcome, then an end from outside."""
    left = iter(outcomes)

    async def look() -> None:
        try:
            outcome = next(left)
        except StopIteration:
            raise asyncio.CancelledError from None
        if outcome is not None:
            raise outcome

    with pytest.raises(asyncio.CancelledError):
        await look_for_ever("costs", look, may_work=at_once, pause_s=0)


async def test_trouble_is_told_once_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    away, gone = errors.ClusterUnavailable("away"), errors.ClusterUnavailable("gone")

    await look_at([away, away, gone, None, gone])

    assert [record.getMessage().rpartition("=")[2] for record in caplog.records] == ["away", "gone", "gone"]


async def test_a_bug_is_logged_with_its_traceback_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    await look_at([KeyError("x"), None])

    (record,) = caplog.records
    assert (record.levelno, record.exc_info is not None) == (logging.ERROR, True)
