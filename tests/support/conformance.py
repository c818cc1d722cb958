"""Collect what the end-to-end tests showed, one row per sentence and Kubernetes minor."""

from __future__ import annotations

import ast
import fcntl
import json
import sys
from pathlib import Path
from typing import Any

import pytest

PROPERTY = "conformance"
_WORST_FIRST = ("failed", "skipped", "passed")
Row = dict[str, str]
"""Kubernetes minor -> passed, failed or skipped; `*` for tests that need no cluster."""


class Conformance:
    """A pytest plugin: merges results into a JSON file when the session ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, Row] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """Give the report what the page needs."""
        outcome = yield
        minor = item.callspec.params.get("minor", "*") if hasattr(item, "callspec") else "*"
        outcome.get_result().user_properties.append((PROPERTY, [sentence_id(item), str(minor)]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how one phase of one test ended; the worst phase and the worst case of a table count."""
        told = dict(report.user_properties).get(PROPERTY)
        if told is not None and (report.when == "call" or report.outcome != "passed"):
            test, minor = told
            row = self._rows.setdefault(test, {})
            row[minor] = min(row.get(minor, "passed"), report.outcome, key=_WORST_FIRST.index)

    def pytest_sessionfinish(self) -> None:
        """Write the file; rows of tests that did not run this time stay."""
        if not self._rows:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the runs of two minors end at about the same time
            file.seek(0)
            known = json.loads(file.read() or "{}")
            for test, row in self._rows.items():
                known.setdefault(test, {}).update(row)
            file.truncate(0)
            file.write(json.dumps(known, indent=1, sort_keys=True) + "\n")


def sentence_id(item: pytest.Item) -> str:
    """`file::test` without parameters: the cases of a table are one sentence."""
    return f"{Path(item.fspath).name}::{getattr(item, 'originalname', None) or item.name}"


def render(results: dict[str, Row], folder: Path) -> str:
    """The page: one table per test file, one line per sentence, in the order of the source."""
    minors = sorted({minor for row in results.values() for minor in row} - {"*"}, key=_version, reverse=True)
    lines = [
        "# Conformance",
        "",
        "What the end-to-end tests show on real Kubernetes binaries, one line per test. Written by `make conformance`",
        "from the results of `make e2e`; do not edit. `-`: skipped there, for a reason that the test run prints.",
        "`not run`: not part of the run that this page was written from.",
        "",
    ]
    for path in sorted(folder.glob("test_*.py")):
        lines += _render_file(path, results, minors)
    return "\n".join(lines).rstrip() + "\n"


def sentences(path: Path) -> tuple[str, ...]:
    """Names of the tests of a file, in order."""
    tree = ast.parse(path.read_text())
    return tuple(
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


def _render_file(path: Path, results: dict[str, Row], minors: list[str]) -> list[str]:
    title = (ast.get_docstring(ast.parse(path.read_text())) or path.stem).partition("\n")[0].rstrip(".")
    head = "".join(f" {minor} |" for minor in minors)
    lines = [f"## {title}", "", f"| `{path.name}` |{head}", f"|---|{'---|' * len(minors)}"]
    for name in sentences(path):
        row = results.get(f"{path.name}::{name}", {})
        cells = "".join(f" {_MARKS[row.get(minor, row.get('*', ''))]} |" for minor in minors)
        lines.append(f"| {name.removeprefix('test_').replace('_', ' ')} |{cells}")
    return [*lines, ""]


_MARKS = {"passed": "yes", "failed": "**no**", "skipped": "-", "": "not run"}


def _version(minor: str) -> tuple[int, ...]:
    return tuple(int(part) for part in minor.split(".") if part.isdecimal())


def main(arguments: list[str]) -> None:
    """Write the page from a file of results."""
    results, page = Path(arguments[0]), Path(arguments[1])
    page.write_text(render(json.loads(results.read_text()), Path(__file__).resolve().parents[1] / "e2e"))


if __name__ == "__main__":
    main(sys.argv[1:])
