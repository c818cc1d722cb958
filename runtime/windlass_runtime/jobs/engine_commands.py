"""The commands `build-engine` and `engine`. Heavy imports wait until one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from windlass_runtime.exits import exit_on_fault

_STORE = click.option(
    "--store", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of plans, made if missing."
)
_OUTPUT = click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)


@click.command("build-engine", context_settings={"show_default": True})
@click.argument("model")
@_STORE
@click.option("--target", "targets", multiple=True, help="GPU such as sm_89; may be repeated. Default: the GPU here.")
@click.option("--precision", type=click.Choice(["INT8", "INT4", "FP16", "BF16"], case_sensitive=False), default="INT8")
@click.option("--recipe", type=click.Path(path_type=Path), help="Default: recipes/int8 or int4 in the model.")
@click.option(
    "--arithmetic",
    type=click.Choice(["FP16", "BF16"], case_sensitive=False),
    help="Format between integer weights. Default: FP16, or the --precision if that is a float format.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]),
    default="auto",
    help="auto: tensorrt where there is a GPU and the package, else tensorrt-rtx.",
)
@click.option(
    "--max-sequence-tokens",
    type=click.IntRange(min=2),
    multiple=True,
    help="Prompt plus output; rounded up to a capacity of the ladder. Repeated: one plan each. Default: what the model "
    "was trained for, at most 8192.",
)
@click.option("--max-running-requests", type=click.IntRange(min=1), default=16, help="Most sequences in a decode step.")
@click.option("--prefill-rows", type=click.IntRange(min=1), default=4, help="Most prompts in one prefill call.")
@click.option("--prefill-tokens", type=click.IntRange(min=1), default=512, help="Most tokens of a prompt's chunk.")
@click.option("--rebuild", is_flag=True, help="Build even if the store has the plan.")
@_OUTPUT
def build_engine(model: str, output: str, **options: Any) -> None:
    """Build TensorRT plans of MODEL into a store; what the store has already is not built again.

    Prints the manifests. Exit code 1 if a plan cannot be built; nothing half built is left in the store.
    """
    from windlass_runtime.jobs import build_engine_command

    with exit_on_fault():
        build_engine_command.run(model, options, as_json=output == "json")


@click.group()
def engine() -> None:
    """Look after a store of TensorRT plans."""


@engine.command("list")
@_STORE
@_OUTPUT
def list_engines(store: Path, output: str) -> None:
    """List plans, used last first."""
    from windlass_runtime.jobs import engine_store_command

    with exit_on_fault():
        engine_store_command.list_plans(store, as_json=output == "json")


@engine.command()
@click.argument("fingerprint")
@_STORE
@_OUTPUT
def inspect(fingerprint: str, store: Path, output: str) -> None:
    """Show the manifest of one plan; FINGERPRINT may be its first digits."""
    from windlass_runtime.jobs import engine_store_command

    with exit_on_fault():
        engine_store_command.inspect_plan(store, fingerprint, as_json=output == "json")


@engine.command()
@click.argument("fingerprint", required=False)
@_STORE
@_OUTPUT
def verify(fingerprint: str | None, store: Path, output: str) -> None:
    """Check size and sha256 of one plan, or of all. Exit code 1 if any is damaged."""
    from windlass_runtime.jobs import engine_store_command

    with exit_on_fault():
        engine_store_command.verify_plans(store, fingerprint, as_json=output == "json")


@engine.command()
@_STORE
@click.option("--keep-bytes", required=True, type=click.IntRange(min=0), help="Most bytes of plans to leave.")
@click.option(
    "--idle-hours", type=click.FloatRange(min=0), default=24.0, show_default=True, help="Spare what was used since."
)
@_OUTPUT
def evict(store: Path, keep_bytes: int, idle_hours: float, output: str) -> None:
    """Remove plans, longest unused first, until at most --keep-bytes are left. A plan in use is never removed."""
    from windlass_runtime.jobs import engine_store_command

    with exit_on_fault():
        engine_store_command.evict_plans(store, keep_bytes, idle_hours * 3600, as_json=output == "json")
