"""Read typed values from a JSON object of unknown origin; every complaint names file, key, expectation and finding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from windlass_runtime.errors import CheckpointError

_LARGEST_FILE: Final = 64 * 2**20
"""Bytes; a checkpoint's JSON files are kilobytes, an index of a huge model a few megabytes."""


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level is an object. Raises CheckpointError."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise CheckpointError(
                f"{path}: expected at most {_LARGEST_FILE} bytes of JSON, found {path.stat().st_size}"
            )
        value = json.loads(path.read_bytes())
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path}: expected a file, found none") from exc
    except OSError as exc:
        raise CheckpointError(f"{path}: cannot be read: {exc.strerror}") from exc
    except json.JSONDecodeError as exc:
        raise CheckpointError(f"{path}: expected JSON, found an error at line {exc.lineno}: {exc.msg}") from exc
    except (UnicodeDecodeError, RecursionError) as exc:
        raise CheckpointError(f"{path}: expected JSON text, found {type(exc).__name__}") from exc
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {_describe(value)}")
    return value


class Fields:
    """A JSON object with typed access. A JSON null counts as a missing key, as the ecosystem's writers mean it."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self.where = where

    def has(self, key: str) -> bool:
        """Whether the key is written at all, be it with null."""
        return key in self._values

    def raw(self, key: str) -> Any:
        """The value as JSON gave it; None when missing."""
        return self._values.get(key)

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number in low..high; without a default the key is required."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(key, f"a whole number from {low} to {high}", value)
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in low..high; without a default the key is required."""
        value: Any = self._values.get(key)
        if value is None and default is not None:
            return default
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.wrong(key, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self._values.get(key)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.wrong(key, "true or false", value)
        return value

    def text(self, key: str, default: str) -> str:
        value = self._values.get(key)
        if value is None:
            return default
        if type(value) is not str:
            raise self.wrong(key, "a string", value)
        return value

    def nested(self, key: str) -> Fields | None:
        """A nested object, or None when missing."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "an object", value)
        return Fields(value, f"{self.where}: {key}")

    def wrong(self, key: str, expected: str, found: Any) -> CheckpointError:
        """The error for a bad value, for the caller to raise."""
        return CheckpointError(f"{self.where}: {key}: expected {expected}, found {_describe(found)}")


def _describe(value: Any) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
