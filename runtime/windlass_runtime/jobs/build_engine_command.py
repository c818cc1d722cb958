"""The shell of `windlass-runtime build-engine`: options to values, a progress bar, manifests as text or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from windlass_runtime.checkpoint.config import read_spec
from windlass_runtime.checkpoint.source import resolve_model
from windlass_runtime.engine.bindings import Kind, load_bindings
from windlass_runtime.engine.config_writer import check_targets
from windlass_runtime.engine.gpu import find_gpu
from windlass_runtime.engine.graph import DType
from windlass_runtime.engine.shape import LEAST_ROWS, PlanShape, choose_capacity
from windlass_runtime.engine.store import EngineStore
from windlass_runtime.errors import EngineError
from windlass_runtime.jobs.build_engine import EngineRequest, EngineResult, Events, ensure_engine
from windlass_runtime.quant.formats import PRESETS

_USUAL_LIMIT: Final = 8192
"""Tokens of a sequence where nobody asks for more; a cache of all that a model was trained for is seldom wanted."""


def run(model: str, options: dict[str, Any], *, as_json: bool) -> None:
    """Build and print. Raises RuntimeFault."""
    present = find_gpu()
    wanted = None if options["backend"] == "auto" else Kind(options["backend"])
    bindings = load_bindings(wanted, has_gpu=present is not None)
    targets = check_targets(bindings, tuple(options["targets"]), present)
    folder = resolve_model(model)
    requests = plan_requests(options, targets, read_spec(folder).max_positions)
    store, results = EngineStore(options["store"]), []
    for request in requests:
        with _show_progress(quiet=as_json) as events:
            results.append(ensure_engine(folder, request, bindings, store, events))
    if as_json:
        click.echo(json.dumps({"engines": [summarize(result) for result in results]}))
    else:
        click.echo("\n\n".join(render_summary(result) for result in results))


def plan_requests(options: dict[str, Any], targets: tuple[str, ...], max_positions: int) -> list[EngineRequest]:
    """One request a capacity, smallest first. Raises EngineError."""
    precision = options["precision"]
    arithmetic = options["arithmetic"] or ("FP16" if precision in PRESETS else precision)
    if precision not in PRESETS and arithmetic != precision:
        raise EngineError(f"--arithmetic: expected {precision} as in --precision, found {arithmetic}")
    lengths = options["max_sequence_tokens"] or (min(_USUAL_LIMIT, max_positions),)
    capacities = sorted({choose_capacity(tokens, max_positions) for tokens in lengths})
    return [
        EngineRequest(
            precision=precision,
            recipe=options["recipe"],
            arithmetic=DType(arithmetic),
            targets=targets,
            shape=PlanShape(
                capacity=capacity,
                decode_rows=max(LEAST_ROWS, options["max_running_requests"]),
                prefill_rows=max(LEAST_ROWS, options["prefill_rows"]),
                prefill_tokens=min(capacity, options["prefill_tokens"]),
            ),
            rebuild=options["rebuild"],
        )
        for capacity in capacities
    ]


def summarize(result: EngineResult) -> dict[str, Any]:
    """One engine as JSON: its manifest, where it lies, and whether it was built just now."""
    values: dict[str, Any] = json.loads(result.entry.manifest.to_json())
    return {"built": result.built, "folder": str(result.entry.folder)} | values


def render_summary(result: EngineResult) -> str:
    """One engine for people."""
    manifest, identity = result.entry.manifest, result.entry.manifest.identity
    share = manifest.plan_bytes / manifest.weight_bytes
    done = f"built in {manifest.build['seconds']:.1f} s" if result.built else "was in the store already"
    lines = [
        f"engine {result.entry.folder} {done}",
        f"for       {', '.join(identity.targets)} by {identity.backend} {identity.backend_version}",
        f"holds     {identity.decode_rows} sequences of {identity.capacity} tokens",
        f"prefill   {identity.prefill_rows} x {identity.prefill_tokens} tokens",
        f"size      {manifest.plan_bytes / 1e6:.1f} MB, {share:.2f} of its weights",
        f"memory    {manifest.build['peak_bytes'] / 1e6:.0f} MB at most",
        f"precision {identity.precision}, arithmetic {identity.arithmetic}: {_render_table(manifest.precision_table)}",
        f"quality   {_render_quality(manifest.quality)}",
        f"sha256    {manifest.plan_sha256}",
    ]
    return "\n".join(lines)


def _render_table(table: dict[str, dict[str, int]]) -> str:
    return "; ".join(
        f"{part} " + ", ".join(f"{size / 1e6:.2f} MB {name}" for name, size in sizes.items())
        for part, sizes in table.items()
    )


def _render_quality(quality: dict[str, Any] | None) -> str:
    if quality is None:
        return "not measured"
    return (
        f"perplexity {quality['reference_perplexity']:.3f} -> {quality['perplexity']:.3f} "
        f"({quality['perplexity_loss']:+.2%}), top-1 agreement {quality['top1_agreement']:.1%}, by the recipe"
    )


@contextmanager
def _show_progress(*, quiet: bool) -> Iterator[Events]:
    """A bar a phase on a terminal, a line elsewhere; with JSON wanted only what people must know, on stderr."""
    console = Console(stderr=True)

    def memory(needed: int, free: int) -> None:
        say(f"memory: at most {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")

    def waiting(fingerprint: str) -> None:
        say(f"another process builds {fingerprint}; waiting for it")

    if quiet or not console.is_terminal:

        def say(text: str) -> None:
            print(text, file=sys.stderr)  # noqa: T201

        yield Events(memory, waiting)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, Any] = {}

        def say(text: str) -> None:
            progress.console.print(text)

        def report(phase: str, done: int, steps: int) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase)
            progress.update(tasks[phase], completed=done, total=steps)

        yield Events(memory, waiting, report)
