"""Notice edits to the files of a running `windlass up`, by looking: editors replace files in ways that no single
event covers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Final

_SUFFIXES: Final = (".yaml", ".yml", ".json")

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Path, modification time, inode and size of every file; differs after every edit."""


def observe_files(paths: Iterable[str]) -> Fingerprint:
    """Fingerprint the named files and everything loadable below the named folders.

    Files that vanish meanwhile are left out.
    """
    return tuple(sorted(_look(paths)))


def _look(paths: Iterable[str]) -> Iterator[tuple[str, int, int, int]]:
    for path in paths:
        for file in _walk(path) if os.path.isdir(path) else (path,):
            try:
                stat = os.stat(file)
            except OSError:
                continue
            yield file, stat.st_mtime_ns, stat.st_ino, stat.st_size


def _walk(folder: str) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        yield from (os.path.join(parent, name) for name in names if name.endswith(_SUFFIXES))
