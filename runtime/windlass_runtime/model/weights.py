"""Move a checkpoint's tensors into the form the decoder computes with: projections that share an input are one matrix,
and rotary pairs are neighbours in every family. Each tensor is read straight into its final place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from windlass_runtime.checkpoint import layout
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.checkpoint.tensors import CheckpointTensors


@dataclass(frozen=True, slots=True)
class Projection:
    """A dense layer, outputs before inputs as in the checkpoint."""

    weight: torch.Tensor
    """[outputs, inputs]"""
    bias: torch.Tensor | None
    """[outputs]"""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Hq query heads, H key/value heads, D head size, F feed-forward size, E hidden size."""

    attention_norm: torch.Tensor
    """[E]"""
    query_key_value: Projection
    """[(Hq + 2 H) * D, E]: queries, keys, values; rotary pairs of queries and keys are neighbours."""
    query_norm: torch.Tensor | None
    """[D], in the same order of elements as the queries."""
    key_norm: torch.Tensor | None
    output: Projection
    """[E, Hq * D]"""
    attention_output_norm: torch.Tensor | None
    """[E]"""
    feed_forward_norm: torch.Tensor
    """[E]"""
    gate_up: Projection
    """[2 F, E]: gate, then up."""
    down: Projection
    """[E, F]"""
    feed_forward_output_norm: torch.Tensor | None
    """[E]"""


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model on one device. Norms may be kept in a wider format than matrices."""

    embedding: torch.Tensor
    """[V, E]"""
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor
    """[E]"""
    head: Projection
    """[V, E]; the embedding itself when tied."""
    size_bytes: int


def weight_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Bytes the weights will take, known before any is read."""
    return sum(torch.Size(shape).numel() for shape in layout.expected_tensors(spec).values()) * dtype.itemsize


def load_weights(
    spec: ModelSpec,
    tensors: CheckpointTensors,
    *,
    dtype: torch.dtype,
    norm_dtype: torch.dtype,
    device: torch.device,
) -> Weights:
    """Read the model. Peak memory is the result plus one read chunk."""
    reader = _Reader(spec, tensors, dtype, norm_dtype, device)
    embedding = reader.read(layout.EMBEDDING, spec.vocabulary_size, spec.hidden_size)
    return Weights(
        embedding=embedding,
        layers=tuple(reader.read_layer(layout.layer_prefix(layer)) for layer in range(spec.layer_count)),
        final_norm=reader.read_norm(layout.FINAL_NORM, spec.hidden_size),
        head=Projection(embedding if spec.tied_head else reader.read(layout.HEAD, *embedding.shape), None),
        size_bytes=weight_bytes(spec, dtype),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    spec: ModelSpec
    tensors: CheckpointTensors
    dtype: torch.dtype
    norm_dtype: torch.dtype
    device: torch.device

    def read(self, name: str, *shape: int) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=self.dtype, device=self.device)
        self.tensors.read_into(name, tensor)
        return tensor

    def read_norm(self, name: str, size: int) -> torch.Tensor:
        tensor = torch.empty(size, dtype=self.norm_dtype, device=self.device)
        self.tensors.read_into(name, tensor)
        return tensor

    def read_layer(self, prefix: str) -> LayerWeights:
        spec, hidden = self.spec, self.spec.hidden_size
        gate_up = ("gate_up_proj",) if spec.fused_gate_up else ("gate_proj", "up_proj")
        return LayerWeights(
            attention_norm=self.read_norm(f"{prefix}input_layernorm.weight", hidden),
            query_key_value=self._read_query_key_value(f"{prefix}self_attn."),
            query_norm=self._read_head_norm(f"{prefix}self_attn.q_norm.weight"),
            key_norm=self._read_head_norm(f"{prefix}self_attn.k_norm.weight"),
            output=self._read_stacked(
                (f"{prefix}self_attn.o_proj",), (hidden,), spec.query_heads * spec.head_size, spec.output_bias
            ),
            attention_output_norm=self._read_sandwich_norm(f"{prefix}post_self_attn_layernorm.weight"),
            feed_forward_norm=self.read_norm(f"{prefix}post_attention_layernorm.weight", hidden),
            gate_up=self._read_stacked(
                tuple(f"{prefix}mlp.{name}" for name in gate_up),
                (2 * spec.feed_forward_size // len(gate_up),) * len(gate_up),
                hidden,
                spec.feed_forward_bias,
            ),
            down=self._read_stacked(
                (f"{prefix}mlp.down_proj",), (hidden,), spec.feed_forward_size, spec.feed_forward_bias
            ),
            feed_forward_output_norm=self._read_sandwich_norm(f"{prefix}post_mlp_layernorm.weight"),
        )

    def _read_stacked(
        self, names: tuple[str, ...], outputs: tuple[int, ...], inputs: int, has_bias: bool
    ) -> Projection:
        weight = torch.empty(sum(outputs), inputs, dtype=self.dtype, device=self.device)
        bias = torch.empty(sum(outputs), dtype=self.dtype, device=self.device) if has_bias else None
        for name, rows in zip(names, torch.split(weight, list(outputs)), strict=True):
            self.tensors.read_into(f"{name}.weight", rows)
        if bias is not None:
            for name, part in zip(names, torch.split(bias, list(outputs)), strict=True):
                self.tensors.read_into(f"{name}.bias", part)
        return Projection(weight, bias)

    def _read_query_key_value(self, prefix: str) -> Projection:
        spec = self.spec
        sizes = tuple(
            heads * spec.head_size for heads in (spec.query_heads, spec.key_value_heads, spec.key_value_heads)
        )
        names = tuple(f"{prefix}{name}_proj" for name in "qkv")
        stacked = self._read_stacked(names, sizes, spec.hidden_size, spec.query_key_value_bias)
        if not spec.rope.interleaved:
            for tensor in (stacked.weight, stacked.bias):
                if tensor is not None:
                    for head in torch.split(tensor, spec.head_size)[: spec.query_heads + spec.key_value_heads]:
                        pair_neighbours(head, spec.rope.rotary_size)
        return stacked

    def _read_head_norm(self, name: str) -> torch.Tensor | None:
        if not self.spec.query_key_norm:
            return None
        norm = self.read_norm(name, self.spec.head_size)
        if not self.spec.rope.interleaved:
            pair_neighbours(norm, self.spec.rope.rotary_size)
        return norm

    def _read_sandwich_norm(self, name: str) -> torch.Tensor | None:
        return self.read_norm(name, self.spec.hidden_size) if self.spec.sandwich_norms else None


def pair_neighbours(head: torch.Tensor, rotary_size: int) -> None:
    """Reorder one head in place so that rotary partners lie side by side.

    head  [D, ...]  element i < n/2 goes to 2i, element i + n/2 to 2i + 1, n the rotary size; the rest stays

    Queries and keys are reordered alike, so their dot products are those of the checkpoint.
    """
    rotary = head[:rotary_size]
    first, second = rotary.clone().chunk(2)
    rotary[0::2] = first
    rotary[1::2] = second
