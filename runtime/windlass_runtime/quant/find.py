"""Find what a precision means for a model: a chosen recipe, one beside the checkpoint, or plain rounding."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.checkpoint.tensors import CheckpointTensors
from windlass_runtime.errors import RecipeError
from windlass_runtime.quant.data_free import DataFreeTensors
from windlass_runtime.quant.formats import PRESETS
from windlass_runtime.quant.recipe import JSON_FILE, RecipeTensors, digest_model, open_recipe, read_recipe

logger = logging.getLogger(__name__)

RECIPES_FOLDER: Final = "recipes"
"""Beside a checkpoint: one folder per preset, in lower case."""


def find_recipe(model: Path, preset: str | None, chosen: Path | None) -> Path | None:
    """The recipe's folder; None when there is none, or none is wanted. Raises RecipeError for a choice that cannot be.

    preset  INT8 or INT4; None when the precision names a float format
    chosen  a folder named by the user, which must exist and be of the preset, if there is one
    """
    if chosen is not None:
        if not (chosen / JSON_FILE).is_file():
            raise RecipeError(f"recipe {chosen}: expected a folder with {JSON_FILE}, found none")
        found = read_recipe(chosen).preset
        if preset is not None and found != preset:
            raise RecipeError(f"recipe {chosen}: expected precision {preset}, found a recipe for {found}")
        return chosen
    if preset is None:
        return None
    beside = model / RECIPES_FOLDER / preset.lower()
    return beside if (beside / JSON_FILE).is_file() else None


@contextlib.contextmanager
def open_overlay(
    model: Path, spec: ModelSpec, tensors: CheckpointTensors, preset: str | None, chosen: Path | None
) -> Iterator[RecipeTensors | DataFreeTensors | None]:
    """What lies over the checkpoint; None for float formats. Raises RecipeError."""
    folder = find_recipe(model, preset, chosen)
    if folder is not None:
        recipe = open_recipe(folder, spec, digest_model(model, spec, tensors))
        logger.info("weights follow a recipe recipe=%s", folder)
        try:
            yield recipe
        finally:
            recipe.close()
        return
    if preset is None:
        yield None
        return
    assert preset in PRESETS
    logger.warning(
        "no recipe for precision %s in %s: weights are rounded without calibration, and nobody measured their quality; "
        "`windlass-runtime calibrate` makes a recipe",
        preset,
        model / RECIPES_FOLDER / preset.lower(),
    )
    yield DataFreeTensors(spec, tensors, preset)
