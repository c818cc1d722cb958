"""The `windlass-runtime` command: serve a model, or generate from the shell.

Exit codes: 0 done, 1 failed, 2 wrong usage. Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from windlass_contract.launch_spec import Device, LaunchSpec, LaunchSpecError, Precision


def run() -> None:
    """Console script."""
    command_line(prog_name="windlass-runtime")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="windlass")
def command_line() -> None:
    """Serve one replica of a model."""


def _launch_options(command: Any) -> Any:
    """Options that are fields of LaunchSpec; left out, the field keeps its default."""
    options = [
        click.option("--device", type=click.Choice([member.value for member in Device], case_sensitive=False)),
        click.option("--precision", type=click.Choice([member.value for member in Precision], case_sensitive=False)),
        click.option("--cache-bytes", type=click.IntRange(min=0), help="Key/value pool; 0 chooses."),
        click.option("--max-sequence-tokens", type=click.IntRange(min=0), help="Prompt plus output; 0: the model's."),
        click.option("--max-running-requests", type=click.IntRange(min=1)),
        click.option("--step-tokens", type=click.IntRange(min=1), help="Token budget of one engine step."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@command_line.command()
@click.argument("model", required=False)
@click.option("--launch-spec", "launch_file", type=click.Path(path_type=Path), help="Read everything from this file.")
@click.option("--served-name", help="The `model` value of requests; default: the last part of MODEL.")
@click.option("--host")
@click.option("--port", type=click.IntRange(0, 65535), help="0 picks a free one.")
@click.option("--max-queued-requests", type=click.IntRange(min=0))
@click.option("--drain-timeout-s", type=click.FloatRange(min=0))
@click.option("--tenant", help="Label of this replica's metrics.")
@_launch_options
@click.option(
    "--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]), show_default=True
)
def serve(model: str | None, launch_file: Path | None, log_level: str, **options: Any) -> None:
    """Serve MODEL (a folder, file:///folder or hf://organisation/name@revision) to OpenAI clients.

    Prints one JSON line per event on stdout: listening (with the url), ready, stopped. Logs go to stderr.
    """
    spec = _read_launch_spec(model, launch_file, options)
    logging.basicConfig(
        level=log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    from windlass_runtime import launch
    from windlass_runtime.serve import process

    with _exit_on_fault(), _progress(f"Loading {spec.model_uri}") as finish_progress:

        def report(event: str, fields: dict[str, object]) -> None:
            if event != "listening":
                finish_progress()
            click.echo(json.dumps({"event": event, **fields}))

        asyncio.run(process.serve(spec, launch.load_model, report))


@command_line.command()
@click.argument("model")
@click.argument("prompt")
@_launch_options
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=int)
@click.option("--stop", multiple=True, help="Stop string; may be repeated.")
@click.option("--chat", is_flag=True, help="Treat PROMPT as a user message and apply the model's chat template.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def generate(model: str, prompt: str, chat: bool, output: str, **options: Any) -> None:
    """Continue PROMPT with MODEL and print the text as it comes; with -o json one object at the end."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    from windlass_runtime import shell

    sampling = {name: options.pop(name) for name in ("max_new_tokens", "temperature", "top_p", "seed", "stop")}
    spec = _build_launch_spec(model, options)
    with _exit_on_fault(), _progress(f"Loading {spec.model_uri}") as finish_progress:
        request = shell.ShellRequest(prompt=prompt, chat=chat, **sampling)
        result = shell.generate(spec, request, on_loaded=finish_progress, show=_show_for(output))
    if output == "json":
        click.echo(json.dumps(dataclasses.asdict(result)))
    else:
        click.echo()


def _show_for(output: str) -> Any:
    if output == "json":
        return lambda _: None
    return lambda text: click.echo(text, nl=False)


def _read_launch_spec(model: str | None, launch_file: Path | None, options: dict[str, Any]) -> LaunchSpec:
    given = {name: value for name, value in options.items() if value is not None}
    if (model is None) == (launch_file is None):
        raise click.UsageError("give either MODEL or --launch-spec FILE")
    if launch_file is None:
        assert model is not None
        return _build_launch_spec(model, given)
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise click.UsageError(f"with --launch-spec the file decides everything; drop {names}")
    try:
        return LaunchSpec.from_json(launch_file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, LaunchSpecError) as exc:
        raise click.UsageError(f"{launch_file}: {exc}") from exc


def _build_launch_spec(model: str, options: dict[str, Any]) -> LaunchSpec:
    given = {name: value for name, value in options.items() if value is not None}
    name = given.pop("served_name", None) or model.rstrip("/").rpartition("/")[2] or model
    if "device" in given:
        given["device"] = Device(given["device"])
    if "precision" in given:
        given["precision"] = Precision(given["precision"])
    return LaunchSpec(model_uri=model, served_name=name, **given)


@contextlib.contextmanager
def _exit_on_fault() -> Iterator[None]:
    """A fault raised on purpose is one line on stderr and exit code 1."""
    from windlass_runtime.errors import RuntimeFault

    try:
        yield
    except (RuntimeFault, OSError) as exc:
        click.echo(f"windlass-runtime: {exc}", err=True)
        sys.stdout.flush()
        # A thread may still be inside native code, which a normal exit would wait for or tear down.
        os._exit(1)


@contextlib.contextmanager
def _progress(title: str) -> Iterator[Any]:
    """A spinner on a terminal, a plain line elsewhere; yields a function that ends it."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        click.echo(title, err=True)
        yield lambda: None
        return
    with console.status(title) as status:
        yield status.stop
