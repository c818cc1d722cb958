"""Calibration of small random checkpoints: the same bytes each time, also after a kill, and a gate that names names."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from support import letters
from support.checkpoints import ARCHITECTURES, write_checkpoint, write_json
from windlass_contract.launch_spec import Precision
from windlass_runtime.backends.base import Batch, Row
from windlass_runtime.backends.load import load_backend
from windlass_runtime.errors import CalibrationError, QualityMissed, RecipeError
from windlass_runtime.jobs import calibrate as calibration
from windlass_runtime.jobs.calibrate import CalibrationOptions, calibrate
from windlass_runtime.jobs.stream import LayerStream
from windlass_runtime.quant.formats import PRESETS, Format, Part, Thresholds
from windlass_runtime.quant.recipe import DATA_FILE, JSON_FILE, Quality, Recipe, read_recipe

LOOSE = Thresholds(perplexity_loss=1.0, divergence=1.0, top1_agreement=0.0, probe_loss=1.0)
SHAPES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "vocab_size": letters.VOCABULARY}
LENGTH = 40


def write_model(folder: Path, architecture: str = "LlamaForCausalLM", **changes: Any) -> Path:
    write_checkpoint(folder, architecture, **SHAPES | changes)
    letters.build_core().save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", letters.build_config())
    return folder


def write_text(path: Path, seed: int = 0, words: int = 400) -> Path:
    draw = random.Random(seed)
    path.write_text(" ".join("".join(draw.choices("abcdefgh", k=draw.randint(1, 7))) for _ in range(words)))
    return path


def build_options(preset: str = "INT4", **changes: Any) -> CalibrationOptions:
    values = {"sequences": 12, "sequence_tokens": LENGTH, "heldout_sequences": 4, "thresholds": LOOSE} | changes
    return CalibrationOptions(preset, values.pop("formats", {}), **values)


@dataclasses.dataclass(frozen=True)
class Place:
    """A model, texts, and where the recipe goes."""

    model: Path
    data: Path
    heldout: Path
    target: Path

    def calibrate(self, options: CalibrationOptions, **more: Any) -> Recipe:
        return calibrate(self.model, self.data, self.heldout, self.target, options, **more)

    def content(self) -> tuple[bytes, bytes]:
        return (self.target / DATA_FILE).read_bytes(), (self.target / JSON_FILE).read_bytes()


def build_place(folder: Path, architecture: str = "LlamaForCausalLM", **changes: Any) -> Place:
    model = write_model(folder / "model", architecture, **changes)
    return Place(model, write_text(folder / "data.txt"), write_text(folder / "held.txt", 1), folder / "recipe")


def logits_of(backend: Any, tokens: list[int]) -> torch.Tensor:
    """[L, V] of a sequence, token by token."""
    pages = tuple(range(-(-len(tokens) // 64)))
    rows = [Row("r", (token,), at, pages, True) for at, token in enumerate(tokens)]
    return torch.cat([backend.step(Batch((row,))) for row in rows])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_family_serves_what_its_gate_measured(tmp_path: Path, architecture: str, preset: str) -> None:
    place = build_place(tmp_path, architecture)
    recipe = place.calibrate(build_options(preset))

    backend = load_backend(place.model, precision=Precision(preset), recipe=place.target, max_sequence_tokens=64)

    assert recipe.quality is not None
    windows = calibration.read_texts(
        calibration.Tokenizer.load(place.model),
        place.data,
        place.heldout,
        sequences=12,
        heldout_sequences=4,
        length=LENGTH,
        seed=0,
    )[1].tokens
    nats = torch.zeros((), dtype=torch.float64)
    for window in windows:
        logits = logits_of(backend, window.tolist())[:-1].double().log_softmax(-1)
        nats -= logits.gather(1, torch.from_numpy(window[1:, None].astype("int64"))).sum()
    # Window by window, layer by layer or token by token: the kernels give the same bits, only sums in float64 differ.
    assert float((nats / recipe.quality.tokens).exp()) == pytest.approx(recipe.quality.perplexity, rel=1e-9)
    assert backend.info.weight_bytes == recipe.sizes["recipe"]
    assert recipe.sizes["recipe"] < 0.35 * recipe.sizes["checkpoint"]


def test_the_same_inputs_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    place = build_place(tmp_path)
    place.calibrate(build_options())
    first = place.content()

    place.calibrate(build_options())
    assert place.content() == first

    place.calibrate(build_options(seed=1))
    assert place.content()[0] != first[0]


class Killed(BaseException):
    """Ends a calibration where it stands, as a signal would: no handler of ours catches it."""


@pytest.mark.parametrize("seed", range(8))
def test_killed_anywhere_it_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    place, draw = build_place(tmp_path), random.Random(seed)
    place.calibrate(build_options())
    expected = place.content()
    monkeypatch.setattr(os, "replace", _killing(draw, os.replace))
    monkeypatch.setattr(LayerStream, "run", _killing(draw, LayerStream.run))

    for _ in range(100):
        try:
            place.calibrate(build_options())
            break
        except Killed:
            continue
    else:
        pytest.fail("never finished")

    assert place.content() == expected
    assert not place.target.with_name("recipe.partial").exists()


def _killing(draw: random.Random, function: Any) -> Any:
    """A function that dies before or after its work, one time in six each."""

    def call(*arguments: Any, **named: Any) -> Any:
        if draw.random() < 1 / 6:
            raise Killed
        result = function(*arguments, **named)
        if draw.random() < 1 / 6:
            raise Killed
        return result

    return call


def test_work_of_another_calibration_is_refused_until_it_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = build_place(tmp_path)

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(calibration, "_energy_ratio_db", die)
        with pytest.raises(Killed):
            place.calibrate(build_options())

    with pytest.raises(CalibrationError, match=r"another options; repeat that one, or start anew with --restart"):
        place.calibrate(build_options(seed=1))
    place.calibrate(build_options(seed=1), restart=True)
    assert read_recipe(place.target).data["options"]["seed"] == 1


def test_a_failing_gate_names_thresholds_and_the_worst_tensors(tmp_path: Path) -> None:
    place = build_place(tmp_path)
    strict = dataclasses.replace(LOOSE, divergence=1e-9)

    with pytest.raises(QualityMissed) as caught:
        place.calibrate(build_options(thresholds=strict))

    rejected = read_recipe(tmp_path / "recipe.rejected")
    worst = min((entry.snr_db, name) for name, entry in rejected.tensors.items() if entry.snr_db is not None)[1]
    assert f"divergence: expected at most 1e-09 nats, found {rejected.quality.divergence:.4f}" in str(caught.value)  # type: ignore[union-attr]
    assert f"Worst tensors: {worst} (INT4, " in str(caught.value)
    assert not place.target.exists()


def test_a_good_recipe_replaces_the_one_that_was_there(tmp_path: Path) -> None:
    place = build_place(tmp_path)
    place.calibrate(build_options("INT8"))

    place.calibrate(build_options("INT4"))

    assert read_recipe(place.target).preset == "INT4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.txt", "held.txt", "model", "recipe"]


def test_a_kept_tensor_keeps_the_others_of_its_product(tmp_path: Path) -> None:
    place = build_place(tmp_path)

    recipe = place.calibrate(build_options(keep=("model.layers.1.self_attn.k_proj.weight",)))

    kept = {name for name in recipe.tensors if name.startswith("model.layers.1.self_attn")}
    assert kept == {"model.layers.1.self_attn.o_proj.weight"}
    load_backend(place.model, precision=Precision.INT4, recipe=place.target, max_sequence_tokens=64)


def test_an_unknown_kept_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="--keep lm_hat: expected a tensor that would be quantised"):
        build_place(tmp_path).calibrate(build_options(keep=("lm_hat",)))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="plain"),
        pytest.param({"mlp_bias": True, "attention_bias": True}, id="biases"),
        pytest.param({"tie_word_embeddings": True, "dtype": "bfloat16", "torch_dtype": None}, id="tied"),
    ],
)
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_folded_factors_change_nothing_but_rounding(tmp_path: Path, changes: dict[str, Any], static: bool) -> None:
    place = build_place(tmp_path, **changes)
    options = build_options("INT8" if static else "INT4", static_inputs=static)

    recipe = place.calibrate(options)

    assert recipe.quality is not None
    assert recipe.quality.divergence < 0.2
    # Random layers amplify errors, so less than a trained model keeps; a factor folded wrongly leaves nothing at all.
    assert min(recipe.layer_snr_db) > 8.0
    scaled = [name for name, entry in recipe.tensors.items() if entry.input_scale > 0]
    assert bool(scaled) is static
    assert any(entry.reason.startswith("carries channel factors") for entry in recipe.tensors.values())


def test_products_below_the_floor_become_islands_that_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = build_place(tmp_path)
    monkeypatch.setattr(calibration, "SNR_FLOORS_DB", {Format.INT4: 99.0, Format.INT8: 99.0})

    recipe = place.calibrate(build_options())

    assert {e.format for name, e in recipe.tensors.items() if name.endswith("_proj.weight")} == {Format.FP32}
    assert "as INT8: below the floor" in recipe.tensors["model.layers.0.mlp.down_proj.weight"].reason
    load_backend(place.model, precision=Precision.INT4, recipe=place.target, max_sequence_tokens=64)


def test_parts_can_be_given_other_formats(tmp_path: Path) -> None:
    place = build_place(tmp_path)

    recipe = place.calibrate(build_options(formats={Part.ATTENTION: None, Part.HEAD: Format.INT4}))

    assert not any("self_attn" in name and entry.format.is_integer for name, entry in recipe.tensors.items())
    assert recipe.tensors["lm_head.weight"].format is Format.INT4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(b"short", "expected at least 39 tokens, found 5", id="too short"),
        pytest.param(b"\xff\xfe" * 100, "expected UTF-8 text", id="not text"),
    ],
)
def test_a_text_that_cannot_serve_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    place = build_place(tmp_path)
    place.data.write_bytes(text)

    with pytest.raises(CalibrationError, match=message):
        place.calibrate(build_options())


def test_without_a_second_text_the_end_of_the_first_is_held_out(tmp_path: Path) -> None:
    place = build_place(tmp_path)

    recipe = calibrate(place.model, place.data, None, place.target, build_options(heldout_sequences=100))

    held, used = recipe.data["held-out text"], recipe.data["calibration text"]
    assert held["sha256"] == used["sha256"]
    assert 0 < held["sequences"] <= used["sequences"] + 1


def test_a_recipe_of_another_preset_or_for_floats_is_refused(tmp_path: Path) -> None:
    place = build_place(tmp_path)
    place.calibrate(build_options("INT8"))

    with pytest.raises(RecipeError, match="expected precision INT4, found a recipe for INT8"):
        load_backend(place.model, precision=Precision.INT4, recipe=place.target)
    with pytest.raises(RecipeError, match="expected precision Auto, INT8 or INT4 with a recipe, found FP16"):
        load_backend(place.model, precision=Precision.FP16, recipe=place.target)
    with pytest.raises(RecipeError, match=f"expected a folder with {JSON_FILE}, found none"):
        load_backend(place.model, precision=Precision.INT8, recipe=tmp_path / "nowhere")


def test_the_recipe_beside_a_checkpoint_is_found(tmp_path: Path) -> None:
    place = build_place(tmp_path)
    calibrate(place.model, place.data, place.heldout, place.model / "recipes" / "int4", build_options())
    (place.model / "recipes" / "int4" / DATA_FILE).write_bytes(b"damaged")

    with pytest.raises(RecipeError, match="is damaged"):
        load_backend(place.model, precision=Precision.INT4)


def test_without_a_recipe_weights_are_rounded_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_model(tmp_path / "model")
    tokens = [int(token) for token in torch.randint(2, 200, (24,), generator=torch.Generator().manual_seed(3))]
    exact = logits_of(load_backend(model, precision=Precision.FP32, max_sequence_tokens=64), tokens)

    backend = load_backend(model, precision=Precision.INT8, max_sequence_tokens=64)

    assert "nobody measured their quality" in caplog.text
    # Random layers amplify what 4 bits lose in the embedding; other weights altogether would be off by 1.4.
    assert (logits_of(backend, tokens) - exact).norm() < 0.5 * exact.norm()
    assert backend.info.weight_bytes < load_backend(model, max_sequence_tokens=64).info.weight_bytes * 0.35


def test_a_quality_names_every_threshold_it_misses() -> None:
    found = Quality(10, 10.0, 10.2, 0.05, 0.9, {"copying": (0.8, 0.7)})

    misses = calibration.quality.find_misses(found, PRESETS["INT8"].thresholds)

    assert misses == [
        "perplexity: expected a loss of at most 0.50%, found 2.00%",
        "divergence: expected at most 0.01 nats, found 0.0500",
        "top-1 agreement: expected at least 97.0%, found 90.0%",
        "probe copying: expected at least 79.0%, found 70.0%",
    ]
    assert calibration.quality.find_misses(found, LOOSE) == []


def test_a_quality_that_is_no_number_never_passes() -> None:
    nothing = Quality(10, float("nan"), float("nan"), float("nan"), float("nan"), {})

    assert len(calibration.quality.find_misses(nothing, LOOSE)) == 3


def test_the_gate_of_a_finished_recipe_can_be_read_from_it(tmp_path: Path) -> None:
    place = build_place(tmp_path)
    place.calibrate(build_options())

    values = json.loads((place.target / JSON_FILE).read_text())

    assert values["thresholds"]["divergence"] == LOOSE.divergence
    assert len(values["layer_snr_db"]) == 3
