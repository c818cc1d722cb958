"""Which tensors a checkpoint of a given spec holds, and their shapes. Names follow the Hugging Face convention."""

from __future__ import annotations

from collections.abc import Iterator

from windlass_runtime.checkpoint.spec import ModelSpec

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"

Shape = tuple[int, ...]


def expected_tensors(spec: ModelSpec) -> dict[str, Shape]:
    """Name and shape of every tensor the model needs."""
    shapes: dict[str, Shape] = {
        EMBEDDING: (spec.vocabulary_size, spec.hidden_size),
        FINAL_NORM: (spec.hidden_size,),
    }
    if not spec.tied_head:
        shapes[HEAD] = (spec.vocabulary_size, spec.hidden_size)
    for layer in range(spec.layer_count):
        prefix = layer_prefix(layer)
        shapes.update((prefix + name, shape) for name, shape in _layer_tensors(spec))
    return shapes


def layer_prefix(layer: int) -> str:
    """Leading part of the names of one layer's tensors."""
    return f"model.layers.{layer}."


def layer_of(name: str) -> int:
    """The layer that a tensor with such a leading part belongs to."""
    return int(name.split(".", 3)[2])


def is_ignorable(name: str, spec: ModelSpec) -> bool:
    """Whether a surplus tensor changes nothing: a tied head stored twice, or rotary tables that old writers kept."""
    return (spec.tied_head and name == HEAD) or name.endswith("rotary_emb.inv_freq")


def _layer_tensors(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    hidden = spec.hidden_size
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)
    if spec.sandwich_norms:
        yield "post_self_attn_layernorm.weight", (hidden,)
        yield "post_mlp_layernorm.weight", (hidden,)
    yield from _attention_tensors(spec)
    yield from _feed_forward_tensors(spec)


def _attention_tensors(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    query_size, key_value_size = spec.query_heads * spec.head_size, spec.key_value_heads * spec.head_size
    for name, size in (("q_proj", query_size), ("k_proj", key_value_size), ("v_proj", key_value_size)):
        yield from _projection(f"self_attn.{name}", size, spec.hidden_size, spec.query_key_value_bias)
    yield from _projection("self_attn.o_proj", spec.hidden_size, query_size, spec.output_bias)
    if spec.query_key_norm:
        yield "self_attn.q_norm.weight", (spec.head_size,)
        yield "self_attn.k_norm.weight", (spec.head_size,)


def _feed_forward_tensors(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    hidden, inner, bias = spec.hidden_size, spec.feed_forward_size, spec.feed_forward_bias
    if spec.fused_gate_up:
        yield from _projection("mlp.gate_up_proj", 2 * inner, hidden, bias)
    else:
        yield from _projection("mlp.gate_proj", inner, hidden, bias)
        yield from _projection("mlp.up_proj", inner, hidden, bias)
    yield from _projection("mlp.down_proj", hidden, inner, bias)


def _projection(name: str, outputs: int, inputs: int, has_bias: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    if has_bias:
        yield f"{name}.bias", (outputs,)
