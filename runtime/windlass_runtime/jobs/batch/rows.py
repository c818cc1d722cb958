"""The input of a batch: one OpenAI request per line, checked as a whole before anything is computed.

Only where each row lies is kept; its body is read when its turn comes, so memory grows with rows, not with prompts.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from windlass_runtime.errors import BatchInputError

ENDPOINTS: Final = ("/v1/chat/completions", "/v1/completions")
MAX_LINE_BYTES: Final = 16 * 2**20
"""What a replica takes as one body, `serve.app.MAX_BODY_BYTES`."""
MAX_ID_CHARACTERS: Final = 512


@dataclass(frozen=True, slots=True)
class Row:
    """One request of the input."""

    number: int
    """Place in the input, from 0."""
    custom_id: str
    url: str
    """Path below the server, one of ENDPOINTS."""
    body: dict[str, Any]


@dataclass(slots=True)
class BatchInput:
    """A checked input file."""

    path: Path
    ids: list[str] = field(default_factory=list)
    """custom_id of every row, in the order of the file."""
    numbers: dict[str, int] = field(default_factory=dict)
    """Place of every custom_id."""
    digest: str = ""
    """SHA-256 of the file, hex."""
    _offsets: array[int] = field(default_factory=lambda: array("Q"))
    _lengths: array[int] = field(default_factory=lambda: array("L"))

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, number: int) -> Row:
        """Read one row again. Raises BatchInputError when the file has changed since it was checked."""
        with self.path.open("rb") as file:
            data = os.pread(file.fileno(), self._lengths[number], self._offsets[number])
        try:
            value = json.loads(data)
            if value["custom_id"] != self.ids[number]:
                raise ValueError("another custom_id")
            return Row(number, value["custom_id"], value["url"], value["body"])
        except (KeyError, TypeError, ValueError) as exc:
            raise BatchInputError(
                f"{self.path}: expected the file as it was at the start, found another row {self.ids[number]!r}"
            ) from exc

    def add(self, custom_id: str, offset: int, length: int) -> None:
        """Note one more row."""
        self.numbers[custom_id] = len(self.ids)
        self.ids.append(custom_id)
        self._offsets.append(offset)
        self._lengths.append(length)


def read_input(path: Path) -> BatchInput:
    """Check a whole file. Raises BatchInputError that names line and field, OSError for a file that is not there."""
    found, digest, offset = BatchInput(path), hashlib.sha256(), 0
    with path.open("rb") as file:
        for line_number in range(1, 2**63):
            line = file.readline(MAX_LINE_BYTES + 2)
            if not line:
                break
            digest.update(line)
            if line.strip():
                custom_id = _check_line(line, f"{path}:{line_number}")
                if custom_id in found.numbers:
                    raise BatchInputError(
                        f"{path}:{line_number}: custom_id: expected a value used once, "
                        f"found {custom_id!r} again, which is row {found.numbers[custom_id] + 1}"
                    )
                found.add(custom_id, offset, len(line))
            offset += len(line)
    if not found.ids:
        raise BatchInputError(f"{path}: expected one request per line, found none")
    found.digest = digest.hexdigest()
    return found


def _check_line(line: bytes, place: str) -> str:
    """Return the custom_id of a sound line."""
    if len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES:
        raise BatchInputError(f"{place}: expected at most {MAX_LINE_BYTES} bytes, found more")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise BatchInputError(f"{place}: expected one JSON object, found {_describe_fault(exc)}") from exc
    if not isinstance(value, dict):
        raise BatchInputError(f"{place}: expected one JSON object, found {type(value).__name__}")
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_ID_CHARACTERS:
        _refuse(place, "custom_id", f"text of 1 to {MAX_ID_CHARACTERS} characters", custom_id)
    if value.get("method") != "POST":
        _refuse(place, "method", "'POST'", value.get("method"))
    if value.get("url") not in ENDPOINTS:
        _refuse(place, "url", " or ".join(ENDPOINTS), value.get("url"))
    body = value.get("body")
    if not isinstance(body, dict):
        _refuse(place, "body", "an object", body)
    elif body.get("stream"):
        _refuse(place, "body.stream", "no stream, because a batch has nobody to read it", body["stream"])
    return str(custom_id)


def _describe_fault(exc: Exception) -> str:
    if isinstance(exc, json.JSONDecodeError):
        return f"column {exc.colno}: {exc.msg}"
    return "bytes that are no UTF-8" if isinstance(exc, UnicodeDecodeError) else "something else"


def _refuse(place: str, name: str, expected: str, found: object) -> None:
    shown = "nothing" if found is None else repr(found)
    raise BatchInputError(f"{place}: {name}: expected {expected}, found {shown[:80]}")
