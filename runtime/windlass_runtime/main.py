"""The `windlass-runtime` command: serve or simulate a model, generate, answer batches, calibrate, build engines.

Exit codes: 0 done, 1 failed, 2 wrong usage. Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from windlass_contract.launch_spec import CacheReuse, Device, LaunchSpec, LaunchSpecError, Precision, SparseActivation
from windlass_runtime.exits import exit_on_fault
from windlass_runtime.jobs.batch.options import batch_options
from windlass_runtime.jobs.engine_commands import build_engine, engine
from windlass_runtime.jobs.gate_commands import train_gate


def run() -> None:
    """Console script. A SIGTERM that comes while torch is imported must end it too, as first process of a container."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    command_line(prog_name="windlass-runtime")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="windlass")
def command_line() -> None:
    """Serve one replica of a model."""


def _launch_options(command: Any) -> Any:
    """Options that are fields of LaunchSpec; left out, the field keeps its default."""
    options = [
        click.option("--device", type=click.Choice([member.value for member in Device], case_sensitive=False)),
        click.option("--device-count", type=click.IntRange(min=1), help="Devices that share the layers; default: 1."),
        click.option("--precision", type=click.Choice([member.value for member in Precision], case_sensitive=False)),
        click.option(
            "--recipe",
            help="Folder of the recipe for --precision INT8 or INT4; default: recipes/int8 or int4 in the model.",
        ),
        click.option(
            "--sparse-activation",
            type=click.Choice([member.value for member in SparseActivation], case_sensitive=False),
            help="How much of the feed-forward layers generated tokens may leave out.",
        ),
        click.option("--gate", help="Folder of the gate for it; default: gates/ in the model."),
        click.option("--cache-bytes", type=click.IntRange(min=0), help="Key/value pool; 0 chooses."),
        click.option("--cache-bits", type=click.Choice(["4", "8"]), help="Per key and value; default: floats."),
        click.option(
            "--cache-reuse", type=click.Choice(["Prefix"], case_sensitive=False), help="Share beginnings of prompts."
        ),
        click.option("--max-sequence-tokens", type=click.IntRange(min=0), help="Prompt plus output; 0: the model's."),
        click.option("--max-running-requests", type=click.IntRange(min=1)),
        click.option("--step-tokens", type=click.IntRange(min=1), help="Token budget of one engine step."),
    ]
    return _add(options, command)


def _server_options(command: Any) -> Any:
    """Options of whatever listens; fields of LaunchSpec too."""
    options = [
        click.option("--host"),
        click.option("--port", type=click.IntRange(0, 65535), help="0 picks a free one."),
        click.option("--max-queued-requests", type=click.IntRange(min=0)),
        click.option("--drain-timeout-s", type=click.FloatRange(min=0)),
        click.option("--tenant", help="Whose requests these are, unless a gateway proves another."),
        click.option("--tenant-key-file", help="Key shared with gateways that say whose a request is."),
        click.option("--tenant-weights", help="Shares of tenants, as team-a=3,team-b=0.5; default 1."),
    ]
    return _add(options, command)


_FORMAT: Final = click.Choice(["INT8", "INT4", "stored"], case_sensitive=False)
_PROFILE_OPTIONS: Final[Mapping[str, tuple[type, str]]] = {
    "load_s": (float, "Seconds until ready."),
    "prefill_tokens_per_s": (float, "Prompt tokens computed per second."),
    "step_s": (float, "Seconds of a step, whatever is in it."),
    "per_sequence_s": (float, "Seconds that each decoding sequence adds to a step."),
    "kv_pages": (int, "Pages of the key/value pool."),
    "page_tokens": (int, "Positions per page."),
    "answer": (str, "words or clock: what is said."),
    "answer_tokens": (int, "Length at which an answer ends by itself."),
    "answer_spread": (float, "Share by which that length varies."),
    "jitter": (float, "Share by which the time of a step varies."),
    "failure_share": (float, "Share of sequences that fail at their first token."),
    "crash_after_requests": (int, "Die when this many sequences have begun."),
    "crash_after_s": (float, "Die this many seconds after ready."),
    "seed": (int, "Seed of lengths, failures and jitter."),
}
"""Fields of a profile that have an option; left out, the profile's value counts. Ranges are checked by the profile."""


def _profile_options(command: Any) -> Any:
    options = [
        click.option("--" + name.replace("_", "-"), type=kind, help=text)
        for name, (kind, text) in _PROFILE_OPTIONS.items()
    ]
    return _add(options, command)


def _log_level_option(command: Any) -> Any:
    levels = click.Choice(["debug", "info", "warning", "error"])
    return click.option("--log-level", default="info", type=levels, show_default=True)(command)


def _add(options: Sequence[Callable[[Any], Any]], command: Any) -> Any:
    for option in reversed(options):
        command = option(command)
    return command


@command_line.command()
@click.argument("model", required=False)
@click.option("--launch-spec", "launch_file", type=click.Path(path_type=Path), help="Read everything from this file.")
@click.option("--served-name", help="The `model` value of requests; default: the last part of MODEL.")
@click.option("--engine-store", help="Folder of TensorRT plans; serves with torch until a plan is found or built.")
@_server_options
@_launch_options
@_log_level_option
def serve(model: str | None, launch_file: Path | None, log_level: str, **options: Any) -> None:
    """Serve MODEL (a folder, file:///folder or hf://organisation/name@revision) to OpenAI clients.

    Prints one JSON line per event on stdout: listening (with the url), ready, stopped. Logs go to stderr.
    """
    spec = _read_launch_spec(model, launch_file, options)
    _log_to_stderr(log_level)
    from windlass_runtime.serve import process

    with exit_on_fault(), _progress(f"Loading {spec.model_uri}") as finish_progress:

        def report(event: str, fields: dict[str, object]) -> None:
            if event != "listening":
                finish_progress()
            _print_event(event, fields)

        asyncio.run(process.serve(spec, _find_loader(spec), report))


@command_line.command()
@click.option(
    "--profile", default="instant", show_default=True, help="h200-8b, l4-8b, instant, or a YAML or JSON file."
)
@click.option("--show-profile", is_flag=True, help="Print the figures as JSON and exit.")
@click.option("--launch-spec", "launch_file", type=click.Path(path_type=Path), help="As for serve; no model is loaded.")
@click.option("--served-name", help="The `model` value of requests; default: simulated.")
@_server_options
@click.option("--max-sequence-tokens", type=click.IntRange(min=0), help="Prompt plus output; 0: the profile's.")
@click.option("--max-running-requests", type=click.IntRange(min=1))
@click.option("--step-tokens", type=click.IntRange(min=1), help="Token budget of one engine step.")
@_profile_options
@_log_level_option
def simulate(profile: str, show_profile: bool, launch_file: Path | None, log_level: str, **options: Any) -> None:
    """Serve answers without a model: the real server, scheduler and metrics, and a clock instead of an accelerator.

    Prints the same events as serve. docs/howto/simulate.md explains the figures.
    """
    from windlass_runtime.simulate import profile as profiles

    changes = {name: value for name in _PROFILE_OPTIONS if (value := options.pop(name)) is not None}
    if not launch_file:
        options["served_name"] = options["served_name"] or "simulated"
    spec = _read_launch_spec(None if launch_file else "simulated", launch_file, options)
    try:
        chosen = profiles.build_profile(profiles.find_profile(profile), changes, "options")
    except profiles.ProfileError as exc:
        raise click.UsageError(str(exc)) from exc
    if show_profile:
        click.echo(chosen.to_json(), nl=False)
        return
    _log_to_stderr(log_level)
    from windlass_runtime.serve import process
    from windlass_runtime.simulate.load import build_loader

    with exit_on_fault():
        asyncio.run(process.serve(spec, build_loader(chosen), _print_event))


def _find_loader(spec: LaunchSpec) -> Callable[[LaunchSpec], Any]:
    if spec.engine_store:
        from windlass_runtime.jobs import engine_upgrade

        return engine_upgrade.load_model
    from windlass_runtime import launch

    return launch.load_model


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")


def _print_event(event: str, fields: dict[str, object]) -> None:
    click.echo(json.dumps({"event": event, **fields}))


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
    with exit_on_fault(), _progress(f"Loading {spec.model_uri}") as finish_progress:
        request = shell.ShellRequest(prompt=prompt, chat=chat, **sampling)
        result = shell.generate(spec, request, on_loaded=finish_progress, show=_show_for(output))
    if output == "json":
        click.echo(json.dumps(dataclasses.asdict(result)))
    else:
        click.echo()


_QUALITY_OPTIONS: Final[Mapping[str, str]] = {
    "perplexity_loss": "Largest relative growth of the perplexity, such as 0.005.",
    "divergence": "Largest mean divergence from FP32, nats per token.",
    "top1_agreement": "Smallest share of positions with the same most likely token.",
    "probe_loss": "Largest loss of accuracy in any probe.",
}
"""Thresholds of the quality gate that have an option; left out, the preset's value counts."""


def _calibration_options(command: Any) -> Any:
    options = [
        click.option("--data", required=True, type=click.Path(path_type=Path), help="UTF-8 text to calibrate with."),
        click.option("--recipe", required=True, type=click.Path(path_type=Path), help="Folder to write."),
        click.option(
            "--heldout", type=click.Path(path_type=Path), help="Text to measure with; default: the end of --data."
        ),
        click.option("--precision", type=click.Choice(["INT8", "INT4"], case_sensitive=False), default="INT8"),
        click.option("--attention", type=_FORMAT, help="In the place of the preset's format, as are the next three."),
        click.option("--feed-forward", type=_FORMAT),
        click.option("--embedding", type=_FORMAT),
        click.option("--head", type=_FORMAT),
        click.option(
            "--group", type=click.Choice(["32", "64", "128"]), default="32", help="Columns per scale in INT4."
        ),
        click.option(
            "--inputs", type=click.Choice(["dynamic", "static"]), default="dynamic", help="Scales of INT8 inputs."
        ),
        click.option("--keep", multiple=True, help="A tensor left as it is; may be repeated."),
        click.option("--sequences", type=click.IntRange(min=1), default=64),
        click.option("--heldout-sequences", type=click.IntRange(min=1), default=32),
        click.option("--sequence-tokens", type=click.IntRange(min=16), default=512),
        click.option("--seed", type=int, default=0),
        click.option("--restart", is_flag=True, help="Forget what an earlier run left behind."),
        *(
            click.option("--gate-" + name.replace("_", "-"), name, type=click.FloatRange(min=0), help=text)
            for name, text in _QUALITY_OPTIONS.items()
        ),
        click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text"),
    ]
    return _add(options, command)


@command_line.command(context_settings={"show_default": True})
@click.argument("model")
@_calibration_options
def calibrate(
    model: str, data: Path, recipe: Path, heldout: Path | None, restart: bool, output: str, **options: Any
) -> None:
    """Write a recipe that keeps MODEL's weights in 8 and 4 bits, and measure what it costs.

    Streams layer by layer; killed, it goes on where it stopped. Exit code 1 if the recipe misses its quality gate.
    """
    from windlass_runtime.jobs import calibrate_command

    with exit_on_fault():
        calibrate_command.run(model, data, heldout, recipe, options, restart=restart, as_json=output == "json")


@command_line.command()
@click.argument("recipes", nargs=-1, type=click.Path(path_type=Path))
@click.option("--gate", "gates", multiple=True, type=click.Path(path_type=Path), help="A gate; may be repeated.")
@click.option("--target", required=True, type=click.Path(path_type=Path), help="Folder for the charts.")
@click.option("--model", help="Also measure tokens per second of MODEL with each recipe, on this machine's CPU.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Time for each speed.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def report(
    recipes: tuple[Path, ...], gates: tuple[Path, ...], target: Path, model: str | None, seconds: float, output: str
) -> None:
    """Draw what RECIPES and gates gain and cost: error by layer, size, speed and density against quality."""
    from windlass_runtime.checkpoint.source import resolve_model
    from windlass_runtime.jobs import report as reports

    if not recipes and not gates:
        raise click.UsageError("give one or more RECIPES, or --gate")
    with exit_on_fault():
        subjects, densities = reports.read_subjects(recipes), reports.read_gates(gates)
        speeds = reports.measure_speeds(resolve_model(model), recipes, seconds) if model and recipes else {}
        figures = reports.write_report(subjects, speeds, target, densities)
    click.echo(json.dumps(figures) if output == "json" else reports.render_table(figures))


@command_line.command(context_settings={"show_default": True})
@click.argument("model", required=False)
@batch_options
@_launch_options
def batch(model: str | None, launch_file: Path | None, output: str, **options: Any) -> None:
    """Answer the requests of an OpenAI batch file with MODEL: a folder, an address of a model, or a server's URL.

    Killed, it goes on where it stopped, and each row is in the results exactly once. Several workers with --shards may
    work on one results folder. Exit code 2 if the input or the folder is at fault, 1 if running it again helps.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    from windlass_runtime import launch
    from windlass_runtime.errors import BatchInputError
    from windlass_runtime.jobs.batch import command

    server = _batch_server(model, launch_file, options)
    load = launch.load_model if isinstance(server, str) else _find_loader(server)
    with exit_on_fault():
        try:
            command.run(command.build_job(options, server), load, as_json=output == "json")
        except BatchInputError as exc:
            raise click.UsageError(str(exc)) from exc


def _batch_server(model: str | None, launch_file: Path | None, options: dict[str, Any]) -> str | LaunchSpec:
    """Where requests go. Takes the options of a LaunchSpec out of `options`."""
    names = {field.name for field in dataclasses.fields(LaunchSpec)}
    given = {name: options.pop(name) for name in tuple(options) if name in names}
    if model is None or not model.startswith(("http://", "https://")):
        return _read_launch_spec(model, launch_file, given)
    chosen = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if launch_file is not None or chosen:
        raise click.UsageError(f"a server decides itself how it runs; drop {', '.join(chosen) or '--launch-spec'}")
    return model


command_line.add_command(build_engine)
command_line.add_command(engine)
command_line.add_command(train_gate)


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
    if "cache_bits" in given:
        given["cache_bits"] = int(given["cache_bits"])
    if "cache_reuse" in given:
        given["cache_reuse"] = CacheReuse(given["cache_reuse"])
    if "device" in given:
        given["device"] = Device(given["device"])
    if "precision" in given:
        given["precision"] = Precision(given["precision"])
    if "sparse_activation" in given:
        given["sparse_activation"] = SparseActivation(given["sparse_activation"])
    return LaunchSpec(model_uri=model, served_name=name, **given)


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
