"""Progress of a long job on a terminal, in a log, or not at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from windlass_runtime.jobs.work_folder import Report


@contextmanager
def show_progress(name: str, *, quiet: bool) -> Iterator[Report]:
    """A bar on a terminal, a line a step elsewhere, nothing when JSON is wanted."""
    console = Console(stderr=True)
    if quiet:
        yield lambda *_: None
        return
    if not console.is_terminal:
        yield lambda done, steps, text: print(f"{done}/{steps} {text}", file=sys.stderr)  # noqa: T201
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name)
        yield lambda done, steps, text: progress.update(task, completed=done, total=steps, description=text)
