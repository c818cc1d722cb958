"""The live table shows words as they are, in any kind of terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from windlass_operator.cli.up_view import Row, render_table


def show(rows: list[Row], *, markup: bool) -> str:
    screen = io.StringIO()
    Console(file=screen, width=200, markup=markup).print(render_table(rows))
    return screen.getvalue()


@pytest.mark.parametrize("markup", [True, False])
def test_the_table_prints_phase_and_message_without_markup(markup: bool) -> None:
    row = Row(object="InferenceService team-a/chat", phase="Ready", ready="1/1", url="", message="exit code 1 [tensor]")

    shown = show([row], markup=markup)

    assert "Ready  1/1" in shown
    assert "exit code 1 [tensor]" in shown
    assert "[green]" not in shown
