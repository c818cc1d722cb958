"""Round a checkpoint as it is loaded, knowing nothing of its inputs: what a precision means without a recipe."""

from __future__ import annotations

import numpy as np
import torch

from windlass_runtime.checkpoint import layout
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.checkpoint.tensors import CheckpointTensors
from windlass_runtime.quant import rounding
from windlass_runtime.quant.formats import PRESETS, Format
from windlass_runtime.quant.plan import plan_formats
from windlass_runtime.quant.recipe import TensorRecipe

GROUP = 32
"""Columns per scale of 4-bit weights: without error feedback wider groups lose too much."""


class DataFreeTensors:
    """The tensors that a preset wants in integers, each rounded when it is asked for."""

    def __init__(self, spec: ModelSpec, tensors: CheckpointTensors, preset: str) -> None:
        self._spec = spec
        self._tensors = tensors
        self.entries = plan_formats(spec, PRESETS[preset].formats, GROUP)
        self.preset = preset
        self.identity = f"rounded to {preset}"

    def entry(self, name: str) -> TensorRecipe | None:
        return self.entries.get(name)

    def plain(self, name: str) -> torch.Tensor:
        raise KeyError(name)  # rounding changes no tensor that stays in floats

    def codes(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        rounded = round_plainly(read_matrix(self._spec, self._tensors, name), self.entries[name])
        return torch.from_numpy(rounded.codes), torch.from_numpy(rounded.scales)


def read_matrix(spec: ModelSpec, tensors: CheckpointTensors, name: str) -> rounding.Floats:
    """A weight of the checkpoint in FP32; the embedding for a tied head."""
    stored = layout.EMBEDDING if spec.tied_head and name == layout.HEAD else name
    matrix = torch.empty(layout.expected_tensors(spec)[stored], dtype=torch.float32)
    tensors.read_into(stored, matrix)
    return matrix.numpy()


def round_plainly(weight: rounding.Floats, entry: TensorRecipe) -> rounding.Rounded:
    """Nearest codes, as if every input were used alike."""
    if entry.format is Format.INT4:
        return rounding.round_groups(weight, entry.group, np.ones(weight.shape[1], np.float32))
    return rounding.round_rows(weight, None)
