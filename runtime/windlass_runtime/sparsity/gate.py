"""The gate: a folder with `gate.json` (identity, targets with their measured quality, modes) and `gate.safetensors`.

It says for chosen layers in which order the neurons lie, so that those that work together share a block, and how a
token finds the blocks it wants. A tensor of layer N is named `layers.N.` and

  order          [F]    int32    neuron of the checkpoint at each place
  norms          [F]    float32  size of each neuron's column of the down projection, in the new order
  cuts           [C]    float32  score above which a block is wanted, for each target
  narrow.codes   [R, E] int8     the predictor, if there is one: features of the layer's normed input,
  narrow.scales  [R]    float32
  wide           [B, R] float32  and what the positive part of each tells of each block
  bias           [B]    float32
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from windlass_kernels import packed
from windlass_kernels.feed_forward import NEURON_BLOCK, BlockSelection
from windlass_runtime.checkpoint.json_fields import Fields, read_json_object
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.checkpoint.tensor_file import TensorFile
from windlass_runtime.errors import CheckpointError, GateError, RecipeError
from windlass_runtime.quant.recipe import Quality, hash_file, parse_quality

VERSION: Final = 1
"""Raised when an older reader would misunderstand a newer gate."""
JSON_FILE: Final = "gate.json"
DATA_FILE: Final = "gate.safetensors"
AS_STORED: Final = "as stored"
"""What `weights` says of a gate for the checkpoint's own weights."""


class Method(enum.StrEnum):
    """How a token finds its blocks."""

    PREDICTOR = "predictor"
    """A thin network looks at the layer's input."""
    THRESHOLD = "threshold"
    """The gate projection is computed whole, and the largest gates decide: nothing is trained, less is saved."""


@dataclass(frozen=True, slots=True)
class LayerGate:
    """One layer under one target."""

    order: torch.Tensor
    """[F] int32"""
    selection: BlockSelection


@dataclass(frozen=True, slots=True)
class Target:
    """One place on the curve of density and quality, measured on held-out text with every token generated."""

    mass: float
    """Share of the output's energy that the chosen blocks were to hold."""
    density: float
    """Mean share of the blocks of sparse layers that a token uses."""
    recall: float
    """Share of the output's energy that they do hold."""
    quality: Quality
    """Against the same weights without sparsity."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Everything but the tensors."""

    method: Method
    model_digest: str
    weights: str
    """Which weights it was made for: sha256 of the recipe's data, AS_STORED, or the preset they were rounded to."""
    data: dict[str, Any]
    """Digests and sizes of the texts, and the options."""
    layers: tuple[int, ...]
    """The sparse ones; all others stay dense."""
    targets: tuple[Target, ...]
    modes: dict[str, int | None]
    """Target by mode, balanced and max; None where every target cost more than the mode allows: it stays dense."""
    limits: dict[str, float]
    """Largest perplexity loss that a mode allows; 0.01 is one percent."""
    data_sha256: str

    def to_json(self) -> str:
        """Sorted, so that equal gates have equal bytes."""
        return json.dumps(dataclasses.asdict(self) | {"version": VERSION}, indent=1, sort_keys=True) + "\n"


class GateTensors:
    """An open gate under one of its targets."""

    def __init__(self, file: TensorFile, gate: Gate, target: int) -> None:
        self._file = file
        self._layers = frozenset(gate.layers)
        self._target = target

    def layer(self, layer: int) -> LayerGate | None:
        """None for a layer that stays dense."""
        return read_layer(self._file, layer, self._target) if layer in self._layers else None

    def close(self) -> None:
        self._file.close()


def read_layer(file: TensorFile, layer: int, target: int) -> LayerGate:
    """One layer of a gate's file."""
    prefix = f"layers.{layer}."
    cut, norms = float(file.read(f"{prefix}cuts")[target]), file.read(f"{prefix}norms")
    selection = BlockSelection(cut, norms)
    if f"{prefix}wide" in file.tensors:
        narrow = packed.pack(file.read(f"{prefix}narrow.codes"), file.read(f"{prefix}narrow.scales"))
        selection = BlockSelection(cut, norms, narrow, file.read(f"{prefix}wide"), file.read(f"{prefix}bias"))
    return LayerGate(file.read(f"{prefix}order"), selection)


def open_gate(folder: Path, spec: ModelSpec, digest: str, weights: str, mode: str) -> GateTensors | None:
    """Open a gate for this model and these weights; None where the mode stays dense. Raises GateError."""
    gate = read_gate(folder)
    for name, expected, found in (("model_digest", digest, gate.model_digest), ("weights", weights, gate.weights)):
        if found != expected:
            raise GateError(
                f"{folder / JSON_FILE}: {name}: expected {expected[:16]}, found {found[:16]}; the gate belongs to "
                "another checkpoint, recipe or precision: run `windlass-runtime train-gate` for this one"
            )
    if mode not in gate.modes:
        known = ", ".join(sorted(gate.modes)) or "none"
        raise GateError(f"{folder / JSON_FILE}: modes: expected {mode} among them, found {known}; train again")
    path = folder / DATA_FILE
    try:
        if (actual := hash_file(path)) != gate.data_sha256:
            raise GateError(
                f"{path}: expected sha256 {gate.data_sha256[:16]}… as in {JSON_FILE}, found {actual[:16]}…; "
                "the file is damaged or belongs to another gate: copy or train again"
            )
        file = TensorFile(path)
    except (RecipeError, CheckpointError) as exc:
        raise GateError(str(exc)) from exc
    try:
        _check_tensors(path, gate, file, spec)
    except GateError:
        file.close()
        raise
    target = gate.modes[mode]
    if target is None:
        file.close()
        return None
    return GateTensors(file, gate, target)


def read_gate(folder: Path) -> Gate:
    """Read and check `gate.json`. Raises GateError."""
    path = folder / JSON_FILE
    try:
        fields = Fields(read_json_object(path), str(path))
        version = fields.raw("version")
        if version != VERSION:
            raise GateError(f"{path}: version: expected {VERSION}, found {version!r}; train again with this version")
        return _parse_gate(fields)
    except CheckpointError as exc:
        raise GateError(str(exc)) from exc
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise GateError(f"{path}: expected a gate, found an entry that is none: {exc}") from exc


def expected_tensors(
    gate: Gate, spec: ModelSpec, features: Mapping[int, int]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Format and shape of every tensor; `features` is R by layer."""
    neurons, blocks = spec.feed_forward_size, spec.feed_forward_size // NEURON_BLOCK
    expected: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in gate.layers:
        prefix = f"layers.{layer}."
        expected[f"{prefix}order"] = ("I32", (neurons,))
        expected[f"{prefix}norms"] = ("F32", (neurons,))
        expected[f"{prefix}cuts"] = ("F32", (len(gate.targets),))
        if gate.method is Method.PREDICTOR:
            rank = features[layer]
            expected[f"{prefix}narrow.codes"] = ("I8", (rank, spec.hidden_size))
            expected[f"{prefix}narrow.scales"] = ("F32", (rank,))
            expected[f"{prefix}wide"] = ("F32", (blocks, rank))
            expected[f"{prefix}bias"] = ("F32", (blocks,))
    return expected


def _check_tensors(path: Path, gate: Gate, file: TensorFile, spec: ModelSpec) -> None:
    shapes = {name: stored.shape for name, stored in file.tensors.items()}
    ranks = {layer: math.prod(shapes.get(f"layers.{layer}.narrow.scales", (0,))) for layer in gate.layers}
    for name, (dtype, shape) in expected_tensors(gate, spec, ranks).items():
        found = file.tensors.get(name)
        if found is None or (found.dtype, found.shape) != (dtype, shape):
            what = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise GateError(f"{path}: {name}: expected {dtype} {list(shape)}, found {what}")
    for layer in gate.layers:
        order = file.read(f"layers.{layer}.order")
        if not torch.equal(order.sort().values, torch.arange(len(order), dtype=torch.int32)):
            raise GateError(f"{path}: layers.{layer}.order: expected every neuron once, found some missing")


def _parse_gate(fields: Fields) -> Gate:
    targets = tuple(_parse_target(entry) for entry in fields.raw("targets"))
    modes = {str(mode): None if at is None else int(at) for mode, at in dict(fields.raw("modes")).items()}
    for mode, at in modes.items():
        if at is not None and not 0 <= at < len(targets):
            raise ValueError(f"modes.{mode}: expected one of {len(targets)} targets, found {at}")
    return Gate(
        method=Method(fields.text("method", "")),
        model_digest=fields.text("model_digest", ""),
        weights=fields.text("weights", ""),
        data=dict(fields.raw("data")),
        layers=tuple(int(layer) for layer in fields.raw("layers")),
        targets=targets,
        modes=modes,
        limits={str(mode): float(limit) for mode, limit in dict(fields.raw("limits")).items()},
        data_sha256=fields.text("data_sha256", ""),
    )


def _parse_target(entry: Mapping[str, Any]) -> Target:
    return Target(
        mass=float(entry["mass"]),
        density=float(entry["density"]),
        recall=float(entry["recall"]),
        quality=parse_quality(entry["quality"]),
    )
