"""Move a checkpoint's tensors into the form the decoder computes with: projections that share an input are one matrix,
and rotary pairs are neighbours in every family. Each tensor is read straight into its final place.

A recipe lies over the checkpoint: tensors it holds in integers become packed weights, others that it holds replace the
checkpoint's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from windlass_contract.layer_split import ModelParts
from windlass_kernels import packed
from windlass_kernels.feed_forward import FeedForward, Projection
from windlass_runtime.checkpoint import layout
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.checkpoint.tensors import CheckpointTensors
from windlass_runtime.errors import RecipeError
from windlass_runtime.quant.formats import Format
from windlass_runtime.quant.recipe import TensorRecipe
from windlass_runtime.sparsity.gate import LayerGate

Matrix = torch.Tensor | packed.PackedWeight
"""[outputs, inputs] in floats, or packed integers"""


class Overlay(Protocol):
    """Tensors in the place of the checkpoint's."""

    def entry(self, name: str) -> TensorRecipe | None:
        """How a tensor is kept; None where the checkpoint's own is used."""
        ...

    def plain(self, name: str) -> torch.Tensor:
        """A tensor in floats."""
        ...

    def codes(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [N, K] int8 and scales of an integer tensor; see `packed.pack`."""
        ...


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
    feed_forward: FeedForward
    """`gate_up` and `down` as one chain, with a selection of blocks where a gate has one."""


class Gates(Protocol):
    """What is known of the neurons of chosen layers."""

    def layer(self, layer: int) -> LayerGate | None:
        """None for a layer that stays dense, with its neurons as the checkpoint has them."""
        ...


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model, each layer on one device. Norms may be kept in a wider format than matrices."""

    embedding: Matrix
    """[V, E]"""
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor
    """[E]"""
    head: Projection
    """[V, E]; the embedding itself when tied and on its device."""
    size_bytes: int


def weight_bytes(spec: ModelSpec, dtype: torch.dtype, entries: Mapping[str, TensorRecipe] | None = None) -> int:
    """Bytes the weights will take on one device, known before any is read; `entries` say which become integers."""
    return weight_parts(spec, dtype, entries).total


def weight_parts(spec: ModelSpec, dtype: torch.dtype, entries: Mapping[str, TensorRecipe] | None = None) -> ModelParts:
    """The same by what must stay on one device."""
    kept = entries or {}
    sizes = {
        name: _tensor_bytes(torch.Size(shape), dtype, kept.get(name))
        for name, shape in layout.expected_tensors(spec).items()
    }
    embedding, norm, head = sizes.pop(layout.EMBEDDING), sizes.pop(layout.FINAL_NORM), sizes.pop(layout.HEAD, None)
    tied = spec.tied_head and layout.HEAD not in kept
    if head is None:
        table = torch.Size((spec.vocabulary_size, spec.hidden_size))
        head = embedding if tied else _tensor_bytes(table, dtype, kept[layout.HEAD])
    layers = [0] * spec.layer_count
    for name, size in sizes.items():
        layers[layout.layer_of(name)] += size
    return ModelParts(tuple(layers), embedding, head + norm, embedding if tied else 0)


def _tensor_bytes(shape: torch.Size, dtype: torch.dtype, entry: TensorRecipe | None) -> int:
    if entry is None or not entry.format.is_integer:
        return shape.numel() * dtype.itemsize
    if entry.format is Format.INT4:
        return shape.numel() // 2 + shape.numel() // entry.group * 2
    return shape.numel() + shape[0] * 4


def load_weights(
    spec: ModelSpec,
    tensors: CheckpointTensors,
    *,
    dtype: torch.dtype,
    norm_dtype: torch.dtype,
    devices: Sequence[torch.device],
    overlay: Overlay | None = None,
    gates: Gates | None = None,
) -> Weights:
    """Read the model. Peak memory is the result plus one read chunk, or one packed projection unpacked.

    devices  one per layer; the embedding is with the first, final norm and head with the last
    """
    assert len(devices) == spec.layer_count
    first = LayerReader(spec, tensors, dtype, norm_dtype, devices[0], overlay, gates)
    last = replace(first, device=devices[-1])
    embedding = first.read_embedding()
    layers = tuple(replace(first, device=device).read_layer(layer) for layer, device in enumerate(devices))
    alone = devices[0] == devices[-1]
    final_norm, head = last.read_final_norm(), last.read_head(embedding if alone else None)
    entries = {name: entry for name in _all_names(spec) if (entry := first.entry(name)) is not None}
    parts = weight_parts(spec, dtype, entries)
    return Weights(embedding, layers, final_norm, head, parts.total + (0 if alone else parts.shared))


def _all_names(spec: ModelSpec) -> list[str]:
    return [*layout.expected_tensors(spec), *([layout.HEAD] if spec.tied_head else [])]


@dataclass(frozen=True, slots=True)
class LayerReader:
    """Reads parts of a model, one at a time."""

    spec: ModelSpec
    tensors: CheckpointTensors
    dtype: torch.dtype
    norm_dtype: torch.dtype
    device: torch.device
    overlay: Overlay | None = None
    gates: Gates | None = None

    def entry(self, name: str) -> TensorRecipe | None:
        """How the overlay keeps a tensor."""
        return None if self.overlay is None else self.overlay.entry(name)

    def read_embedding(self) -> Matrix:
        return self._read_matrix(layout.EMBEDDING)

    def read_final_norm(self) -> torch.Tensor:
        return self.read_norm(layout.FINAL_NORM, self.spec.hidden_size)

    def read_head(self, embedding: Matrix | None) -> Projection:
        """The output head; the embedding itself when tied, unless the overlay keeps a copy of its own.

        embedding  None has it read again where it is needed
        """
        entry = self.entry(layout.HEAD)
        if self.spec.tied_head and entry is None:
            return Projection(self.read_embedding() if embedding is None else embedding, None)
        return Projection(self._read_matrix(layout.HEAD), None, entry.input_scale if entry else 0.0)

    def _read_matrix(self, name: str) -> Matrix:
        entry = self.entry(name)
        if self.overlay is not None and entry is not None and entry.format.is_integer:
            return packed.pack(*self.overlay.codes(name)).to(self.device)
        matrix = torch.empty(self.spec.vocabulary_size, self.spec.hidden_size, dtype=self.dtype, device=self.device)
        self._read_into(name, matrix)
        return matrix

    def _read_into(self, name: str, destination: torch.Tensor) -> None:
        if self.overlay is not None and self.overlay.entry(name) is not None:
            destination.copy_(self.overlay.plain(name))
        else:
            self.tensors.read_into(name, destination)

    def read_norm(self, name: str, size: int) -> torch.Tensor:
        tensor = torch.empty(size, dtype=self.norm_dtype, device=self.device)
        self._read_into(name, tensor)
        return tensor

    def read_layer(self, layer: int) -> LayerWeights:
        prefix, spec, hidden = layout.layer_prefix(layer), self.spec, self.spec.hidden_size
        gate = None if self.gates is None else self.gates.layer(layer)
        gate_up, down = self._read_feed_forward(f"{prefix}mlp.", gate)
        return LayerWeights(
            attention_norm=self.read_norm(f"{prefix}input_layernorm.weight", hidden),
            query_key_value=self._read_query_key_value(f"{prefix}self_attn."),
            query_norm=self._read_head_norm(f"{prefix}self_attn.q_norm.weight"),
            key_norm=self._read_head_norm(f"{prefix}self_attn.k_norm.weight"),
            output=self._read_stacked(
                (f"{prefix}self_attn.o_proj",), (hidden,), spec.query_heads * spec.head_size, spec.output_bias, leave
            ),
            attention_output_norm=self._read_sandwich_norm(f"{prefix}post_self_attn_layernorm.weight"),
            feed_forward_norm=self.read_norm(f"{prefix}post_attention_layernorm.weight", hidden),
            gate_up=gate_up,
            down=down,
            feed_forward_output_norm=self._read_sandwich_norm(f"{prefix}post_mlp_layernorm.weight"),
            feed_forward=FeedForward(gate_up, down, None if gate is None else gate.selection),
        )

    def _read_feed_forward(self, prefix: str, gate: LayerGate | None) -> tuple[Projection, Projection]:
        """gate_up and down; with a gate, their neurons are in its order."""
        spec, neurons, bias = self.spec, self.spec.feed_forward_size, self.spec.feed_forward_bias
        names = ("gate_up_proj",) if spec.fused_gate_up else ("gate_proj", "up_proj")
        order = torch.arange(neurons) if gate is None else gate.order.to(self.device, torch.int64)

        def reorder_rows(rows: torch.Tensor) -> None:
            for half in rows.chunk(2):
                half.copy_(half[order])

        def reorder_columns(matrix: torch.Tensor) -> None:
            if matrix.dim() == 2:  # biases and scales of rows have none
                unit = neurons // matrix.shape[1]  # columns that share a scale
                matrix.copy_(matrix[:, order[::unit] // unit])

        gate_up = self._read_stacked(
            tuple(prefix + name for name in names),
            (2 * neurons // len(names),) * len(names),
            spec.hidden_size,
            bias,
            leave if gate is None else reorder_rows,
        )
        down = self._read_stacked(
            (f"{prefix}down_proj",), (spec.hidden_size,), neurons, bias, leave if gate is None else reorder_columns
        )
        return gate_up, down

    def _read_stacked(
        self,
        names: tuple[str, ...],
        outputs: tuple[int, ...],
        inputs: int,
        has_bias: bool,
        reorder: Callable[[torch.Tensor], None],
    ) -> Projection:
        """Projections of one input as one; `reorder` permutes rows or columns of whatever has them, in place."""
        bias = torch.empty(sum(outputs), dtype=self.dtype, device=self.device) if has_bias else None
        if bias is not None:
            for name, part in zip(names, torch.split(bias, list(outputs)), strict=True):
                self._read_into(f"{name}.bias", part)
            reorder(bias)
        entry = self._common_entry(names)
        if self.overlay is not None and entry is not None and entry.format.is_integer:
            parts = [self.overlay.codes(f"{name}.weight") for name in names]
            codes, scales = (torch.cat(part) for part in zip(*parts, strict=True))
            reorder(codes)
            reorder(scales)
            return Projection(packed.pack(codes, scales).to(self.device), bias, entry.input_scale)
        weight = torch.empty(sum(outputs), inputs, dtype=self.dtype, device=self.device)
        for name, rows in zip(names, torch.split(weight, list(outputs)), strict=True):
            self._read_into(f"{name}.weight", rows)
        reorder(weight)
        return Projection(weight, bias)

    def _common_entry(self, names: tuple[str, ...]) -> TensorRecipe | None:
        """The format that tensors of one projection share. Raises RecipeError if they do not."""
        entries = [self.entry(f"{name}.weight") for name in names]
        kinds = [(e.format, e.group, e.input_scale) if e and e.format.is_integer else None for e in entries]
        for name, kind in zip(names, kinds, strict=True):
            if kind != kinds[0]:
                raise RecipeError(f"recipe: {name}.weight: expected the format of {names[0]}.weight, found another")
        return entries[0]

    def _read_query_key_value(self, prefix: str) -> Projection:
        spec = self.spec
        sizes = tuple(
            heads * spec.head_size for heads in (spec.query_heads, spec.key_value_heads, spec.key_value_heads)
        )
        names = tuple(f"{prefix}{name}_proj" for name in "qkv")
        return self._read_stacked(names, sizes, spec.hidden_size, spec.query_key_value_bias, self._pair_heads)

    def _pair_heads(self, rows: torch.Tensor) -> None:
        spec = self.spec
        if not spec.rope.interleaved:
            for head in torch.split(rows, spec.head_size)[: spec.query_heads + spec.key_value_heads]:
                pair_neighbours(head, spec.rope.rotary_size)

    def _read_head_norm(self, name: str) -> torch.Tensor | None:
        if not self.spec.query_key_norm:
            return None
        norm = self.read_norm(name, self.spec.head_size)
        if not self.spec.rope.interleaved:
            pair_neighbours(norm, self.spec.rope.rotary_size)
        return norm

    def _read_sandwich_norm(self, name: str) -> torch.Tensor | None:
        return self.read_norm(name, self.spec.hidden_size) if self.spec.sandwich_norms else None


def leave(_: torch.Tensor) -> None:
    """The order of the checkpoint."""


def pair_neighbours(head: torch.Tensor, rotary_size: int) -> None:
    """Reorder one head in place so that rotary partners lie side by side.

    head  [D, ...]  element i < n/2 goes to 2i, element i + n/2 to 2i + 1, n the rotary size; the rest stays

    Queries and keys are reordered alike, so their dot products are those of the checkpoint.
    """
    rotary = head[:rotary_size]
    first, second = rotary.clone().chunk(2)
    rotary[0::2] = first
    rotary[1::2] = second
