"""What a server's answer means for a row: done, the row's own fault, worth another try, or nobody there. Pure."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

_NOBODY_THERE: Final = frozenset({408, 425, 429, 502, 503, 504})
_NOT_LET_IN: Final = frozenset({401, 403, 407})
LONGEST_WAIT_S: Final = 60.0


class Verdict(enum.Enum):
    """What to do with a row after an answer."""

    SETTLE = enum.auto()
    """Its answer is final, good or bad."""
    TRY_AGAIN = enum.auto()
    """It may be the row's fault or bad luck: a few more attempts tell."""
    WAIT = enum.auto()
    """The server takes no requests now, whatever is in them: no attempt is spent."""
    STOP = enum.auto()
    """Every row would get the same answer, which only a person can change."""


def judge_status(status: int) -> Verdict:
    """Tell by the HTTP status."""
    if status in _NOT_LET_IN:
        return Verdict.STOP
    if status in _NOBODY_THERE:
        return Verdict.WAIT
    return Verdict.TRY_AGAIN if status >= 500 else Verdict.SETTLE


def wait_s(tries: int, retry_after: str | None) -> float:
    """Seconds before the next try: what the server asks for, else 0.5, 1, 2, ... up to LONGEST_WAIT_S."""
    if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
        return min(float(retry_after), LONGEST_WAIT_S)
    return min(0.5 * 2.0 ** min(tries, 10), LONGEST_WAIT_S)


def describe_row(
    custom_id: str, digest: str, status: int, request_id: str, body: Mapping[str, Any] | str
) -> dict[str, Any]:
    """One row of the output or error file, for a request that was answered."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return {"id": _row_id(custom_id, digest), "custom_id": custom_id, "response": response, "error": None}


def describe_unanswered(custom_id: str, digest: str, code: str, message: str) -> dict[str, Any]:
    """One row of the error file, for a request that never got an answer."""
    error = {"code": code, "message": message}
    return {"id": _row_id(custom_id, digest), "custom_id": custom_id, "response": None, "error": error}


def parse_reply(data: bytes) -> Mapping[str, Any] | str:
    """The body of an answer: an object, or the text of what is none."""
    try:
        value = json.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace")[:2048]
    return value if isinstance(value, dict) else json.dumps(value)[:2048]


def _row_id(custom_id: str, digest: str) -> str:
    """Equal for equal rows of equal inputs, so that a batch that runs again names its rows as before."""
    text = f"{digest}\n{custom_id}".encode("utf-8", "surrogatepass")
    return f"batch_req_{hashlib.sha256(text).hexdigest()[:32]}"
