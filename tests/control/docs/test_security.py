"""docs/security.md claims nothing without a test that shows it."""

from __future__ import annotations

import ast
import re

import pytest

from support.documents import ROOT, section, table_rows

PAGE = (ROOT / "docs" / "security.md").read_text()
EVIDENCE = sorted(set(re.findall(r"`(tests/[\w/.]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("file", "test"), EVIDENCE, ids=[f"{file}::{test}" for file, test in EVIDENCE])
def test_a_test_that_the_page_names_exists(file: str, test: str) -> None:
    assert (ROOT / file).is_file()
    tree = ast.parse((ROOT / file).read_text())

    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert test in names


def test_every_threat_names_its_evidence_or_says_that_there_is_none() -> None:
    rows = table_rows(section(PAGE, "Threats"))

    bare = [row[0] for row in rows if "`tests/" not in row[-1] and not row[-1].startswith("not tested")]
    assert len(rows) >= 15
    assert bare == []
