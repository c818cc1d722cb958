"""What recipes gain and cost, as charts and a table: error by layer, size against quality, speed against quality."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from windlass_contract.launch_spec import Precision
from windlass_runtime.backends.base import Backend, Batch, Row
from windlass_runtime.backends.load import load_backend
from windlass_runtime.errors import RecipeError
from windlass_runtime.jobs import plots
from windlass_runtime.quant.recipe import Quality, Recipe, read_recipe
from windlass_runtime.sparsity.gate import Gate, Target, read_gate

PROMPT_TOKENS: Final = 16
REFERENCE: Final = "FP32"


@dataclass(frozen=True, slots=True)
class Subject:
    """A recipe under the name it has in charts."""

    name: str
    recipe: Recipe
    quality: Quality


def read_subjects(folders: Sequence[Path]) -> list[Subject]:
    """Recipes with their measured quality. Raises RecipeError for one without, or for recipes of several models."""
    subjects: list[Subject] = []
    for name, folder in zip(_names(folders), folders, strict=True):
        recipe = read_recipe(folder)
        if recipe.quality is None:
            raise RecipeError(f"{folder}: quality: expected what a gate measured, found nothing")
        if subjects and recipe.model_digest != subjects[0].recipe.model_digest:
            raise RecipeError(f"{folder}: expected a recipe of the same model as {folders[0]}, found one of another")
        subjects.append(Subject(name, recipe, recipe.quality))
    return subjects


def measure_speeds(model: Path, folders: Sequence[Path], seconds: float) -> dict[str, float]:
    """Tokens per second at batch 1 on this CPU, by name, and of FP32. Rounds alternate."""
    backends: dict[str, Backend] = {REFERENCE: load_backend(model, precision=Precision.FP32, max_running_requests=1)}
    for name, folder in zip(_names(folders), folders, strict=True):
        backends[name] = load_backend(model, recipe=folder, max_running_requests=1)
    rates: dict[str, list[float]] = {name: [] for name in backends}
    until = time.perf_counter() + seconds * len(backends)
    while time.perf_counter() < until or len(rates[REFERENCE]) < 3:
        for name, backend in backends.items():
            rates[name].append(_decode_once(backend, time.perf_counter))
    for backend in backends.values():
        backend.close()
    return {name: statistics.median(found) for name, found in rates.items()}


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' last parts, or whole paths where those are not enough to tell them apart."""
    short = [folder.name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _decode_once(backend: Backend, clock: Callable[[], float], steps: int = 24) -> float:
    """Tokens per second of some decode steps after a short prompt."""
    pages = (0,)
    backend.step(Batch((Row("r", tuple(range(PROMPT_TOKENS)), 0, pages, True),)))
    started = clock()
    for at in range(PROMPT_TOKENS, PROMPT_TOKENS + steps):
        backend.step(Batch((Row("r", (at,), at, pages, True),)))
    return steps / (clock() - started)


def read_gates(folders: Sequence[Path]) -> dict[str, Gate]:
    """Gates by the name they have in charts. Raises GateError."""
    return {name: read_gate(folder) for name, folder in zip(_names(folders), folders, strict=True)}


def write_report(
    subjects: Sequence[Subject], speeds: dict[str, float], target: Path, gates: Mapping[str, Gate] | None = None
) -> dict[str, Any]:
    """Write the charts and `report.json` into `target`; returns the figures."""
    target.mkdir(parents=True, exist_ok=True)
    if subjects:
        (target / "error-by-layer.svg").write_text(_draw_layers(subjects))
        (target / "size-and-quality.svg").write_text(_draw_sizes(subjects))
    if speeds:
        (target / "speed-and-quality.svg").write_text(_draw_speeds(subjects, speeds))
    figures: dict[str, Any] = {"recipes": {subject.name: _figures(subject, speeds) for subject in subjects}}
    if gates:
        (target / "density-and-quality.svg").write_text(_draw_densities(gates))
        figures["gates"] = {name: [_gate_figures(item) for item in gate.targets] for name, gate in gates.items()}
    if REFERENCE in speeds:
        figures["reference_tokens_per_s"] = speeds[REFERENCE]
    (target / "report.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    return figures


def _figures(subject: Subject, speeds: dict[str, float]) -> dict[str, Any]:
    quality, sizes = subject.quality, subject.recipe.sizes
    return {
        "bytes": sizes["recipe"],
        "share_of_checkpoint": sizes["recipe"] / sizes["checkpoint"],
        "perplexity_loss": quality.perplexity_loss,
        "divergence": quality.divergence,
        "top1_agreement": quality.top1_agreement,
        "tokens_per_s": speeds.get(subject.name),
    }


def _gate_figures(target: Target) -> dict[str, Any]:
    return {
        "mass": target.mass,
        "density": target.density,
        "recall": target.recall,
        "perplexity_loss": target.quality.perplexity_loss,
        "top1_agreement": target.quality.top1_agreement,
    }


def _draw_densities(gates: Mapping[str, Gate]) -> str:
    points = [
        plots.Point(100 * item.density, 100 * item.quality.perplexity_loss, f"{name} {item.mass:.0%}")
        for name, gate in gates.items()
        for item in gate.targets
    ]
    return _draw_losses("Density against quality", "blocks of sparse layers that a token uses, %", points)


def _draw_layers(subjects: Sequence[Subject]) -> str:
    series = {subject.name: subject.recipe.layer_snr_db for subject in subjects}
    axis = plots.Axis.around("signal to noise, dB", [value for values in series.values() for value in values])
    categories = [str(layer) for layer in range(max(len(values) for values in series.values()))]
    return plots.draw_lines("Hidden states after each layer, against FP32", axis, categories, series)


def _draw_sizes(subjects: Sequence[Subject]) -> str:
    points = [plots.Point(s.recipe.sizes["recipe"] / 1e6, 100 * s.quality.perplexity_loss, s.name) for s in subjects]
    points.append(plots.Point(subjects[0].recipe.sizes["checkpoint"] / 1e6, 0.0, "as stored"))
    return _draw_losses("Size against quality", "weights, MB", points)


def _draw_speeds(subjects: Sequence[Subject], speeds: dict[str, float]) -> str:
    points = [plots.Point(speeds[s.name], 100 * s.quality.perplexity_loss, s.name) for s in subjects]
    points.append(plots.Point(speeds[REFERENCE], 0.0, REFERENCE))
    return _draw_losses("Speed against quality", "tokens per second at batch 1, on this machine", points)


def _draw_losses(title: str, x_name: str, points: list[plots.Point]) -> str:
    x_axis = plots.Axis.around(x_name, [point.x for point in points])
    y_axis = plots.Axis.around("perplexity loss, %", [point.y for point in points])
    return plots.draw_points(title, x_axis, y_axis, points)


def render_table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [_recipe_line(name, row) for name, row in figures["recipes"].items()]
    if lines:
        lines.insert(0, "recipe            MB  share    loss  divergence  top-1  tokens/s")
    for name, targets in figures.get("gates", {}).items():
        lines += ["gate           aim density  recall    loss  top-1", *(_target_line(name, row) for row in targets)]
    return "\n".join(lines)


def _recipe_line(name: str, row: dict[str, Any]) -> str:
    speed = "-" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:.0f}"
    return (
        f"{name:12} {row['bytes'] / 1e6:7.1f} {row['share_of_checkpoint']:6.0%} {row['perplexity_loss']:7.2%}"
        f" {row['divergence']:11.4f} {row['top1_agreement']:6.1%} {speed:>9}"
    )


def _target_line(name: str, row: dict[str, Any]) -> str:
    return (
        f"{name:12} {row['mass']:5.0%} {row['density']:7.1%} {row['recall']:7.1%} {row['perplexity_loss']:7.2%} "
        f"{row['top1_agreement']:6.1%}"
    )
