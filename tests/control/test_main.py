"""The `windlass` command: its table of sub-commands and the exit codes scripts rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest

from windlass_operator import main
from windlass_operator.errors import ApplyRejected, ClusterUnavailable, InvalidInput, Problem, SettingsError

RUN = "import sys; from windlass_operator.main import run; sys.exit(run(sys.argv[1:]))"
"""The installed script, whatever the folder of scripts is called."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A sub-command `work` whose module the test fills in."""
    module = types.ModuleType("windlass_test_work")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(main, "COMMANDS", {"work": ("windlass_test_work:work", "Does what the test says.")})
    return module


@pytest.fixture
def sigterm() -> Iterator[None]:
    """The handler of SIGTERM as it was, afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm")
def test_a_process_that_is_told_to_end_while_it_imports_ends(command: types.ModuleType) -> None:
    command.__getattr__ = lambda _: os.kill(os.getpid(), signal.SIGTERM)  # type: ignore[method-assign]

    with pytest.raises(SystemExit) as ended:
        main.run(["work"])

    assert ended.value.code == main.EXIT_TERMINATED


def raising(error: BaseException) -> click.Command:
    def work() -> NoReturn:
        raise error

    return click.command("work")(work)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        pytest.param(ClusterUnavailable("no route to host"), 1, "Error: no route to host\n", id="cluster"),
        pytest.param(ApplyRejected("quota exceeded"), 1, "Error: quota exceeded\n", id="refusal"),
        pytest.param(SettingsError("PORT: expected a number"), 1, "Error: PORT: expected a number\n", id="settings"),
        pytest.param(
            InvalidInput((Problem("spec.a", "1", "2", "f.yaml", 3), Problem("spec.b", "3", "4"))),
            1,
            "f.yaml:3: spec.a: expected 2, found 1\nspec.b: expected 4, found 3\n",
            id="input, every problem on its line",
        ),
        pytest.param(click.UsageError("no such option"), 2, "Error: no such option\n", id="usage"),
        pytest.param(KeyboardInterrupt(), 130, "", id="interrupt"),
        pytest.param(click.Abort(), 130, "", id="abort"),
    ],
)
def test_an_error_becomes_words_and_an_exit_code(
    command: Any, error: BaseException, code: int, words: str, capsys: Any
) -> None:
    command.work = raising(error)

    assert main.run(["work"]) == code
    assert capsys.readouterr().err.endswith(words)


def test_our_own_bugs_are_not_dressed_up_as_messages(command: Any) -> None:
    command.work = raising(ZeroDivisionError("a bug"))

    with pytest.raises(ZeroDivisionError):
        main.run(["work"])


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_the_result_of_a_command_is_its_exit_code(command: Any, result: int | None, code: int) -> None:
    command.work = click.command("work")(lambda: result)

    assert main.run(["work"]) == code


def test_help_lists_every_command_without_importing_any(capsys: Any) -> None:
    assert main.run(["--help"]) == 0

    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in main.COMMANDS)


def test_the_table_names_the_commands_of_the_product() -> None:
    assert set(main.COMMANDS) >= {"validate", "generate", "render", "explain", "up", "operator"}


def test_a_missing_module_breaks_its_own_command_only(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    table = {**main.COMMANDS, "lost": ("windlass_operator.cli.nowhere:lost", "Is not there.")}
    monkeypatch.setattr(main, "COMMANDS", table)

    assert main.run(["lost"]) == 1
    assert "module windlass_operator.cli.nowhere is missing" in capsys.readouterr().err
    assert main.run(["validate", str(tmp_path / "absent.yaml")]) == 1
    assert "expected a readable file or folder" in capsys.readouterr().out


def test_an_unknown_command_is_wrong_usage(capsys: Any) -> None:
    assert main.run(["validat"]) == 2
    assert "No such command 'validat'" in capsys.readouterr().err


def test_the_version_is_that_of_the_distribution(capsys: Any) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"windlass, version {metadata.version('windlass')}\n"


@pytest.mark.parametrize("module", ["kopf", "kubernetes", "aiohttp"])
def test_validate_needs_no_cluster_libraries(module: str, tmp_path: Path) -> None:
    blocked = f"import sys; sys.modules[{module!r}] = None; {RUN}"

    done = subprocess.run(
        [sys.executable, "-c", blocked, "validate", str(tmp_path / "a.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert "no such file" in done.stdout


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "windlass_operator", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("windlass, version ")


def test_a_reader_that_leaves_early_is_no_crash(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("".join(f"---\nx{index}: 1\n" for index in range(3000)))

    process = subprocess.Popen(
        [sys.executable, "-c", RUN, "validate", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()

    assert process.wait(timeout=60) == 1
    assert b"Traceback" not in errors
    assert b"Exception ignored" not in errors
