"""How commands print: text for people, JSON for machines, colour only on a terminal that wants it."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO, TypeVar

import click

from windlass_operator.errors import Problem

_Command = TypeVar("_Command", bound=Callable[..., Any])


def output_option(*forms: str) -> Callable[[_Command], _Command]:
    """`-o FORM`; the first form is the default."""
    return click.option(
        "-o",
        "--output",
        "output",
        type=click.Choice(forms),
        default=forms[0],
        show_default=True,
        help="Form of the output.",
    )


def cluster_options(namespace_help: str) -> Callable[[_Command], _Command]:
    """`--kubeconfig`, `--context`, `-n` and `--operator-namespace`: which cluster to look at, and where in it."""
    options = (
        click.option(
            "--kubeconfig",
            metavar="FILE",
            default="",
            help="Kubeconfig; default: the pod's service account, else KUBECONFIG or ~/.kube/config.",
        ),
        click.option("--context", metavar="NAME", default="", help="Of the kubeconfig; default: its current one."),
        click.option("--namespace", "-n", metavar="NAME", default="default", show_default=True, help=namespace_help),
        click.option(
            "--operator-namespace",
            metavar="NAME",
            default="windlass-system",
            show_default=True,
            help="Where the operator runs, whose settings count.",
        ),
    )

    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def print_json(value: Any) -> None:
    """Print one JSON value, readable and with a stable order."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def problem_record(problem: Problem) -> dict[str, Any]:
    """The JSON form of a problem."""
    return dataclasses.asdict(problem)


def print_problems(problems: Iterable[Problem], severity: str, stream: TextIO | None = None) -> None:
    """Print one line per problem, the place first, so that editors and terminals can jump there."""
    out = stream or sys.stdout
    style = _STYLES[severity] if wants_colour(out) else str
    for problem in problems:
        where = (
            f"{problem.source}:{problem.line}: " if problem.line else f"{problem.source}: " if problem.source else ""
        )
        rest = str(dataclasses.replace(problem, source="", line=0))
        click.echo(f"{where}{style(severity)}: {rest}", file=out, color=True)


def wants_colour(stream: TextIO) -> bool:
    """Whether to colour: a terminal, and nobody asked not to (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


_STYLES: dict[str, Callable[[str], str]] = {
    "error": lambda word: click.style(word, fg="red", bold=True),
    "warning": lambda word: click.style(word, fg="yellow", bold=True),
}
