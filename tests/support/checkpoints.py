"""Write small random checkpoints in the Hugging Face format, without transformers: quick, seeded, of every family."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from windlass_runtime.checkpoint.config import parse_spec
from windlass_runtime.checkpoint.json_fields import Fields
from windlass_runtime.checkpoint.layout import expected_tensors
from windlass_runtime.checkpoint.spec import ModelSpec

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Glm4ForCausalLM")


def build_config(architecture: str = "LlamaForCausalLM", **overrides: Any) -> dict[str, Any]:
    """A small `config.json` of the given architecture; an override of None removes the key."""
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": architecture.removesuffix("ForCausalLM").lower(),
        "vocab_size": 101,
        "hidden_size": 48,
        "intermediate_size": 88,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": 2,
    }
    if architecture == "MistralForCausalLM":
        config["sliding_window"] = 24
    return {key: value for key, value in (config | overrides).items() if value is not None}


def build_spec(architecture: str = "LlamaForCausalLM", **overrides: Any) -> ModelSpec:
    return parse_spec(Fields(build_config(architecture, **overrides), "config.json"), eos_token_ids=(2,))


def build_tensors(spec: ModelSpec, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random tensors with the variance of a trained model's, so that activations stay in range and logits differ."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _draw(name, shape, generator).to(dtype) for name, shape in expected_tensors(spec).items()}


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    if "norm" in name:
        return 1.0 + 0.2 * values
    if name.endswith("bias"):
        return 0.3 * values
    return values * (1.5 / math.sqrt(shape[-1]))


def write_checkpoint(
    folder: Path,
    architecture: str = "LlamaForCausalLM",
    *,
    seed: int = 0,
    stored: torch.dtype = torch.float32,
    shards: int = 1,
    **overrides: Any,
) -> Path:
    """Write config and weights; returns the folder. `overrides` replace keys of the config, None removes them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = build_config(architecture, **overrides)
    write_json(folder / "config.json", config)
    tensors = build_tensors(parse_spec(Fields(config, "config.json"), ()), seed=seed, dtype=stored)
    write_tensors(folder, tensors, shards=shards)
    return folder


def write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], *, shards: int = 1) -> None:
    """Write one file, or `shards` files with an index."""
    if shards == 1:
        safetensors.torch.save_file(dict(tensors), folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file_name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensor for index, (name, tensor) in enumerate(tensors.items()) if index % shards == shard}
        safetensors.torch.save_file(part, folder / file_name)
        weight_map.update(dict.fromkeys(part, file_name))
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))
