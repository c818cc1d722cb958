"""The models that must agree with transformers, and the reference side of the comparison."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers

from support.checkpoints import write_checkpoint

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama: grouped heads": ("LlamaForCausalLM", {}),
    "llama: one head per query, tied": (
        "LlamaForCausalLM",
        {"num_key_value_heads": 4, "tie_word_embeddings": True, "head_dim": None},
    ),
    "llama: one shared head, all biases": (
        "LlamaForCausalLM",
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    ),
    "llama: llama3 rope, old spelling": (
        "LlamaForCausalLM",
        {"rope_theta": 5000.0, "rope_scaling": {key: value for key, value in _LLAMA3.items() if key != "rope_theta"}},
    ),
    "llama: llama3 rope, new spelling": ("LlamaForCausalLM", {"rope_theta": None, "rope_parameters": _LLAMA3}),
    "llama: linear rope": ("LlamaForCausalLM", {"rope_scaling": {"type": "linear", "factor": 2.5}}),
    "llama: wide heads": ("LlamaForCausalLM", {"head_dim": 32, "dtype": "float32", "torch_dtype": None}),
    "mistral: window of 24": ("MistralForCausalLM", {}),
    "mistral: window of 64": ("MistralForCausalLM", {"sliding_window": 64, "num_key_value_heads": 4}),
    "qwen2": ("Qwen2ForCausalLM", {"head_dim": None}),
    "qwen2: windows from layer 1, tied": (
        "Qwen2ForCausalLM",
        {
            "head_dim": None,
            "use_sliding_window": True,
            "sliding_window": 30,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16}),
    "qwen3: one shared head, biases, tied": (
        "Qwen3ForCausalLM",
        {"num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "qwen3: listed windows": (
        "Qwen3ForCausalLM",
        {
            "use_sliding_window": True,
            "sliding_window": 20,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "glm4": ("Glm4ForCausalLM", {"head_dim": 16, "pad_token_id": 0}),
    "glm4: quarter rotary, no bias": (
        "Glm4ForCausalLM",
        {"head_dim": 16, "partial_rotary_factor": 0.25, "attention_bias": False, "pad_token_id": 0},
    ),
}
PARITY_CASES = [pytest.param(name, id=name) for name in CASES]


def write_case(folder: Path, name: str) -> Path:
    """The checkpoint of one case; the seed follows from its name's place in the table."""
    architecture, overrides = CASES[name]
    return write_checkpoint(folder, architecture, seed=list(CASES).index(name), **overrides)


def load_reference(
    folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> transformers.PreTrainedModel:
    """The same checkpoint in transformers."""
    model: transformers.PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.to(device).eval()


@torch.inference_mode()
def reference_logits(model: transformers.PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """[T, V] float32 on the CPU: logits after every token."""
    logits: torch.Tensor = model(torch.tensor([tokens], device=model.device)).logits[0]
    return logits.float().cpu()


@torch.inference_mode()
def reference_greedy(model: transformers.PreTrainedModel, prompt: list[int], new_tokens: int) -> list[int]:
    """What `generate` continues the prompt with, stop tokens ignored."""
    inputs = torch.tensor([prompt], device=model.device)
    model.generation_config.eos_token_id = None
    output = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=new_tokens, pad_token_id=0
    )
    return list(output[0, len(prompt) :].tolist())
