"""Recipes as data: a round trip, and every way in which one does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.checkpoints import write_checkpoint
from windlass_runtime.checkpoint.config import read_spec
from windlass_runtime.checkpoint.tensor_file import write_tensors
from windlass_runtime.checkpoint.tensors import CheckpointTensors
from windlass_runtime.errors import RecipeError
from windlass_runtime.quant import recipe as recipes
from windlass_runtime.quant.formats import PRESETS, Format
from windlass_runtime.quant.recipe import Quality, Recipe, TensorRecipe

NAME = "model.layers.0.mlp.up_proj.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
SHAPES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}


def build_recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "preset": "INT4",
        "model_digest": "",
        "architecture": "LlamaForCausalLM",
        "data": {"options": {"seed": 0}},
        "tensors": {
            NAME: TensorRecipe(Format.INT4, 32, snr_db=20.5),
            GATE: TensorRecipe(Format.INT8, input_scale=0.25, snr_db=31.0, reason="a reason"),
            NORM: TensorRecipe(Format.FP32),
        },
        "layer_snr_db": (30.0, 29.5),
        "thresholds": PRESETS["INT4"].thresholds,
        "quality": Quality(100, 10.0, 10.05, 0.001, 0.98, {"copying": (0.8, 0.79)}),
        "sizes": {"recipe": 1, "checkpoint": 2},
    }
    return Recipe(**values | changes)


def build_tensors() -> dict[str, torch.Tensor]:
    codes = torch.randint(-7, 8, (96, 64), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    return {
        f"{NAME}.codes": recipes.pack_nibbles(codes),
        f"{NAME}.scales": torch.rand(96, 2).half(),
        f"{GATE}.codes": codes * 9,
        f"{GATE}.scales": torch.rand(96),
        NORM: torch.rand(64),
    }


def write_recipe(folder: Path, recipe: Recipe, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    write_tensors(folder / recipes.DATA_FILE, tensors)
    values = json.loads(recipe.to_json()) | {"data_sha256": recipes.hash_file(folder / recipes.DATA_FILE)}
    (folder / recipes.JSON_FILE).write_text(json.dumps(values))


class Model:
    """A checkpoint and a recipe that fits it."""

    def __init__(self, folder: Path) -> None:
        self.folder = write_checkpoint(folder / "model", **SHAPES)
        self.spec = read_spec(self.folder)
        self.recipe = folder / "recipe"
        write_recipe(self.recipe, build_recipe(model_digest=self.digest()), build_tensors())

    def digest(self) -> str:
        with CheckpointTensors(self.folder, self.spec) as tensors:
            return recipes.digest_model(self.folder, self.spec, tensors)

    def open(self) -> recipes.RecipeTensors:
        return recipes.open_recipe(self.recipe, self.spec, self.digest())

    def edit(self, **changes: Any) -> None:
        path = self.recipe / recipes.JSON_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path)


@given(n=st.integers(1, 5), pairs=st.integers(1, 20), seed=st.integers(0, 100))
def test_nibbles_survive_packing(n: int, pairs: int, seed: int) -> None:
    codes = torch.randint(-8, 8, (n, 2 * pairs), generator=torch.Generator().manual_seed(seed)).to(torch.int8)

    packed = recipes.pack_nibbles(codes)

    assert packed.shape == (n, pairs)
    assert torch.equal(recipes.unpack_nibbles(packed), codes)


def test_a_recipe_read_back_is_the_one_written(model: Model) -> None:
    expected = build_recipe(model_digest=model.digest())

    found = recipes.read_recipe(model.recipe)

    assert found.tensors == expected.tensors
    assert (found.quality, found.thresholds, found.layer_snr_db) == (
        expected.quality,
        expected.thresholds,
        expected.layer_snr_db,
    )
    assert found.to_json() == (
        json.dumps(json.loads((model.recipe / recipes.JSON_FILE).read_text()), indent=1, sort_keys=True) + "\n"
    )


def test_an_open_recipe_gives_its_tensors(model: Model) -> None:
    opened, written = model.open(), build_tensors()

    codes, scales = opened.codes(NAME)
    wide_codes, _ = opened.codes(GATE)

    assert torch.equal(codes, recipes.unpack_nibbles(written[f"{NAME}.codes"]))
    assert scales.dtype is torch.float16
    assert torch.equal(wide_codes, written[f"{GATE}.codes"])
    assert opened.entry("model.layers.1.mlp.up_proj.weight") is None
    opened.close()


def _cut(model: Model) -> None:
    path = model.recipe / recipes.DATA_FILE
    path.write_bytes(path.read_bytes()[:-10])


def _flip(model: Model) -> None:
    path = model.recipe / recipes.DATA_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _without(name: str) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        tensors = {key: tensor for key, tensor in build_tensors().items() if key != name}
        write_recipe(model.recipe, build_recipe(model_digest=model.digest()), tensors)

    return change


def _other_weights(model: Model) -> None:
    write_checkpoint(model.folder, seed=1, **SHAPES)


def _tensor(**changes: Any) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        entry = {"format": "INT4", "group": 32, "input_scale": 0.0, "snr_db": None, "reason": ""}
        model.edit(tensors={NAME: entry | changes})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(_other_weights, "made of another checkpoint", id="other weights of the same shapes"),
        pytest.param(lambda m: m.edit(version=2), "version: expected 1, found 2", id="a later version"),
        pytest.param(lambda m: m.edit(version=None), "version: expected 1, found None", id="no version"),
        pytest.param(_cut, "is damaged", id="a cut file"),
        pytest.param(_flip, "is damaged", id="one bit"),
        pytest.param(lambda m: (m.recipe / recipes.DATA_FILE).unlink(), "cannot be read", id="no data"),
        pytest.param(lambda m: (m.recipe / recipes.JSON_FILE).write_text("{"), "expected JSON", id="half a file"),
        pytest.param(lambda m: m.edit(tensors=3), "an entry that is none", id="tensors that are none"),
        pytest.param(lambda m: m.edit(quality={"tokens": 1}), "an entry that is none", id="half a quality"),
        pytest.param(_without(f"{NAME}.scales"), "up_proj.weight.scales: expected F16", id="no scales"),
        pytest.param(_without(NORM), "input_layernorm.weight: expected F32", id="no norm"),
        pytest.param(_tensor(format="INT5"), "INT5", id="an unknown format"),
        pytest.param(_tensor(group=16), "group: expected one of 32, 64, 128, found 16", id="a group of 16"),
        pytest.param(_tensor(input_scale=-1.0), "input_scale: expected a number of 0 or more", id="a negative scale"),
        pytest.param(
            lambda m: m.edit(
                tensors={"model.other": {"format": "FP32", "group": 0, "input_scale": 0, "snr_db": None, "reason": ""}}
            ),
            "expected a tensor of this model",
            id="a tensor of no model",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(model: Model, change: Callable[[Model], Any], message: str) -> None:
    change(model)

    with pytest.raises(RecipeError, match=message):
        model.open()


@given(at=st.integers(0, 2000), replacement=st.binary(max_size=40))
def test_damaged_json_never_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, replacement: bytes
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    write_recipe(folder, build_recipe(), build_tensors())
    content = (folder / recipes.JSON_FILE).read_bytes()
    (folder / recipes.JSON_FILE).write_bytes(content[:at] + replacement + content[at + len(replacement) :])

    try:
        found = recipes.read_recipe(folder)
    except RecipeError:
        return
    assert isinstance(found, Recipe)


def test_the_model_digest_ignores_how_the_config_is_written_and_nothing_else(model: Model) -> None:
    before, path = model.digest(), model.folder / "config.json"

    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    assert model.digest() == before

    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": 5.0}))
    assert model.digest() != before
