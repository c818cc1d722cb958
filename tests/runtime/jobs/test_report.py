"""Charts and figures of recipes: well-formed, about the right values, and refused where they would compare apples."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_runtime.errors import RecipeError
from windlass_runtime.jobs import plots, report
from windlass_runtime.quant.formats import PRESETS, Format
from windlass_runtime.quant.recipe import JSON_FILE, Quality, Recipe, TensorRecipe
from windlass_runtime.sparsity.gate import Gate, Method, Target

QUALITY = Quality(1000, 10.0, 10.05, 0.002, 0.98, {"copying": (0.8, 0.79)})


def write_recipe(folder: Path, digest: str = "d", quality: Quality | None = QUALITY, size: int = 3_000_000) -> Path:
    recipe = Recipe(
        preset="INT8",
        model_digest=digest,
        architecture="LlamaForCausalLM",
        data={},
        tensors={"model.layers.0.mlp.up_proj.weight": TensorRecipe(Format.INT8, snr_db=30.0)},
        layer_snr_db=(30.0, 28.5, 27.0),
        thresholds=PRESETS["INT8"].thresholds,
        quality=quality,
        sizes={"recipe": size, "checkpoint": 7_000_000},
    )
    folder.mkdir(parents=True)
    (folder / JSON_FILE).write_text(recipe.to_json())
    return folder


def texts_of(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_gates_are_drawn_as_density_against_quality(tmp_path: Path) -> None:
    targets = tuple(Target(mass, mass - 0.1, mass, QUALITY) for mass in (0.8, 0.95))
    gate = Gate(Method.PREDICTOR, "d", "as stored", {}, (1,), targets, {"balanced": 1, "max": 0}, {}, "")
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate" / "gate.json").write_text(gate.to_json())

    figures = report.write_report([], {}, tmp_path / "out", report.read_gates([tmp_path / "gate"]))

    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["density-and-quality.svg", "report.json"]
    assert figures["gates"]["gate"][1]["density"] == pytest.approx(0.85)
    assert figures["gates"]["gate"][1]["perplexity_loss"] == pytest.approx(0.005)
    assert {"gate 80%", "gate 95%"} <= set(texts_of((tmp_path / "out" / "density-and-quality.svg").read_text()))
    assert "gate           95%" in report.render_table(figures)


def test_a_report_holds_charts_and_figures_of_every_recipe(tmp_path: Path) -> None:
    lossy = dataclasses.replace(QUALITY, perplexity=10.1)
    folders = [write_recipe(tmp_path / "int8"), write_recipe(tmp_path / "int4", quality=lossy, size=2_000_000)]

    figures = report.write_report(
        report.read_subjects(folders), {"FP32": 100.0, "int8": 300.0, "int4": 400.0}, tmp_path / "out"
    )

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "error-by-layer.svg",
        "report.json",
        "size-and-quality.svg",
        "speed-and-quality.svg",
    ]
    assert figures["recipes"]["int4"]["perplexity_loss"] == pytest.approx(0.01)
    assert figures["recipes"]["int4"]["tokens_per_s"] == 400.0
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == figures
    for chart in (tmp_path / "out").glob("*.svg"):
        assert {"int8", "int4"} <= set(texts_of(chart.read_text()))
    assert "int4             2.0    29%   1.00%      0.0020  98.0%       400" in report.render_table(figures)


def test_without_speeds_there_is_no_chart_of_them(tmp_path: Path) -> None:
    report.write_report(report.read_subjects([write_recipe(tmp_path / "a")]), {}, tmp_path / "out")

    assert not (tmp_path / "out" / "speed-and-quality.svg").exists()


def test_recipes_of_the_same_last_name_are_told_apart(tmp_path: Path) -> None:
    folders = [write_recipe(tmp_path / "a" / "int8"), write_recipe(tmp_path / "b" / "int8")]

    assert [subject.name for subject in report.read_subjects(folders)] == [str(folder) for folder in folders]


@pytest.mark.parametrize(
    ("digest", "quality", "message"),
    [
        pytest.param("other", QUALITY, "found one of another", id="another model"),
        pytest.param("d", None, "expected what a gate measured, found nothing", id="never measured"),
    ],
)
def test_recipes_that_cannot_be_compared_are_refused(
    tmp_path: Path, digest: str, quality: Quality | None, message: str
) -> None:
    folders = [write_recipe(tmp_path / "a"), write_recipe(tmp_path / "b", digest, quality)]

    with pytest.raises(RecipeError, match=message):
        report.read_subjects(folders)


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_an_axis_shows_every_value_at_a_place_of_its_own(values: list[float]) -> None:
    axis = plots.Axis.around("x", values)

    assert all(0.0 <= axis.place(value) <= 1.0 for value in values)
    assert 1 <= len(axis.ticks()) <= 12
    assert all(axis.low - 1e-9 <= tick <= axis.high + 1e-9 for tick in axis.ticks())


def test_names_cannot_break_a_chart() -> None:
    svg = plots.draw_points("a < b", plots.Axis("x", 0, 1), plots.Axis("y & z", 0, 1), [plots.Point(0.5, 0.5, "<&>")])

    assert {"a < b", "y & z", "<&>"} <= set(texts_of(svg))
