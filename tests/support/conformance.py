"""Collect what the end-to-end tests showed, one row per sentence and Kubernetes minor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

Row = dict[str, str]
"""Kubernetes minor -> passed, failed or skipped; `*` for tests that need no cluster."""


class Conformance:
    """A pytest plugin: merges results into a JSON file when the session ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, Row] = {}
        self._shown: dict[str, str] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """Note how one phase of one test ended; the worst phase and the worst case count."""
        outcome = yield
        report = outcome.get_result()
        if report.when == "call" or report.outcome != "passed":
            minor = str((getattr(item, "callspec", None) and item.callspec.params.get("minor", "*")) or "*")
            self._note(sentence_id(item), minor, report.outcome)

    def pytest_sessionfinish(self) -> None:
        """Write the file; rows of tests that did not run this time stay."""
        if not self._rows:
            return
        known = json.loads(self._path.read_text()) if self._path.exists() else {}
        for test, row in self._rows.items():
            known.setdefault(test, {}).update(row)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")

    def _note(self, test: str, minor: str, outcome: str) -> None:
        worst = ("failed", "skipped", "passed")
        row = self._rows.setdefault(test, {})
        before = row.get(minor, "passed")
        row[minor] = min(before, outcome, key=worst.index)


def sentence_id(item: pytest.Item) -> str:
    """`file::test` without parameters: the cases of a table are one sentence."""
    return f"{Path(item.fspath).name}::{getattr(item, 'originalname', None) or item.name}"
