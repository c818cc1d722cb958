"""The supported architectures as a table of differences from a plain Llama decoder. Read by `config`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from windlass_runtime.checkpoint.json_fields import Fields
from windlass_runtime.errors import UnsupportedModel

Windows = tuple[int | None, ...]

_LARGEST_WINDOW: Final = 2**31


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture departs from the plain decoder, and which values its configuration may leave out."""

    query_key_value_bias: Callable[[Fields], bool] = lambda _: False
    output_bias: Callable[[Fields], bool] = lambda _: False
    feed_forward_bias: Callable[[Fields], bool] = lambda _: False
    windows: Callable[[Fields, int], Windows] = lambda _, layers: (None,) * layers
    query_key_norm: bool = False
    sandwich_norms: bool = False
    fused_gate_up: bool = False
    interleaved_rope: bool = False
    default_rotary_share: float = 1.0
    default_head_size: int | None = None
    """None derives it as hidden size over query heads."""
    default_norm_epsilon: float = 1e-6


def _attention_bias(config: Fields) -> bool:
    return config.boolean("attention_bias", False)


def _window_everywhere(config: Fields, layers: int) -> Windows:
    if config.raw("sliding_window") is None and config.has("sliding_window"):
        return (None,) * layers
    window = config.integer("sliding_window", 1, _LARGEST_WINDOW, 4096)
    if config.raw("layer_types") is None:
        return (window,) * layers
    return _windows_of_kinds(config, window, layers)


def _window_where_listed(config: Fields, layers: int) -> Windows:
    if not config.boolean("use_sliding_window", False):
        return (None,) * layers
    window = config.integer("sliding_window", 1, _LARGEST_WINDOW, 4096)
    if config.raw("layer_types") is None:
        first_windowed = config.integer("max_window_layers", 0, _LARGEST_WINDOW, 28)
        return tuple(window if layer >= first_windowed else None for layer in range(layers))
    return _windows_of_kinds(config, window, layers)


def _windows_of_kinds(config: Fields, window: int, layers: int) -> Windows:
    kinds = config.raw("layer_types")
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise config.wrong("layer_types", f"a list of {layers} names, one per layer", kinds)
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedModel(
                f"{config.where}: layer_types: expected full_attention or sliding_attention, found {kind!r}"
            )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


FAMILIES: Final[Mapping[str, Family]] = {
    "LlamaForCausalLM": Family(
        query_key_value_bias=_attention_bias,
        output_bias=_attention_bias,
        feed_forward_bias=lambda config: config.boolean("mlp_bias", False),
    ),
    "MistralForCausalLM": Family(windows=_window_everywhere),
    "Qwen2ForCausalLM": Family(query_key_value_bias=lambda _: True, windows=_window_where_listed),
    "Qwen3ForCausalLM": Family(
        query_key_value_bias=_attention_bias,
        output_bias=_attention_bias,
        windows=_window_where_listed,
        query_key_norm=True,
        default_head_size=128,
    ),
    "Glm4ForCausalLM": Family(
        query_key_value_bias=lambda config: config.boolean("attention_bias", True),
        sandwich_norms=True,
        fused_gate_up=True,
        interleaved_rope=True,
        default_rotary_share=0.5,
        default_head_size=128,
        default_norm_epsilon=1.5625e-07,
    ),
}
