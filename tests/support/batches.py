"""Batch files and the results they must come to."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def build_row(custom_id: str, **changes: Any) -> dict[str, Any]:
    """One sound request."""
    body = {"model": "simulated", "prompt": f"this is {custom_id}", "max_tokens": 4}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body, **changes}


def write_batch(path: Path, rows: Iterable[dict[str, Any]] | int) -> Path:
    """Write a batch file; a number stands for so many sound rows, `row-0` and so on."""
    wanted = [build_row(f"row-{number}") for number in range(rows)] if isinstance(rows, int) else rows
    path.write_text("".join(json.dumps(row) + "\n" for row in wanted))
    return path


def read_rows(results: Path, name: str = "output") -> list[dict[str, Any]]:
    """Rows of a finished batch's output or error file."""
    return [json.loads(line) for line in (results / "completed" / f"{name}.jsonl").read_text().splitlines()]


def ids_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """custom_id of every row."""
    return [row["custom_id"] for row in rows]
