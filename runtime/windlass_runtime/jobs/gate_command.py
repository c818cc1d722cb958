"""The shell of `windlass-runtime train-gate`: options to values, a progress bar, and the result as text or JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from windlass_runtime.checkpoint.source import resolve_model
from windlass_runtime.jobs.progress import show_progress
from windlass_runtime.jobs.train_gate import GateOptions, train_gate
from windlass_runtime.sparsity.gate import Gate, Method, Target


def run(
    model: str,
    data: Path,
    heldout: Path | None,
    target: Path,
    chosen: dict[str, Any],
    *,
    preset: str | None,
    recipe: Path | None,
    restart: bool,
    as_json: bool,
) -> None:
    """Train and print. Raises RuntimeFault."""
    options = GateOptions(**chosen | {"method": Method(chosen["method"]), "masses": tuple(chosen["masses"])})
    started = time.perf_counter()
    with show_progress("training", quiet=as_json) as report:
        gate = train_gate(
            resolve_model(model),
            data,
            heldout,
            target,
            options,
            preset=preset,
            recipe=recipe,
            restart=restart,
            report=report,
        )
    seconds = round(time.perf_counter() - started, 1)
    figures = summarize(target, gate) | {"seconds": seconds}
    click.echo(json.dumps(figures) if as_json else render_summary(target, gate, seconds))


def summarize(target: Path, gate: Gate) -> dict[str, Any]:
    """The result as JSON."""
    return {
        "gate": str(target),
        "method": str(gate.method),
        "layers": list(gate.layers),
        "modes": {mode: None if at is None else gate.targets[at].mass for mode, at in gate.modes.items()},
        "targets": [
            {
                "mass": found.mass,
                "density": found.density,
                "recall": found.recall,
                "perplexity_loss": found.quality.perplexity_loss,
                "top1_agreement": found.quality.top1_agreement,
            }
            for found in gate.targets
        ],
    }


def render_summary(target: Path, gate: Gate, seconds: float) -> str:
    """The result for people."""
    lines = [
        f"gate {target}: {gate.method}, {len(gate.layers)} sparse layers",
        "aim    density  recall    loss  top-1",
        *map(_target_line, gate.targets),
    ]
    for mode, at in gate.modes.items():
        limit = f"perplexity +{gate.limits[mode]:.1%} at most"
        chosen = "stays dense" if at is None else f"aims at {gate.targets[at].mass:.0%} of the energy"
        lines.append(f"{mode:9} {chosen} ({limit})")
    return "\n".join([*lines, f"took {seconds:.0f} s"])


def _target_line(target: Target) -> str:
    quality = target.quality
    return (
        f"{target.mass:5.0%} {target.density:8.1%} {target.recall:7.1%} {quality.perplexity_loss:+7.2%} "
        f"{quality.top1_agreement:6.1%}"
    )
