"""One child process from start to end: tied to us, in its own process group, output kept in a bounded log file.

Children follow the start protocol of `windlass-runtime serve` and `windlass-gateway run`: they pick a free port
themselves and print
`{"event": "listening", "url": ...}` on standard output. So no port is ever chosen by one process and taken by another.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Final

_TETHER: Final = pathlib.Path(__file__).with_name("local_tether.py")
_MAX_LOG_BYTES: Final = 8 * 2**20
_MAX_LINE_BYTES: Final = 64 * 2**10
_MAX_WORDS: Final = 500


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """What to start."""

    command: tuple[str, ...]
    """Absolute program path first."""
    env: Mapping[str, str]
    log: pathlib.Path


@dataclasses.dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended."""

    code: int
    """As the shell sees it: negative for a signal."""
    last_words: str
    """Last line on standard error, shortened."""

    @property
    def reason(self) -> str:
        """One word for a status."""
        return "Killed" if self.code < 0 else "Error" if self.code else "Completed"

    def __str__(self) -> str:
        how = f"killed by {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"
        return f"{how}: {self.last_words}" if self.last_words and self.code > 0 else how


class Child:
    """A process to run once. `run` owns it; the other methods may be called at any time."""

    def __init__(self, launch: Launch, on_url: Callable[[str], None] = lambda _: None) -> None:
        self._launch = launch
        self._on_url = on_url
        self._process: asyncio.subprocess.Process | None = None
        self._early_signal: signal.Signals | None = None
        self._last_error = ""
        self._url = ""

    @property
    def pid(self) -> int:
        """Process id; 0 before the start."""
        return self._process.pid if self._process is not None else 0

    async def run(self) -> Exit:
        """Start, follow and reap the process. Cancelled: it is killed first. Raises OSError when it cannot start."""
        command = (sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), *self._launch.command)
        self._process = process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(self._launch.env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        log = _BoundedLog(self._launch.log)
        try:
            if self._early_signal is not None:
                self.signal(self._early_signal)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(_pump(process.stdout, log, self._note_output))
                pumps.create_task(_pump(process.stderr, log, self._note_error))
                code = await process.wait()
        finally:
            self.signal(signal.SIGKILL)
            await process.wait()
            log.close()
        return Exit(code, self._last_error)

    def signal(self, signum: signal.Signals) -> None:
        """Signal the whole process group: at once, or as soon as it exists; nothing happens when it is gone."""
        if self._process is None:
            self._early_signal = signum
        elif self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signum)

    def _note_output(self, line: str) -> None:
        if not self._url:
            self._url = parse_listening(line)
            if self._url:
                self._on_url(self._url)

    def _note_error(self, line: str) -> None:
        if line.strip():
            self._last_error = parse_error_words(line.strip())[:_MAX_WORDS]


def parse_listening(line: str) -> str:
    """Return the URL of a listening event, empty for every other line."""
    if not line.startswith("{"):
        return ""
    try:
        event = json.loads(line)
    except ValueError:
        return ""
    if not isinstance(event, dict) or event.get("event") != "listening":
        return ""
    return str(event.get("url", ""))


def parse_error_words(line: str) -> str:
    """Return what a line on standard error says; JSON log lines say it in `message`."""
    if line.startswith("{"):
        try:
            event = json.loads(line)
        except ValueError:
            return line
        if isinstance(event, dict):
            return str(event.get("message") or event.get("error") or line)
    return line.removeprefix("Error: ")


async def _pump(stream: asyncio.StreamReader, log: _BoundedLog, note: Callable[[str], None]) -> None:
    """Copy to the log and hand over whole lines.

    A line beyond the limit is cut, so that no child can fill our memory.
    """
    rest = b""
    while piece := await stream.read(_MAX_LINE_BYTES):
        log.write(piece)
        *lines, rest = (rest + piece).split(b"\n")
        rest = rest[-_MAX_LINE_BYTES:]
        for line in lines:
            note(line.decode(errors="replace"))
    note(rest.decode(errors="replace"))


class _BoundedLog:
    """Two files at most: the current one and the one before it."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._size = self._file.tell()

    def write(self, piece: bytes) -> None:
        if self._size + len(piece) > _MAX_LOG_BYTES:
            self._file.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file, self._size = self._path.open("ab", buffering=0), 0
        self._file.write(piece)
        self._size += len(piece)

    def close(self) -> None:
        self._file.close()
