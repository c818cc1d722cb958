"""What a long job has done so far, on disk: killed at any moment, the same command goes on after it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from windlass_runtime.errors import CalibrationError

PROGRESS_FILE: Final = "progress.json"
Hidden = NDArray[np.float32]
"""Hidden states, in memory or in a file."""
Report = Callable[[int, int, str], None]
"""Steps done, steps in all, and what comes next."""


class WorkFolder:
    """Files get their names when they are whole; the progress file comes last."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.identity = identity
        self.steps_done = -1
        """-1 before the embedding, 0 after it, then one a layer, and whatever the job adds."""
        self.notes: list[Any] = []
        """What finished steps left to say, as JSON."""

    @classmethod
    def open(cls, path: Path, identity: dict[str, Any], restart: bool) -> WorkFolder:
        """Go on where the same job stopped. Raises CalibrationError if another one left the folder."""
        folder, progress = cls(path, identity), path / PROGRESS_FILE
        if restart and path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        if progress.exists():
            found = json.loads(progress.read_bytes())
            _refuse_other(path, identity, found["identity"])
            folder.steps_done, folder.notes = found["steps_done"], found["notes"]
        return folder

    def hidden(self, layers: int) -> Path:
        """Hidden states after so many layers."""
        return self.path / f"hidden-{layers}.npy"

    def part(self, name: str) -> Path:
        return self.path / f"part-{name}.safetensors"

    def commit(self, steps_done: int, note: Any = None) -> None:
        """From here on a restart begins after this step; a note is kept with it."""
        if note is not None:
            self.notes.append(note)
        self.steps_done = steps_done
        state = {"identity": self.identity, "steps_done": steps_done, "notes": self.notes}
        with self.replacing(self.path / PROGRESS_FILE) as path:
            path.write_text(json.dumps(state))
        self.hidden(steps_done - 1).unlink(missing_ok=True)

    @contextlib.contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        """A name to write under; the file gets `path` when the block ends well."""
        written = path.with_name(path.name + ".writing")
        yield written
        os.replace(written, path)

    @contextlib.contextmanager
    def writing_array(self, path: Path, shape: tuple[int, ...]) -> Iterator[Hidden]:
        """An array in a new file, to be filled; the file gets `path` when the block ends well."""
        with self.replacing(path) as written:
            array = np.lib.format.open_memmap(written, mode="w+", dtype=np.float32, shape=shape)
            yield array
            array.flush()


def _refuse_other(path: Path, expected: dict[str, Any], found: dict[str, Any]) -> None:
    expected = json.loads(json.dumps(expected))
    changed = [key for key in expected if expected[key] != found.get(key)]
    if changed:
        raise CalibrationError(
            f"{path}: expected the work of this command, found one with another {', '.join(changed)}; "
            "repeat that one, or start anew with --restart"
        )


def replace_folder(source: Path, target: Path) -> None:
    """Put a finished folder in the place of one that may be there."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(source, target)
    shutil.rmtree(old, ignore_errors=True)
