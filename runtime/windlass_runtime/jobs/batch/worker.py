"""One worker of a batch: takes rows, gets them answered, keeps the checkpoint, helps slow workers, publishes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from windlass_runtime.jobs.batch.journal import JournalReader, JournalWriter
from windlass_runtime.jobs.batch.results import Summary, publish, read_summary
from windlass_runtime.jobs.batch.rows import BatchInput
from windlass_runtime.jobs.batch.server import Sender
from windlass_runtime.jobs.batch.shards import Board

REFRESH_S: Final = 1.0
"""Between two looks at what the other workers have done."""
Report = Callable[[int, int], None]
"""Called with rows done and rows in all, of this worker's shard."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which part of a batch a worker has."""

    shard: int = 0
    shards: int = 1
    concurrency: int = 32
    """Rows computed at once."""
    straggler_after_s: float = 30.0
    """Silence of a worker after which the rows that it computes are computed by others too."""
    stop_grace_s: float = 30.0
    """Time for rows under way once the worker is told to stop."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a worker ended."""

    shard_rows: int
    shard_done: int
    computed: int
    """Rows that this worker finished, of its own shard and of others."""
    summary: Summary | None
    """Of the whole batch; None while other workers have rows left."""
    stopped: bool = False
    """Whether it was told to stop before its shard was done."""


async def work(
    batch: BatchInput,
    results: Path,
    sender: Sender,
    assignment: Assignment,
    *,
    stop: asyncio.Event,
    clock: Callable[[], float],
    report: Report = lambda *_: None,
) -> Outcome:
    """Work until the batch is complete, others can do the rest, or `stop` is set. Raises BatchError.

    Once `stop` is set no row is begun, and those under way may finish.
    """
    # The name of its file is its claim: with it others see that this shard has begun.
    writer = JournalWriter(results, assignment.shard, assignment.shards, secrets.token_hex(8))
    worker = _Worker(batch, results, writer, sender, assignment, stop, clock, report)
    try:
        summary = await worker.run()
    finally:
        await worker.abandon()
        writer.close()
    if summary is None and worker.board.complete:
        summary = publish(results, batch)
    rows = worker.board.own_rows
    done = rows if summary else worker.board.own_done
    return Outcome(rows, done, worker.computed, summary, stopped=summary is None and done < rows)


class _Worker:
    def __init__(
        self,
        batch: BatchInput,
        results: Path,
        writer: JournalWriter,
        sender: Sender,
        assignment: Assignment,
        stop: asyncio.Event,
        clock: Callable[[], float],
        report: Report,
    ) -> None:
        self._batch, self._results, self._writer, self._sender = batch, results, writer, sender
        self._assignment, self._stop, self._clock, self._report = assignment, stop, clock, report
        self.computed = 0
        self.board = Board(
            batch.ids,
            assignment.shard,
            assignment.shards,
            window=assignment.concurrency,
            quiet_s=assignment.straggler_after_s,
        )
        self._reader = JournalReader(results)
        self._running: dict[asyncio.Task[dict[str, object]], int] = {}

    async def run(self) -> Summary | None:
        """Return the summary if another worker has published it."""
        looked_s, last_s = self._look(), float("inf")
        while not self.board.complete and self._clock() < last_s:
            if self._clock() - looked_s >= REFRESH_S:
                summary = read_summary(self._results)
                if summary is not None:
                    return summary
                looked_s = self._look()
            self._begin_rows()
            if self._stop.is_set():
                last_s = min(last_s, self._clock() + self._assignment.stop_grace_s)
            if not self._running and (self._stop.is_set() or self._is_not_needed()):
                return None
            await self._wait()
        return None

    def _look(self) -> float:
        """Take in what all workers have written, and return the time."""
        now_s = self._clock()
        for shard in self._reader.begun(self._assignment.shards):
            self.board.begin(shard, now_s)
        for entry in self._reader.read_new():
            self.board.settle(self._batch.numbers[entry.custom_id], now_s)
        self.board.look_for_stragglers(now_s)
        self._report(self.board.own_done, self.board.own_rows)
        return now_s

    def _is_not_needed(self) -> bool:
        if not self.board.may_leave:
            return False
        # Leave on fresh knowledge only: if everybody left on old one, nobody would publish.
        self._writer.renew_listing()
        self._look()
        return self.board.may_leave

    def _begin_rows(self) -> None:
        while not self._stop.is_set() and len(self._running) < self._assignment.concurrency:
            number = self.board.take()
            if number is None:
                return
            task = asyncio.create_task(self._sender.answer(self._batch.read(number)))
            self._running[task] = number

    async def _wait(self) -> None:
        """Wait for rows, at most until the next look."""
        if not self._running:
            await asyncio.sleep(REFRESH_S / 4)
            return
        done, _ = await asyncio.wait(self._running, timeout=REFRESH_S, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            number = self._running.pop(task)
            row = task.result()
            if not self.board.is_done(number):
                self._writer.append(row)
                self.computed += 1
            self.board.settle(number, self._clock())
        self._report(self.board.own_done, self.board.own_rows)

    async def abandon(self) -> None:
        """Stop what is under way: rows that others have finished, or all of them after an error."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
