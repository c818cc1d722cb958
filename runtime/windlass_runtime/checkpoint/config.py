"""Read `config.json` and `generation_config.json` of a Hugging Face-format folder into a ModelSpec.

Both spellings in use are understood: `rope_theta`, `rope_scaling`, `torch_dtype`, and `rope_parameters`, `dtype`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from windlass_runtime.checkpoint.families import FAMILIES, Family
from windlass_runtime.checkpoint.json_fields import Fields, read_json_object
from windlass_runtime.checkpoint.spec import LinearScaling, Llama3Scaling, ModelSpec, RopeSpec
from windlass_runtime.errors import UnsupportedModel

CONFIG_FILE: Final = "config.json"
GENERATION_FILE: Final = "generation_config.json"

_DTYPES: Final = ("float32", "bfloat16", "float16")
# Far above any model in existence, far below what would make a product of sizes absurd.
_MOST_LAYERS: Final = 4096
_LARGEST_SIZE: Final = 2**24
_LONGEST: Final = 2**31


def read_spec(folder: Path) -> ModelSpec:
    """Read the architecture of the checkpoint in `folder`. Raises CheckpointError, UnsupportedModel."""
    config = Fields(read_json_object(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    return parse_spec(config, _read_eos(folder, config))


def parse_spec(config: Fields, eos_token_ids: tuple[int, ...]) -> ModelSpec:
    """Turn a parsed `config.json` into a spec; refuses whatever would change the arithmetic and is not implemented."""
    architecture, family = _choose_family(config)
    _refuse_unimplemented(config)
    hidden = config.integer("hidden_size", 1, _LARGEST_SIZE)
    query_heads, key_value_heads, head_size = _parse_heads(config, family, hidden)
    layers = config.integer("num_hidden_layers", 1, _MOST_LAYERS)
    max_positions = config.integer("max_position_embeddings", 1, _LONGEST)
    return ModelSpec(
        architecture=architecture,
        vocabulary_size=config.integer("vocab_size", 1, _LARGEST_SIZE),
        hidden_size=hidden,
        query_heads=query_heads,
        key_value_heads=key_value_heads,
        head_size=head_size,
        feed_forward_size=config.integer("intermediate_size", 1, _LARGEST_SIZE),
        windows=family.windows(config, layers),
        norm_epsilon=config.number("rms_norm_eps", 0.0, 1.0, family.default_norm_epsilon),
        max_positions=max_positions,
        rope=_parse_rope(config, family, head_size, max_positions),
        query_key_value_bias=family.query_key_value_bias(config),
        output_bias=family.output_bias(config),
        feed_forward_bias=family.feed_forward_bias(config),
        query_key_norm=family.query_key_norm,
        sandwich_norms=family.sandwich_norms,
        fused_gate_up=family.fused_gate_up,
        tied_head=config.boolean("tie_word_embeddings", False),
        stored_dtype=_parse_dtype(config),
        eos_token_ids=eos_token_ids,
    )


def _choose_family(config: Fields) -> tuple[str, Family]:
    names = config.raw("architectures")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        raise config.wrong("architectures", "a list with one class name", names)
    for name in names:
        if name in FAMILIES:
            return name, FAMILIES[name]
    raise UnsupportedModel(
        f"{config.where}: architectures: expected one of {', '.join(FAMILIES)}, found {', '.join(names)}"
    )


def _refuse_unimplemented(config: Fields) -> None:
    quantised = config.nested("quantization_config")
    if quantised is not None:
        method = quantised.text("quant_method", "an unnamed method")
        raise UnsupportedModel(
            f"{config.where}: quantization_config: expected full-precision weights, found {method}; "
            "load the original checkpoint and choose a precision for it"
        )
    activation = config.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModel(f"{config.where}: hidden_act: expected silu, found {activation!r}")


def _parse_heads(config: Fields, family: Family, hidden: int) -> tuple[int, int, int]:
    query_heads = config.integer("num_attention_heads", 1, 2**16)
    key_value_heads = config.integer("num_key_value_heads", 1, 2**16, query_heads)
    if query_heads % key_value_heads:
        raise config.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({query_heads})", key_value_heads)
    if config.raw("head_dim") is not None or family.default_head_size is not None:
        return query_heads, key_value_heads, config.integer("head_dim", 1, 2**16, family.default_head_size)
    if hidden % query_heads:
        raise config.wrong("hidden_size", f"a multiple of num_attention_heads ({query_heads}), or head_dim", hidden)
    return query_heads, key_value_heads, hidden // query_heads


def _parse_rope(config: Fields, family: Family, head_size: int, max_positions: int) -> RopeSpec:
    old_theta = config.number("rope_theta", 1.0, 1e15, 10_000.0)
    old_share = config.number("partial_rotary_factor", 0.0, 1.0, family.default_rotary_share)
    options = config.nested("rope_parameters") or config.nested("rope_scaling") or Fields({}, config.where)
    share = options.number("partial_rotary_factor", 0.0, 1.0, old_share)
    rotary_size = int(head_size * share)
    if rotary_size < 2 or rotary_size % 2:
        raise options.wrong(
            "partial_rotary_factor", f"an even share of the head size ({head_size}), at least 2", rotary_size
        )
    return RopeSpec(
        theta=options.number("rope_theta", 1.0, 1e15, old_theta),
        rotary_size=rotary_size,
        interleaved=family.interleaved_rope,
        scaling=_parse_scaling(options, max_positions),
    )


def _parse_scaling(options: Fields, max_positions: int) -> Llama3Scaling | LinearScaling | None:
    kind = options.text("rope_type", options.text("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(options.number("factor", 1e-6, 1e6))
    if kind == "llama3":
        scaling = Llama3Scaling(
            factor=options.number("factor", 1e-6, 1e6),
            low_frequency_factor=options.number("low_freq_factor", 1e-6, 1e6),
            high_frequency_factor=options.number("high_freq_factor", 1e-6, 1e6),
            original_positions=options.integer("original_max_position_embeddings", 1, _LONGEST, max_positions),
        )
        if scaling.high_frequency_factor <= scaling.low_frequency_factor:
            expected = f"more than low_freq_factor ({scaling.low_frequency_factor:g})"
            raise options.wrong("high_freq_factor", expected, scaling.high_frequency_factor)
        return scaling
    raise UnsupportedModel(f"{options.where}: rope_type: expected default, linear or llama3, found {kind!r}")


def _parse_dtype(config: Fields) -> str:
    key = "dtype" if config.raw("dtype") is not None else "torch_dtype"
    name = config.text(key, "float32").removeprefix("torch.")
    if name not in _DTYPES:
        raise UnsupportedModel(f"{config.where}: {key}: expected one of {', '.join(_DTYPES)}, found {name!r}")
    return name


def _read_eos(folder: Path, config: Fields) -> tuple[int, ...]:
    """Generation settings win over the architecture's, as everywhere: chat models add their end-of-turn token there."""
    path = folder / GENERATION_FILE
    if path.exists():
        generation = Fields(read_json_object(path), str(path))
        if generation.raw("eos_token_id") is not None:
            return _parse_eos(generation)
    return _parse_eos(config)


def _parse_eos(fields: Fields) -> tuple[int, ...]:
    value: Any = fields.raw("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int and item >= 0 for item in ids):
        raise fields.wrong("eos_token_id", "a token id or a list of token ids", value)
    return tuple(ids)
