# ruff: noqa: E501 - one case of a table per line reads better than wrapped
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.checkpoints import ARCHITECTURES, build_config, build_spec, write_json
from windlass_runtime.checkpoint.config import read_spec
from windlass_runtime.checkpoint.spec import LinearScaling, Llama3Scaling
from windlass_runtime.errors import CheckpointError, UnsupportedModel

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(folder: Path, config: Any, generation: Any = None) -> Any:
    write_json(folder / "config.json", config)
    if generation is not None:
        write_json(folder / "generation_config.json", generation)
    return read_spec(folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_family_is_read_with_its_traits(architecture: str) -> None:
    spec = build_spec(architecture)

    traits = {
        "windowed": spec.windows[0] is not None,
        "bias": spec.query_key_value_bias,
        "head norms": spec.query_key_norm,
        "sandwich": spec.sandwich_norms and spec.fused_gate_up and spec.rope.interleaved,
    }
    expected = {
        "LlamaForCausalLM": set(),
        "MistralForCausalLM": {"windowed"},
        "Qwen2ForCausalLM": {"bias"},
        "Qwen3ForCausalLM": {"head norms"},
        "Glm4ForCausalLM": {"bias", "sandwich"},
    }
    assert {name for name, present in traits.items() if present} == expected[architecture]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(
            {"rope_theta": 5e5}, {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            id="theta",
        ),
        pytest.param(
            {"rope_theta": 5e5, "rope_scaling": LLAMA3},
            {"rope_theta": None, "rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
            id="llama3 scaling",
        ),
        pytest.param(
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_theta": None, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            id="linear scaling",
        ),
        pytest.param(
            {"partial_rotary_factor": 0.5},
            {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1e4}},
            id="partial rotary",
        ),
        pytest.param({"torch_dtype": "bfloat16"}, {"torch_dtype": None, "dtype": "bfloat16"}, id="dtype"),
        pytest.param({"num_key_value_heads": 4}, {"num_key_value_heads": None}, id="heads that share nothing"),
        pytest.param({"head_dim": 12}, {"head_dim": None}, id="head size that follows"),
    ],
)  # fmt: skip
def test_both_spellings_mean_the_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert build_spec(**old) == build_spec(**new)


def test_scaling_keeps_its_numbers() -> None:
    assert build_spec(rope_scaling=LLAMA3).rope.scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)
    assert build_spec(rope_scaling={"type": "linear", "factor": 4}).rope.scaling == LinearScaling(4.0)


@pytest.mark.parametrize(
    ("architecture", "overrides", "windows"),
    [
        pytest.param("MistralForCausalLM", {"sliding_window": 7}, (7, 7, 7), id="every layer"),
        pytest.param("LlamaForCausalLM", {"sliding_window": 7}, (None, None, None), id="a family without windows"),
        pytest.param("Qwen2ForCausalLM", {"sliding_window": 7}, (None, None, None), id="switched off"),
        pytest.param(
            "Qwen2ForCausalLM",
            {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 2},
            (None, None, 7),
            id="from a layer on",
        ),
        pytest.param(
            "Qwen3ForCausalLM",
            {
                "sliding_window": 7,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            },
            (7, None, None),
            id="listed",
        ),
    ],
)
def test_windows_are_read_per_layer(
    architecture: str, overrides: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert build_spec(architecture, **overrides).windows == windows


def test_a_null_window_switches_mistral_windows_off(tmp_path: Path) -> None:
    assert read(tmp_path, build_config("MistralForCausalLM") | {"sliding_window": None}).windows == (None,) * 3


@pytest.mark.parametrize(
    ("config_eos", "generation", "expected"),
    [
        pytest.param(2, None, (2,), id="one id"),
        pytest.param([2, 5], None, (2, 5), id="a list"),
        pytest.param(2, {"eos_token_id": [7, 8]}, (7, 8), id="generation settings win"),
        pytest.param(2, {"temperature": 0.6}, (2,), id="generation settings without stop tokens"),
        pytest.param(None, None, (), id="none at all"),
    ],
)
def test_stop_tokens_come_from_the_generation_settings_first(
    tmp_path: Path, config_eos: Any, generation: Any, expected: tuple[int, ...]
) -> None:
    assert read(tmp_path, build_config(eos_token_id=config_eos), generation).eos_token_ids == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param({"architectures": ["MambaForCausalLM"]}, "LlamaForCausalLM, .*, found MambaForCausalLM", id="unknown architecture"),
        pytest.param({"hidden_act": "gelu"}, "hidden_act: expected silu, found 'gelu'", id="activation"),
        pytest.param({"quantization_config": {"quant_method": "awq"}}, "quantization_config: .*found awq", id="quantised"),
        pytest.param({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type: .*found 'yarn'", id="yarn"),
        pytest.param({"rope_scaling": {"rope_type": "dynamic"}}, "rope_type: .*found 'dynamic'", id="dynamic"),
        pytest.param({"torch_dtype": "float8_e4m3fn"}, "torch_dtype: .*found 'float8_e4m3fn'", id="dtype"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_is_refused_by_name(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        read(tmp_path, build_config(**overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param({"hidden_size": None}, "hidden_size: expected a whole number .* found nothing", id="missing size"),
        pytest.param({"vocab_size": "101"}, 'vocab_size: expected a whole number .* found "101"', id="text for a number"),
        pytest.param({"num_hidden_layers": True}, "num_hidden_layers: .* found true", id="boolean for a number"),
        pytest.param({"num_hidden_layers": 3.0}, "num_hidden_layers: .* found 3.0", id="fraction for a count"),
        pytest.param({"intermediate_size": -88}, "intermediate_size: .* found -88", id="negative size"),
        pytest.param({"num_attention_heads": 0}, "num_attention_heads: .* found 0", id="no heads"),
        pytest.param({"num_hidden_layers": 10**9}, "num_hidden_layers: .* found 1000000000", id="absurd size"),
        pytest.param({"num_key_value_heads": 3}, r"a divisor of num_attention_heads \(4\), found 3", id="heads that do not divide"),
        pytest.param({"head_dim": None, "hidden_size": 50}, "hidden_size: expected a multiple .* found 50", id="no whole head size"),
        pytest.param({"head_dim": 11}, "an even share of the head size .* found 11", id="odd rotary size"),
        pytest.param({"rope_theta": float("nan")}, "rope_theta: expected a number .* found NaN", id="theta that is no number"),
        pytest.param({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor: .* found nothing", id="scaling without factor"),
        pytest.param({"rope_scaling": [1]}, r"rope_scaling: expected an object, found \[1\]", id="scaling of a wrong type"),
        pytest.param({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor: expected more than", id="bands that cross"),
        pytest.param({"tie_word_embeddings": "yes"}, 'expected true or false, found "yes"', id="text for a boolean"),
        pytest.param({"architectures": None}, "architectures: expected a list .* found nothing", id="no architecture"),
        pytest.param({"architectures": [3]}, r"architectures: expected a list .* found \[3\]", id="architecture of a wrong type"),
        pytest.param({"eos_token_id": [-1]}, r"eos_token_id: .* found \[-1\]", id="negative stop token"),
        pytest.param({"rms_norm_eps": "tiny"}, "rms_norm_eps: expected a number", id="epsilon of a wrong type"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_what_was_expected(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: .*{message}"):
        read(tmp_path, build_config(**overrides))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(b"{", "expected JSON, found an error at line 1", id="cut off"),
        pytest.param(b"[1]", r"expected a JSON object, found \[1\]", id="a list"),
        pytest.param(b"\xff\xfe\xfa", "expected JSON", id="no text"),
        pytest.param(b"[" * 100_000, "expected JSON", id="nested without end"),
    ],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(text)

    with pytest.raises(CheckpointError, match=message):
        read_spec(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json: expected a file, found none"):
        read_spec(tmp_path)


def test_listed_layer_kinds_must_cover_every_layer() -> None:
    with pytest.raises(CheckpointError, match="a list of 3 names"):
        build_spec("Qwen2ForCausalLM", use_sliding_window=True, layer_types=["full_attention"])


def test_a_long_bad_value_is_shortened_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, json.loads(json.dumps(build_config())) | {"vocab_size": "x" * 10_000})

    assert len(str(caught.value)) < 400
