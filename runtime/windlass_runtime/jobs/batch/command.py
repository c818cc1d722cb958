"""The shell of `windlass-runtime batch`: options to values, signals, a progress bar, and the result as text or JSON."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import click

from windlass_contract.launch_spec import INTEGERS, LaunchSpec
from windlass_runtime import errors
from windlass_runtime.jobs.batch.results import claim_results, read_summary
from windlass_runtime.jobs.batch.rows import BatchInput, read_input
from windlass_runtime.jobs.batch.server import Patience, Sender, own_replica
from windlass_runtime.jobs.batch.worker import Assignment, Outcome, Report, work
from windlass_runtime.launch import ModelLoader

_LINE_INTERVAL_S = 10.0
"""Between two lines of progress where there is no terminal."""


@dataclass(frozen=True, slots=True)
class BatchJob:
    """Everything one worker is told."""

    input: Path
    results: Path
    server: str | LaunchSpec
    """URL of a server, or the model that this process serves to itself."""
    assignment: Assignment
    patience: Patience
    api_key: str = ""


_CONCURRENCY: Final = 32
"""Rows at once for a server whose size is not known."""

_GIVE_UP_S: Final[Mapping[type, float]] = {str: 900.0, LaunchSpec: 60.0}
"""An engine of this process that does not come back will not; a server may be restarted."""


def build_job(options: Mapping[str, Any], server: str | LaunchSpec) -> BatchJob:
    """Values of the command line to those of a job. Raises click.UsageError, OSError for a key that cannot be read."""
    shard, shards = options["shard"] or 0, options["shards"]
    if shard >= shards:
        raise click.UsageError(f"--shard: expected less than --shards {shards}, found {shard}")
    if options["api_key_file"] is not None and not isinstance(server, str):
        raise click.UsageError("--api-key-file: expected the URL of a server, found a model, which asks for no key")
    # Half as many again as run at once: the engine never waits for the next row.
    default = _CONCURRENCY if isinstance(server, str) else server.max_running_requests * 3 // 2 or 1
    drain_s = 30.0 if isinstance(server, str) else server.drain_timeout_s
    give_up_s = options["give_up_s"] if options["give_up_s"] is not None else _GIVE_UP_S[type(server)]
    return BatchJob(
        input=options["requests"],
        results=options["results"],
        server=server,
        assignment=Assignment(
            shard, shards, options["concurrency"] or default, options["straggler_after_s"], stop_grace_s=drain_s
        ),
        patience=Patience(options["attempts"], options["timeout_s"], give_up_s),
        api_key=options["api_key_file"].read_text("utf-8").strip() if options["api_key_file"] else "",
    )


def run(job: BatchJob, load: ModelLoader, *, as_json: bool) -> None:
    """Work and print. Raises RuntimeFault, of which BatchInputError is not worth another try."""
    started_s = time.monotonic()
    batch = read_input(job.input)
    claim_results(job.results, batch, _describe_server(job.server))
    summary = read_summary(job.results)
    if summary is None:
        with _progress(job, quiet=as_json) as report:
            outcome = asyncio.run(_work(batch, job, load, report))
    else:
        outcome = Outcome(0, 0, 0, summary)
    seconds = round(time.monotonic() - started_s, 1)
    click.echo(json.dumps(_record(job, outcome, seconds)) if as_json else _tell(job, outcome, seconds))
    if outcome.stopped:
        raise errors.BatchError("stopped before the end; finished rows are kept, run the batch again")


def _describe_server(server: str | LaunchSpec) -> str:
    """What must stay the same when a batch goes on: the model. Where a server listens may change, and where a replica
    computes, and with it the format of its arithmetic.
    """
    if isinstance(server, str):
        return "server"
    weights = f"{server.precision} {server.recipe}".rstrip() if server.precision in INTEGERS else "as stored"
    return f"{server.model_uri} {weights}"


async def _work(batch: BatchInput, job: BatchJob, load: ModelLoader, report: Report) -> Outcome:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(_served(job.server, load, stop))
        headers = {"Authorization": f"Bearer {job.api_key}"} if job.api_key else {}
        connector = aiohttp.TCPConnector(limit=job.assignment.concurrency)
        session = await stack.enter_async_context(aiohttp.ClientSession(headers=headers, connector=connector))
        sender = Sender(session, url, job.patience, batch.digest, time.monotonic)
        return await work(batch, job.results, sender, job.assignment, stop=stop, clock=time.monotonic, report=report)


@contextlib.asynccontextmanager
async def _served(server: str | LaunchSpec, load: ModelLoader, stop: asyncio.Event) -> AsyncIterator[str]:
    if isinstance(server, str):
        yield server
        return
    async with own_replica(server, load, stop) as url:
        yield url


def _record(job: BatchJob, outcome: Outcome, seconds: float) -> dict[str, Any]:
    summary = outcome.summary
    return {
        "status": "completed" if summary else "stopped" if outcome.stopped else "waiting",
        "results": str(job.results),
        "shard": job.assignment.shard,
        "shards": job.assignment.shards,
        "shard_rows": outcome.shard_rows,
        "shard_done": outcome.shard_done,
        "computed": outcome.computed,
        "seconds": seconds,
        **({"batch": dataclasses.asdict(summary)} if summary else {}),
    }


def _tell(job: BatchJob, outcome: Outcome, seconds: float) -> str:
    part = "" if job.assignment.shards == 1 else f"shard {job.assignment.shard} of {job.assignment.shards}: "
    done = f"{part}{outcome.computed} rows computed in {seconds:g} s"
    summary = outcome.summary
    if summary is None:
        return f"{done}; {outcome.shard_done} of {outcome.shard_rows} of the shard are done, other shards are not"
    return (
        f"{done}\nbatch complete: {summary.succeeded} of {summary.rows} rows succeeded, {summary.failed} failed\n"
        f"{job.results}/completed/output.jsonl"
    )


@contextlib.contextmanager
def _progress(job: BatchJob, *, quiet: bool) -> Iterator[Report]:
    """A bar on a terminal, now and then a line elsewhere, nothing when JSON is wanted."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    title = "rows" if job.assignment.shards == 1 else f"rows of shard {job.assignment.shard}"
    if quiet:
        yield lambda *_: None
    elif not console.is_terminal:
        yield _lines(title)
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(title, total=None)
            yield lambda done, rows: progress.update(task, completed=done, total=rows)


def _lines(title: str) -> Report:
    told, told_s = -1, -_LINE_INTERVAL_S

    def report(done: int, rows: int) -> None:
        nonlocal told, told_s
        if done != told and (done == rows or time.monotonic() - told_s >= _LINE_INTERVAL_S):
            told, told_s = done, time.monotonic()
            print(f"{done}/{rows} {title}", file=sys.stderr)  # noqa: T201

    return report
