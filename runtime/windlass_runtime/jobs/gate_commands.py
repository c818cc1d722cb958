"""The command `train-gate`. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from windlass_runtime.exits import exit_on_fault

_PATH = click.Path(path_type=Path)


@click.command("train-gate", context_settings={"show_default": True})
@click.argument("model")
@click.option("--data", required=True, type=_PATH, help="UTF-8 text to train with.")
@click.option("--gate", required=True, type=_PATH, help="Folder to write.")
@click.option("--heldout", type=_PATH, help="Text to measure with; default: the end of --data.")
@click.option(
    "--precision",
    type=click.Choice(["stored", "INT8", "INT4"], case_sensitive=False),
    default="stored",
    help="Weights that will be served.",
)
@click.option("--recipe", type=_PATH, help="Their recipe; default: in the model.")
@click.option(
    "--method",
    type=click.Choice(["predictor", "threshold"]),
    default="predictor",
    help="threshold trains nothing and saves less.",
)
@click.option(
    "--mass",
    "masses",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    multiple=True,
    default=(0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99),
    help="Share of the output's energy to aim at; may be repeated.",
)
@click.option("--balanced-loss", type=click.FloatRange(min=0), default=0.01, help="Most perplexity for Balanced.")
@click.option("--max-loss", type=click.FloatRange(min=0), default=0.03, help="Most perplexity for Max.")
@click.option("--dense-layers", type=click.IntRange(min=0), default=1, help="Left dense at each end.")
@click.option("--rank", type=click.IntRange(min=1), default=32, help="Features of the predictor.")
@click.option("--epochs", type=click.IntRange(min=1), default=16)
@click.option("--sample-tokens", type=click.IntRange(min=16), default=16384, help="Kept in each layer.")
@click.option("--sequences", type=click.IntRange(min=1), default=64)
@click.option("--heldout-sequences", type=click.IntRange(min=1), default=32)
@click.option("--sequence-tokens", type=click.IntRange(min=16), default=512)
@click.option("--seed", type=int, default=0)
@click.option("--restart", is_flag=True, help="Forget what an earlier run left behind.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def train_gate(
    model: str,
    data: Path,
    gate: Path,
    heldout: Path | None,
    precision: str,
    recipe: Path | None,
    restart: bool,
    output: str,
    **options: Any,
) -> None:
    """Learn which feed-forward blocks of MODEL a token can leave out, and measure what that costs.

    Streams layer by layer; killed, it goes on where it stopped.
    """
    from windlass_runtime.jobs import gate_command

    preset = None if precision == "stored" else precision
    with exit_on_fault():
        gate_command.run(
            model,
            data,
            heldout,
            gate,
            options,
            preset=preset,
            recipe=recipe,
            restart=restart,
            as_json=output == "json",
        )
