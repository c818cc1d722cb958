"""Skips GPU tests without a GPU, and prints what the parity tests measured, so that a plain run shows the figures."""

from __future__ import annotations

import pytest
import torch

_HEADINGS = ("model against transformers", "device", "max |logit difference|", "allowed", "greedy tokens equal")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())]
    rows = [value for report in reports for key, value in report.user_properties if key == "parity"]
    if not rows:
        return
    table = [_HEADINGS, *rows]
    widths = [max(len(str(row[column])) for row in table) for column in range(len(_HEADINGS))]
    terminalreporter.section("parity")
    for row in table:
        terminalreporter.write_line("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)))
