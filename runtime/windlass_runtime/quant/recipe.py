"""The recipe: a folder with `recipe.json` (formats, identity, quality) and `recipe.safetensors` (codes, scales).

A tensor NAME of the checkpoint is either in integers, as `NAME.codes` and `NAME.scales`, or plain under its own name
because calibration changed it. What the recipe leaves out is read from the checkpoint.

  INT8  codes [N, K] int8, scales [N] float32
  INT4  codes [N, K / 2] uint8, two a byte, low nibble first, two's complement; scales [N, K / group] float16
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from windlass_runtime.checkpoint.config import CONFIG_FILE
from windlass_runtime.checkpoint.json_fields import Fields, read_json_object
from windlass_runtime.checkpoint.layout import expected_tensors
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.checkpoint.tensor_file import TensorFile
from windlass_runtime.checkpoint.tensors import CheckpointTensors
from windlass_runtime.errors import CheckpointError, RecipeError
from windlass_runtime.quant.formats import Format, Thresholds

VERSION: Final = 1
"""Raised when an older reader would misunderstand a newer recipe."""
JSON_FILE: Final = "recipe.json"
DATA_FILE: Final = "recipe.safetensors"
GROUPS: Final = (32, 64, 128)


@dataclass(frozen=True, slots=True)
class TensorRecipe:
    """How one tensor of the checkpoint is kept."""

    format: Format
    group: int = 0
    """Columns that share a scale; INT4 only."""
    input_scale: float = 0.0
    """One step of statically scaled 8-bit inputs; 0 lets the executor choose per token."""
    snr_db: float | None = None
    """Signal-to-noise ratio of its output on calibration inputs; None where none was measured."""
    reason: str = ""
    """Why it is not in the format that the preset asks for."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What the held-out text showed. Perplexities are e to the mean negative log likelihood of its tokens."""

    tokens: int
    reference_perplexity: float
    perplexity: float
    divergence: float
    top1_agreement: float
    probes: dict[str, tuple[float, float]]
    """Accuracy in FP32, and with the recipe, by probe."""

    @property
    def perplexity_loss(self) -> float:
        return self.perplexity / self.reference_perplexity - 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything but the codes."""

    preset: str
    model_digest: str
    architecture: str
    data: dict[str, Any]
    """Digests and sizes of the texts, seed, and lengths."""
    tensors: dict[str, TensorRecipe]
    layer_snr_db: tuple[float, ...]
    """Of the hidden states after each layer against FP32, with everything before it quantised too."""
    thresholds: Thresholds
    quality: Quality | None
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of the weights: `recipe` as it is executed, `checkpoint` as stored."""
    data_sha256: str = ""

    def to_json(self) -> str:
        """Sorted, so that equal recipes have equal bytes."""
        values = dataclasses.asdict(self) | {"version": VERSION}
        return json.dumps(values, indent=1, sort_keys=True) + "\n"


class RecipeTensors:
    """The tensors of an open recipe."""

    def __init__(
        self, file: TensorFile, entries: Mapping[str, TensorRecipe], preset: str = "", identity: str = ""
    ) -> None:
        self.file = file
        self.entries = entries
        self.preset = preset
        self.identity = identity
        """What else depends on exactly these weights is bound to: sha256 of the recipe's data."""

    def entry(self, name: str) -> TensorRecipe | None:
        """How a tensor of the checkpoint is kept; None where the checkpoint's own is used."""
        return self.entries.get(name)

    def plain(self, name: str) -> torch.Tensor:
        """A tensor in a float format."""
        return self.file.read(name)

    def codes(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """An integer tensor: codes [N, K] int8 and its scales."""
        codes, scales = self.file.read(f"{name}.codes"), self.file.read(f"{name}.scales")
        return (unpack_nibbles(codes) if codes.dtype is torch.uint8 else codes), scales

    def close(self) -> None:
        self.file.close()


def open_recipe(folder: Path, spec: ModelSpec, digest: str) -> RecipeTensors:
    """Open a recipe for the model with this spec and digest. Raises RecipeError naming what does not fit."""
    recipe = read_recipe(folder)
    if recipe.model_digest != digest:
        raise RecipeError(
            f"{folder / JSON_FILE}: model_digest: expected {digest[:16]}… of the model here, found "
            f"{recipe.model_digest[:16]}…; the recipe was made of another checkpoint: calibrate this one"
        )
    path = folder / DATA_FILE
    found = hash_file(path)
    if found != recipe.data_sha256:
        raise RecipeError(
            f"{path}: expected sha256 {recipe.data_sha256[:16]}… as in {JSON_FILE}, found {found[:16]}…; "
            "the file is damaged or belongs to another recipe: copy or calibrate again"
        )
    try:
        file = TensorFile(path)
    except CheckpointError as exc:
        raise RecipeError(str(exc)) from exc
    try:
        _check_tensors(path, recipe, file, spec)
    except RecipeError:
        file.close()
        raise
    return RecipeTensors(file, recipe.tensors, recipe.preset, recipe.data_sha256)


def read_recipe(folder: Path) -> Recipe:
    """Read and check `recipe.json`. Raises RecipeError."""
    path = folder / JSON_FILE
    try:
        fields = Fields(read_json_object(path), str(path))
        version = fields.raw("version")
        if version != VERSION:
            raise RecipeError(
                f"{path}: version: expected {VERSION}, found {version!r}; calibrate again with this version"
            )
        return _parse_recipe(fields)
    except RecipeError:
        raise
    except CheckpointError as exc:
        raise RecipeError(str(exc)) from exc
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise RecipeError(f"{path}: expected a recipe, found an entry that is none: {exc}") from exc


def digest_model(folder: Path, spec: ModelSpec, tensors: CheckpointTensors) -> str:
    """Identity of a checkpoint: its config, and of every tensor name, format, shape, and a page from each end.

    Reads kilobytes per tensor, so a replica can afford it at every start. Two checkpoints that differ only inside
    tensors, further than a page from both ends of each, look the same.
    """
    config = read_json_object(folder / CONFIG_FILE)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(expected_tensors(spec)):
        digest.update(hashlib.sha256(tensors.identity(name)).digest())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a whole file. Raises RecipeError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise RecipeError(f"{path}: cannot be read: {exc.strerror}") from exc


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """[N, K] int8 in -8 .. 7, K even, to [N, K / 2] uint8: low nibble first, two's complement."""
    nibbles = codes.to(torch.uint8) & 15
    return nibbles[:, 0::2] | nibbles[:, 1::2] << 4


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_nibbles`."""
    both = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1).to(torch.int8)
    return torch.where(both > 7, both - 16, both)


def _check_tensors(path: Path, recipe: Recipe, file: TensorFile, spec: ModelSpec) -> None:
    shapes = expected_tensors(spec)
    shapes.setdefault("lm_head.weight", shapes["model.embed_tokens.weight"])
    for name, entry in recipe.tensors.items():
        if name not in shapes:
            raise RecipeError(f"{path}: {name}: expected a tensor of this model, found one it does not have")
        for stored, dtype, shape in _expected_entries(name, entry, shapes[name]):
            found = file.tensors.get(stored)
            if found is None or (found.dtype, found.shape) != (dtype, shape):
                what = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
                raise RecipeError(f"{path}: {stored}: expected {dtype} {list(shape)}, found {what}")


def _expected_entries(name: str, entry: TensorRecipe, shape: tuple[int, ...]) -> list[tuple[str, str, tuple[int, ...]]]:
    if not entry.format.is_integer:
        return [(name, {"FP32": "F32"}.get(entry.format, str(entry.format)).replace("FP16", "F16"), shape)]
    n, k = shape
    if entry.format is Format.INT8:
        return [(f"{name}.codes", "I8", shape), (f"{name}.scales", "F32", (n,))]
    return [(f"{name}.codes", "U8", (n, k // 2)), (f"{name}.scales", "F16", (n, k // entry.group))]


def _parse_recipe(fields: Fields) -> Recipe:
    quality = fields.raw("quality")
    return Recipe(
        preset=fields.text("preset", ""),
        model_digest=fields.text("model_digest", ""),
        architecture=fields.text("architecture", ""),
        data=dict(fields.raw("data")),
        tensors={name: _parse_tensor(name, entry) for name, entry in dict(fields.raw("tensors")).items()},
        layer_snr_db=tuple(float(value) for value in fields.raw("layer_snr_db")),
        thresholds=Thresholds(**{name: float(value) for name, value in dict(fields.raw("thresholds")).items()}),
        quality=None if quality is None else parse_quality(quality),
        sizes={str(name): int(size) for name, size in dict(fields.raw("sizes")).items()},
        data_sha256=fields.text("data_sha256", ""),
    )


def _parse_tensor(name: str, entry: Mapping[str, Any]) -> TensorRecipe:
    parsed = TensorRecipe(
        format=Format(entry["format"]),
        group=int(entry["group"]),
        input_scale=float(entry["input_scale"]),
        snr_db=None if entry["snr_db"] is None else float(entry["snr_db"]),
        reason=str(entry["reason"]),
    )
    if parsed.format is Format.INT4 and parsed.group not in GROUPS:
        raise ValueError(f"{name}: group: expected one of {', '.join(map(str, GROUPS))}, found {parsed.group}")
    if not 0.0 <= parsed.input_scale < float("inf"):
        raise ValueError(f"{name}: input_scale: expected a number of 0 or more, found {parsed.input_scale}")
    return parsed


def parse_quality(values: Mapping[str, Any]) -> Quality:
    probes = {str(name): (float(before), float(after)) for name, (before, after) in values["probes"].items()}
    return Quality(
        tokens=int(values["tokens"]),
        reference_perplexity=float(values["reference_perplexity"]),
        perplexity=float(values["perplexity"]),
        divergence=float(values["divergence"]),
        top1_agreement=float(values["top1_agreement"]),
        probes=probes,
    )
