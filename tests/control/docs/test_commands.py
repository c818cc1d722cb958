"""Commands in the documents name sub-commands, flags, targets, files and chart values that exist."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from support.documents import ROOT, Command, commands, pages
from windlass_gateway.main import cli as gateway
from windlass_operator.main import load_command, windlass
from windlass_runtime.main import command_line as runtime

PROGRAMS: dict[str, click.Command] = {"windlass": windlass, "windlass-runtime": runtime, "windlass-gateway": gateway}
FOLDERS = ("helm/", "crds", "examples/", "docs/", "tests/", "benchmarks/", "operator/", "runtime/")
COMMANDS = [command for page in pages() for command in commands(page)]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_names_what_exists(command: Command) -> None:
    assert list(problems_of(command.text)) == []


def problems_of(text: str) -> Iterator[str]:
    """What is wrong with a command line, pipe by pipe."""
    for words in simple_commands(text):
        yield from problems_of_words(words)


def problems_of_words(words: list[str]) -> Iterator[str]:
    """What is wrong with one program call."""
    program, *arguments = words
    if program in PROGRAMS:
        yield from problems_of_click(PROGRAMS[program], arguments)
    elif program == "make":
        yield from (f"no target {word}" for word in arguments if "=" not in word and word not in targets())
    elif program == "helm":
        yield from problems_of_values(arguments)
    for word in arguments:
        path = word.partition("=")[2] if word.startswith("--") else word
        if path.startswith(FOLDERS) and not (ROOT / path).exists():
            yield f"no file {path}"


def simple_commands(text: str) -> Iterator[list[str]]:
    """Program calls of a line; variables set in front of them, comments and redirections are dropped."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;()<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word and set(word) <= set("|&;()"):
            if words:
                yield words
            words = []
        elif words or not re.fullmatch(r"\w+=.*", word):
            words.append(word)


def problems_of_click(command: click.Command, arguments: list[str]) -> Iterator[str]:
    """Unknown sub-commands and flags."""
    context = click.Context(command, help_option_names=["-h", "--help"])
    words = iter(arguments)
    for word in words:
        if word.startswith("-") and word != "-":
            flag = word.partition("=")[0]
            options = [item for item in command.get_params(context) if flag in (*item.opts, *item.secondary_opts)]
            if not options:
                yield f"{command.name} has no {flag}"
            elif isinstance(options[0], click.Option) and not options[0].is_flag and "=" not in word:
                next(words, None)
        elif isinstance(command, click.Group):
            found = load_command(word) if command is windlass and word in windlass.list_commands(context) else None
            found = found or (None if command is windlass else command.get_command(context, word))
            if found is None:
                yield f"{command.name} has no sub-command {word}"
                return
            yield from problems_of_click(found, list(words))


def problems_of_values(arguments: list[str]) -> Iterator[str]:
    """Chart values of --set that the chart does not have."""
    charts = [word for word in arguments if word.startswith("helm/")]
    for flag, value in itertools.pairwise(arguments):
        if flag in ("--set", "--set-string", "--set-json") and charts:
            yield from (
                f"{charts[0]} has no value {name}"
                for name in re.findall(r"(?:^|,)([A-Za-z][\w.]*)=", re.sub(r"\{.*?\}", "", value))
                if not has_value(charts[0], name)
            )


def has_value(chart: str, name: str) -> bool:
    """Whether the chart's values have a key of that path."""
    values: Any = yaml.safe_load((ROOT / chart / "values.yaml").read_text())
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            return not isinstance(values, dict) or not values
        values = values[part]
    return True


@cache
def targets() -> frozenset[str]:
    """Targets of the Makefile."""
    return frozenset(re.findall(r"^([a-z0-9-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        pytest.param("windlass validate examples/quickstart", [], id="sound"),
        pytest.param("windlass check chat.yaml", ["windlass has no sub-command check"], id="sub-command"),
        pytest.param("windlass operator run --metrics-port 1", ["run has no --metrics-port"], id="flag"),
        pytest.param("windlass render examples/fleet | kubectl apply --server-side -f -", [], id="pipe"),
        pytest.param("windlass validate examples/nowhere", ["no file examples/nowhere"], id="file"),
        pytest.param("make everything   # at once", ["no target everything"], id="target"),
        pytest.param("IMAGES=registry.example/x make images && make test", [], id="variables"),
        pytest.param("helm install w helm/windlass --set replicas=3,image.tag=x", [], id="values"),
        pytest.param(
            "helm install w helm/windlass --set replica=3", ["helm/windlass has no value replica"], id="value"
        ),
        pytest.param("windlass-runtime serve m --ports 1", ["serve has no --ports"], id="runtime"),
    ],
)
def test_what_is_wrong_with_a_command_is_found(text: str, problems: list[str]) -> None:
    assert list(problems_of(text)) == problems


def test_the_documents_have_commands_to_check() -> None:
    named = {Path(command.page).name for command in COMMANDS}

    assert {"README.md", "install.md", "upgrade.md", "troubleshooting.md"} <= named
