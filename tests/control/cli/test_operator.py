from __future__ import annotations

import pytest

from windlass_operator import main


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        pytest.param(["--kubeconfig", "/no/such/file"], 1, "expected a file, found none", id="no kubeconfig"),
        pytest.param(
            ["--probe-port", "70000"],
            1,
            "WINDLASS_PROBE_PORT: expected a whole number from 0 to 65535",
            id="a bad value",
        ),
        pytest.param(["--no-such-flag"], 2, "No such option", id="wrong usage"),
    ],
)
def test_a_start_that_cannot_work_says_why_in_one_line_without_a_traceback(arguments, code, words, capsys, monkeypatch):
    monkeypatch.delenv("KUBECONFIG", raising=False)

    assert main.run(["operator", "run", *arguments]) == code

    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
