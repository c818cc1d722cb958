"""Who answers a batch's requests: a server somewhere, or a replica that this process starts for itself.

Both speak HTTP, so a row gets from a batch exactly what a client gets from the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import aiohttp

from windlass_contract.launch_spec import LaunchSpec
from windlass_runtime import errors
from windlass_runtime.jobs.batch.reply import Verdict, describe_row, describe_unanswered, judge_status, parse_reply
from windlass_runtime.jobs.batch.reply import wait_s as next_wait_s
from windlass_runtime.jobs.batch.rows import Row
from windlass_runtime.launch import ModelLoader

_CONNECT_S: Final = 10.0
_BUSY: Final = 429
"""A server that says so is there, however long it has others to serve first."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a batch keeps trying."""

    attempts: int
    """Answers of 5xx, or none in time, after which a row is given up."""
    timeout_s: float
    """Longest time for one answer."""
    give_up_s: float
    """Time without a server that takes requests after which the worker stops."""


class Sender:
    """Gets rows answered. `digest` tells the input, for the ids of rows."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        patience: Patience,
        digest: str,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._session, self._url = session, url.rstrip("/").removesuffix("/v1")
        self._patience, self._digest = patience, digest
        self._clock, self._sleep = clock, sleep
        self._heard_s = clock()

    async def answer(self, row: Row) -> dict[str, object]:
        """Return the finished row. Raises BatchError when the server lets nobody in, or is silent for too long."""
        attempts = tries = 0
        while True:
            verdict, finished, retry_after, words = await self._try(row)
            if verdict is Verdict.SETTLE:
                assert finished is not None
                return finished
            attempts += verdict is Verdict.TRY_AGAIN
            if attempts >= self._patience.attempts:
                return finished or describe_unanswered(row.custom_id, self._digest, "request_timeout", words)
            if verdict is Verdict.STOP:
                raise errors.BatchError(f"{self._url}: expected to be let in, found {words}")
            if verdict is Verdict.WAIT and self._clock() - self._heard_s > self._patience.give_up_s:
                raise errors.BatchError(
                    f"{self._url}: expected a server within {self._patience.give_up_s:g} s, found {words}; "
                    "finished rows are kept, run the batch again"
                )
            await self._sleep(next_wait_s(tries, retry_after))
            tries += 1

    async def _try(self, row: Row) -> tuple[Verdict, dict[str, object] | None, str | None, str]:
        """One attempt: what to do, the row as it would be finished, the server's Retry-After, and words for people."""
        timeout = aiohttp.ClientTimeout(total=self._patience.timeout_s, connect=_CONNECT_S)
        try:
            async with self._session.post(f"{self._url}{row.url}", json=row.body, timeout=timeout) as reply:
                data = await reply.read()
        except aiohttp.ServerTimeoutError as exc:  # connecting took too long
            return Verdict.WAIT, None, None, str(exc) or "nobody who accepts a connection"
        except TimeoutError:
            words = f"no answer within {self._patience.timeout_s:g} s"
            return Verdict.TRY_AGAIN, None, None, words
        except aiohttp.ClientError as exc:
            return Verdict.WAIT, None, None, f"{type(exc).__name__}: {exc}"
        verdict = judge_status(reply.status)
        if verdict is not Verdict.WAIT or reply.status == _BUSY:
            self._heard_s = self._clock()
        request_id = reply.headers.get("x-request-id", "")
        body = parse_reply(data)
        finished = describe_row(row.custom_id, self._digest, reply.status, request_id, body)
        return verdict, finished, reply.headers.get("Retry-After"), f"HTTP {reply.status}"


@contextlib.asynccontextmanager
async def own_replica(spec: LaunchSpec, load: ModelLoader, stop: asyncio.Event) -> AsyncIterator[str]:
    """Load a model and serve it on this machine's loopback; yields its URL.

    Raises what loading raises, and BatchError when `stop` is set before the model is ready.
    """
    end, ready = asyncio.Event(), asyncio.Event()
    urls: list[str] = []

    def report(event: str, fields: dict[str, object]) -> None:
        if event == "listening":
            urls.append(str(fields["url"]))
        elif event == "ready":
            ready.set()

    from windlass_runtime.serve import process

    private = dataclasses.replace(spec, host="127.0.0.1", port=0)
    serving = asyncio.create_task(process.serve(private, load, report, end))
    waiting = [asyncio.create_task(event.wait()) for event in (ready, stop)]
    try:
        await asyncio.wait({serving, *waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.is_set():
            end.set()
            await serving
            raise errors.BatchError("stopped while the model was loading; run the batch again")
        yield urls[0]
    finally:
        for task in waiting:
            task.cancel()
        end.set()
        await serving
