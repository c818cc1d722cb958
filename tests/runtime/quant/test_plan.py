"""Which tensor gets which format before anything is measured."""

from __future__ import annotations

import pytest

from support.checkpoints import ARCHITECTURES, build_spec
from windlass_runtime.checkpoint.layout import EMBEDDING, HEAD, expected_tensors
from windlass_runtime.quant.formats import PRESETS, Format, Part
from windlass_runtime.quant.plan import plan_formats

SHAPES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
UP, QUERY, DOWN = "mlp.up_proj.weight", "self_attn.q_proj.weight", "mlp.down_proj.weight"


def name(tensor: str) -> str:
    return f"model.layers.0.{tensor}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_matrix_of_every_family_is_planned_and_nothing_else(architecture: str, preset: str) -> None:
    spec = build_spec(architecture, **SHAPES)

    planned = plan_formats(spec, PRESETS[preset].formats, 32)

    assert set(planned) == {tensor for tensor, shape in expected_tensors(spec).items() if len(shape) == 2}


def test_the_int4_preset_keeps_attention_in_eight_bits() -> None:
    planned = plan_formats(build_spec(**SHAPES), PRESETS["INT4"].formats, 64)

    formats = {tensor: planned[tensor].format for tensor in (EMBEDDING, HEAD, name(QUERY), name(UP), name(DOWN))}
    assert formats == {
        EMBEDDING: Format.INT4,
        HEAD: Format.INT8,
        name(QUERY): Format.INT8,
        name(UP): Format.INT4,
        name(DOWN): Format.INT4,
    }


def test_columns_choose_the_widest_group_that_divides_them() -> None:
    planned = plan_formats(build_spec(**SHAPES), PRESETS["INT4"].formats, 128)

    assert (planned[name(UP)].group, planned[name(DOWN)].group, planned[EMBEDDING].group) == (64, 32, 32)


def test_columns_that_no_group_divides_fall_back_to_eight_bits_and_say_so() -> None:
    planned = plan_formats(build_spec(), PRESETS["INT4"].formats, 32)

    assert planned[name(UP)].format is Format.INT8
    assert planned[name(UP)].reason == "48 columns do not split into groups of 32"


@pytest.mark.parametrize(
    ("head", "own"),
    [
        pytest.param(Format.INT4, False, id="the embedding's format: shared"),
        pytest.param(Format.INT8, True, id="a format of its own: a copy"),
    ],
)
def test_a_tied_head_is_kept_apart_only_in_a_format_of_its_own(head: Format, own: bool) -> None:
    spec = build_spec(tie_word_embeddings=True, **SHAPES)

    planned = plan_formats(spec, {Part.EMBEDDING: Format.INT4, Part.HEAD: head}, 32)

    assert (HEAD in planned) is own


def test_a_part_without_a_format_is_left_alone() -> None:
    planned = plan_formats(build_spec(**SHAPES), PRESETS["INT8"].formats | {Part.ATTENTION: None}, 32)

    assert name(QUERY) not in planned
    assert name(UP) in planned
