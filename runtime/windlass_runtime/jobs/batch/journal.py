"""The checkpoint of a batch: finished rows, appended by each worker to a file of its own in the results folder.

Nobody locks anything. A worker writes only to its own file, whole lines at a time, and reads everybody's. A worker that
is killed leaves at most one line without an end, which readers skip; two workers that finish the same row leave two
lines, of which the first by file name and place counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from windlass_runtime.errors import BatchError

FOLDER: Final = "journal"
_SUFFIX: Final = ".jsonl"


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished row."""

    custom_id: str
    succeeded: bool
    file: str
    """Name of the journal file that has it."""
    offset: int
    length: int
    """Bytes of its line, with the line end."""


def is_success(row: dict[str, Any]) -> bool:
    """Whether a finished row belongs into the output file; others belong into the error file."""
    response = row.get("response")
    return isinstance(response, dict) and response.get("status_code") == 200


class JournalWriter:
    """This worker's own file."""

    def __init__(self, results: Path, shard: int, shards: int, worker: str) -> None:
        self._folder = results / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._name = f"{shards:05}-{shard:05}-{worker}{_SUFFIX}"
        self._file = (self._folder / self._name).open("xb", buffering=0)

    def append(self, row: dict[str, Any]) -> None:
        """Write one finished row. It survives the death of this process at once, that of the machine after `close`."""
        data = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def renew_listing(self) -> None:
        """Change the folder, so that a network file system lists it anew instead of from its cache."""
        mark = self._folder / f".{self._name}"
        mark.touch()
        mark.unlink(missing_ok=True)

    def close(self) -> None:
        """Bring everything to the disk."""
        os.fsync(self._file.fileno())
        self._file.close()


@dataclass(slots=True)
class JournalReader:
    """Everybody's files, each read once as it grows."""

    results: Path
    _read_to: dict[str, int] = field(default_factory=dict)

    def begun(self, shards: int) -> frozenset[int]:
        """Shards, of so many, that some worker has begun."""
        parts = (name.split("-") for name in self._names())
        return frozenset(int(part[1]) for part in parts if int(part[0]) == shards)

    def read_new(self) -> Iterator[Entry]:
        """Rows that came since the last call. Raises BatchError for a damaged file."""
        for name in self._names():
            yield from self._read_file(name)

    def _names(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.results / FOLDER) if name.endswith(_SUFFIX))
        except FileNotFoundError:
            return []

    def _read_file(self, name: str) -> Iterator[Entry]:
        path, start = self.results / FOLDER / name, self._read_to.get(name, 0)
        try:
            # Opened anew each time: a network file system shows what others wrote to whoever opens after them.
            with path.open("rb") as file:
                file.seek(start)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # being written, or the last words of a worker that was killed
                    yield _parse(line, path, start)
                    self._read_to[name] = start = start + len(line)
        except FileNotFoundError:
            return  # the batch is complete, and somebody has tidied up


def _parse(line: bytes, path: Path, offset: int) -> Entry:
    try:
        row = json.loads(line)
        return Entry(row["custom_id"], is_success(row), path.name, offset, len(line))
    except (KeyError, TypeError, ValueError) as exc:
        raise BatchError(
            f"{path}: expected finished rows, found a damaged line; remove the file, and its rows are computed again"
        ) from exc
