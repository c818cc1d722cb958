"""docs/reference/conformance.md speaks of the tests that exist, all of them, and none of them failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.conformance import sentences

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reference" / "conformance.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "e2e").glob("test_*.py")), ids=lambda path: path.stem)
def test_every_end_to_end_test_has_its_line(path: Path) -> None:
    _, _, table = PAGE.partition(f"| `{path.name}` |")
    lines = [line.split("|")[1].strip() for line in table.partition("\n## ")[0].splitlines()[2:] if line]

    assert lines == [name.removeprefix("test_").replace("_", " ") for name in sentences(path)]


def test_the_page_was_written_from_a_run_in_which_nothing_failed() -> None:
    assert "**no**" not in PAGE
