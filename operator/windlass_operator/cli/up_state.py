"""The folder in which one `windlass up` keeps its files: keys, routing table, launch specs, logs.

Held by one process at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pathlib
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import click

from windlass_operator.cluster.local_routes import write_atomically

KEYS_FILE: Final = "keys.json"
ROUTES_FILE: Final = "routes.json"
GATEWAY_LOG: Final = "gateway.log"


def choose_state_dir(files: Iterable[str], environment: Mapping[str, str]) -> pathlib.Path:
    """Choose a folder that is the same whenever the same files are run, below the user's state folder.

    Without a home that can be written to it is a fresh temporary one.
    """
    names = "\n".join(sorted(os.path.realpath(file) for file in files))
    leaf = f"up-{hashlib.sha256(names.encode()).hexdigest()[:12]}"
    base = environment.get("XDG_STATE_HOME") or (
        f"{environment['HOME']}/.local/state" if environment.get("HOME") else ""
    )
    if base and os.path.isabs(base):
        folder = pathlib.Path(base) / "windlass" / leaf
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            return pathlib.Path(tempfile.mkdtemp(prefix="windlass-"))
        if os.access(folder, os.W_OK):
            return folder
    return pathlib.Path(tempfile.mkdtemp(prefix="windlass-"))


@contextmanager
def hold_state_dir(folder: pathlib.Path) -> Iterator[None]:
    """Lock the folder for this process. The lock ends with the process, however it ends."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise click.ClickException(
                f"state folder {folder}: another `windlass up` runs with it; stop that one or pass --state-dir"
            ) from exc
        yield


class SessionKeys:
    """Keys made for this run, for owners that list none. Shown once, and kept in a file that only the user can read."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.path = folder / KEYS_FILE
        self._keys: dict[str, str] = {}
        self._write()

    @property
    def keys(self) -> Mapping[str, str]:
        """Owner -> key."""
        return self._keys

    def cover(self, owners: Iterable[str]) -> tuple[str, ...]:
        """Make keys for owners that have none yet, drop those of owners that need none; return the new owners."""
        wanted = set(owners)
        fresh = tuple(sorted(wanted - self._keys.keys()))
        kept = {owner: key for owner, key in self._keys.items() if owner in wanted}
        after = {**kept, **{owner: f"wl-{secrets.token_urlsafe(32)}" for owner in fresh}}
        if after != self._keys:
            self._keys = after
            self._write()
        return fresh

    def _write(self) -> None:
        write_atomically(self.path, json.dumps(self._keys, indent=2, sort_keys=True) + "\n")
