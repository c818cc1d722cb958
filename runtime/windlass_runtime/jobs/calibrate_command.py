"""The shell of `windlass-runtime calibrate`: options to values, a progress bar, and the result as text or JSON."""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from windlass_runtime.checkpoint.source import resolve_model
from windlass_runtime.jobs.calibrate import CalibrationOptions, calibrate
from windlass_runtime.jobs.progress import show_progress
from windlass_runtime.quant.formats import PRESETS, Format, Part
from windlass_runtime.quant.recipe import Quality, Recipe

_PARTS = {
    "attention": Part.ATTENTION,
    "feed_forward": Part.FEED_FORWARD,
    "embedding": Part.EMBEDDING,
    "head": Part.HEAD,
}


def run(
    model: str, data: Path, heldout: Path | None, target: Path, chosen: dict[str, Any], *, restart: bool, as_json: bool
) -> None:
    """Calibrate and print. Raises RuntimeFault."""
    options, started = parse_options(chosen), time.perf_counter()
    with show_progress("calibrating", quiet=as_json) as report:
        recipe = calibrate(resolve_model(model), data, heldout, target, options, restart=restart, report=report)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {"seconds": round(time.perf_counter() - started, 1), "peak_bytes": peak_bytes}
    click.echo(json.dumps(summarize(target, recipe) | figures) if as_json else render_summary(target, recipe, figures))


def parse_options(chosen: dict[str, Any]) -> CalibrationOptions:
    """Values of the command line to those of the calibration."""
    preset = PRESETS[chosen["precision"]]
    formats = {part: _parse_format(chosen[name]) for name, part in _PARTS.items() if chosen[name] is not None}
    limits = {
        item.name: chosen[item.name] for item in dataclasses.fields(preset.thresholds) if chosen[item.name] is not None
    }
    return CalibrationOptions(
        preset=chosen["precision"],
        formats=formats,
        thresholds=dataclasses.replace(preset.thresholds, **limits),
        sequences=chosen["sequences"],
        sequence_tokens=chosen["sequence_tokens"],
        heldout_sequences=chosen["heldout_sequences"],
        seed=chosen["seed"],
        group=int(chosen["group"]),
        static_inputs=chosen["inputs"] == "static",
        keep=tuple(chosen["keep"]),
    )


def _parse_format(text: str) -> Format | None:
    return None if text == "stored" else Format(text)


def summarize(target: Path, recipe: Recipe) -> dict[str, Any]:
    """The result as JSON; the recipe itself holds more."""
    assert recipe.quality is not None
    quality = dataclasses.asdict(recipe.quality) | {"perplexity_loss": recipe.quality.perplexity_loss}
    return {
        "recipe": str(target),
        "precision": recipe.preset,
        "quality": quality,
        "sizes": recipe.sizes,
        "formats": count_formats(recipe),
    }


def count_formats(recipe: Recipe) -> dict[str, int]:
    """How many tensors are kept in which format; those that the recipe does not name are left out."""
    counts: dict[str, int] = {}
    for entry in recipe.tensors.values():
        counts[str(entry.format)] = counts.get(str(entry.format), 0) + 1
    return dict(sorted(counts.items()))


def render_summary(target: Path, recipe: Recipe, figures: dict[str, Any]) -> str:
    """The result for people."""
    assert recipe.quality is not None
    share = recipe.sizes["recipe"] / recipe.sizes["checkpoint"]
    formats = ", ".join(f"{count} {name}" for name, count in count_formats(recipe).items())
    islands = [f"  {name}: {entry.format} ({entry.reason})" for name, entry in recipe.tensors.items() if entry.reason]
    lines = [
        f"recipe {target}: passed its quality gate on {recipe.quality.tokens} held-out tokens",
        f"size     {recipe.sizes['recipe'] / 1e6:.1f} MB, {share:.0%} of the checkpoint; tensors: {formats}",
        *_quality_lines(recipe.quality),
        f"took     {figures['seconds']:.0f} s, {figures['peak_bytes'] / 1e6:.0f} MB at most",
    ]
    return "\n".join(lines + (["kept apart:", *islands] if islands else []))


def _quality_lines(quality: Quality) -> Iterator[str]:
    yield (
        f"quality  perplexity {quality.reference_perplexity:.3f} -> {quality.perplexity:.3f} "
        f"({quality.perplexity_loss:+.2%}), divergence {quality.divergence:.4f} nats, "
        f"top-1 agreement {quality.top1_agreement:.1%}"
    )
    for name, (before, after) in quality.probes.items():
        yield f"probe    {name}: {before:.1%} -> {after:.1%}"
