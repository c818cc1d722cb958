"""The results folder of a batch: whose it is, and how its output appears: whole, at once, each row exactly once.

batch.json              which input and which model the folder belongs to
journal/                the checkpoint, until the batch is complete
completed/output.jsonl  answers, in the order of the input
completed/errors.jsonl  requests that were refused or failed, in the order of the input
completed/summary.json  how many of each
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final

from windlass_runtime.errors import BatchInputError
from windlass_runtime.jobs.batch.journal import FOLDER, Entry, JournalReader
from windlass_runtime.jobs.batch.rows import BatchInput

VERSION: Final = 1
MANIFEST: Final = "batch.json"
COMPLETED: Final = "completed"


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of a batch."""

    rows: int
    succeeded: int
    failed: int
    computed_twice: int = 0
    """Rows that two workers finished; the output has one of each."""


def claim_results(results: Path, batch: BatchInput, model: str) -> None:
    """Make the folder this batch's, or check that it is. Raises BatchInputError for a folder of another batch.

    `model`: what computes the rows; a batch must not go on with another one.
    """
    results.mkdir(parents=True, exist_ok=True)
    ours = {"version": VERSION, "input_sha256": batch.digest, "rows": len(batch), "model": model}
    path, draft = results / MANIFEST, results / f".{MANIFEST}.{secrets.token_hex(8)}"
    draft.write_text(json.dumps(ours, indent=2) + "\n", "utf-8")
    try:
        os.link(draft, path)  # fails if another worker was faster, and never shows half a file
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as exc:
        raise BatchInputError(f"{path}: expected the manifest of a batch, found something else") from exc
    for name, value in ours.items():
        if not isinstance(found, dict) or found.get(name) != value:
            shown = found.get(name) if isinstance(found, dict) else found
            raise BatchInputError(
                f"{path}: {name}: expected {value!r}, found {shown!r}; give each batch a results folder of its own"
            )


def read_summary(results: Path) -> Summary | None:
    """What became of the batch; None while it is not complete."""
    try:
        found = json.loads((results / COMPLETED / "summary.json").read_text("utf-8"))
    except FileNotFoundError:
        return None
    return Summary(**found)


def publish(results: Path, batch: BatchInput) -> Summary:
    """Write the output of a batch whose rows are all in the journal, remove the journal, and return what came out.

    Several workers may do this at once: the first one's folder stays, because a folder is not renamed over a full one.
    """
    chosen: list[Entry | None] = [None] * len(batch)
    twice = 0
    for entry in JournalReader(results).read_new():
        number = batch.numbers[entry.custom_id]
        twice += chosen[number] is not None
        chosen[number] = chosen[number] or entry
    entries = [entry for entry in chosen if entry is not None]
    if len(entries) < len(batch):  # another worker has published, and removed what it read
        return _require_summary(results)
    draft = results / f".{COMPLETED}.{secrets.token_hex(8)}"
    draft.mkdir()
    try:
        _write_rows(draft / "output.jsonl", (entry for entry in entries if entry.succeeded), results)
        _write_rows(draft / "errors.jsonl", (entry for entry in entries if not entry.succeeded), results)
        succeeded = sum(entry.succeeded for entry in entries)
        summary = Summary(len(batch), succeeded, len(batch) - succeeded, twice)
        (draft / "summary.json").write_text(json.dumps(asdict(summary)) + "\n", "utf-8")
        draft.rename(results / COMPLETED)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        if read_summary(results) is None:
            raise
    shutil.rmtree(results / FOLDER, ignore_errors=True)
    return _require_summary(results)


def _write_rows(path: Path, entries: Iterable[Entry], results: Path) -> None:
    """Copy lines of journal files, which stay open: they are as many as workers were."""
    with contextlib.ExitStack() as stack, path.open("wb") as file:
        sources: dict[str, BinaryIO] = {}
        for entry in entries:
            if entry.file not in sources:
                sources[entry.file] = stack.enter_context((results / FOLDER / entry.file).open("rb"))
            file.write(os.pread(sources[entry.file].fileno(), entry.length, entry.offset))
        file.flush()
        os.fsync(file.fileno())


def _require_summary(results: Path) -> Summary:
    summary = read_summary(results)
    if summary is None:
        raise BatchInputError(f"{results}: expected the rows that were finished, found that somebody removed them")
    return summary
