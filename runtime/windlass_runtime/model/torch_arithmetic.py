"""Plain torch on any device, in the format of the weights: the path of GPUs, and of CPUs without native kernels.

Packed weights are expanded for each product: right on every device and small in memory, but no faster than floats.
Their static input scales are not applied, since the inputs stay floats.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from windlass_kernels import packed, quantized_pages, reference
from windlass_kernels.feed_forward import Projection, Selected
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.kv.store import PAGE_TOKENS, Layer, QuantizedLayer
from windlass_runtime.model.paged_attention import DecodingGroup, attend_decoding, attend_span, group_decoding
from windlass_runtime.model.quantized_attention import attend_quantized_span
from windlass_runtime.model.ragged import RaggedStep
from windlass_runtime.model.rope import inverse_frequencies, rotate_, turns_of
from windlass_runtime.model.sparse_step import SparseStep
from windlass_runtime.model.tails import TailStep
from windlass_runtime.model.weights import LayerWeights, Matrix


class TorchArithmetic:
    """`Arithmetic` by torch's own ops."""

    def __init__(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> None:
        """dtype is the format of activations; weights in floats have it too."""
        self._spec = spec
        self._dtype = dtype
        self._frequencies = inverse_frequencies(spec.rope).to(device)

    def begin(self, step: RaggedStep, tails: TailStep | None) -> TorchAttention:
        return TorchAttention(self._spec, step, tails, self._frequencies)

    def embed(self, token_ids: torch.Tensor, table: Matrix) -> torch.Tensor:
        if isinstance(table, packed.PackedWeight):
            return packed.rows(token_ids, table).to(self._dtype)
        return functional.embedding(token_ids, table)

    def project(self, inputs: torch.Tensor, projection: Projection) -> torch.Tensor:
        weight = projection.weight
        if isinstance(weight, packed.PackedWeight):
            weight = packed.dequantize(weight, inputs.dtype)
        return functional.linear(inputs, weight, projection.bias)

    def norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, weight.shape, weight, self._spec.norm_epsilon)

    def add_norm(self, residual: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.norm(residual.add_(delta), weight)

    def feed_forward(
        self, inputs: torch.Tensor, weights: LayerWeights, hints: torch.Tensor, sparse: SparseStep | None
    ) -> torch.Tensor:
        gate_up, selection = self.project(inputs, weights.gate_up), weights.feed_forward.selection
        gate, up = gate_up.chunk(2, dim=-1)
        if sparse is None or selection is None:
            return self.project(functional.silu(gate).mul_(up), weights.down)
        active = selection.choose(hints, gate_up) | sparse.all_rows[:, None]
        gated = functional.silu(gate).mul_(up)
        blocks = active.shape[1]
        mass = None
        if sparse.is_probed(weights.feed_forward):
            mass = reference.block_mass(gated.float(), selection.norms, blocks)
        found = Selected(self.project(reference.keep_blocks(gated, active), weights.down), active, blocks, mass)
        sparse.note(weights.feed_forward, found)
        return found.y


class TorchAttention:
    """`Attention` by torch's own ops.

    On a CPU each sequence is attended by itself, so that no neighbour can change its result; on a GPU those that decode
    share calls, because launches cost more there than padding.
    """

    def __init__(self, spec: ModelSpec, step: RaggedStep, tails: TailStep | None, frequencies: torch.Tensor) -> None:
        self._spec = spec
        self._step = step
        self._tails = tails
        self._frequencies = frequencies
        self._turns = turns_of(step.positions, frequencies)
        self._page_ids = torch.div(step.slots, PAGE_TOKENS, rounding_mode="floor")
        self._offsets = step.slots % PAGE_TOKENS
        self._groups: list[DecodingGroup] = []
        self._single = list(range(len(step.spans)))
        if step.slots.device.type == "cuda":
            self._groups = group_decoding(step, spec.key_value_heads * PAGE_TOKENS * spec.head_size)
            self._single = [row for row in self._single if step.spans[row].count > 1]

    def attend(
        self, query_key_value: torch.Tensor, weights: LayerWeights, pages: Layer, window: int | None
    ) -> torch.Tensor:
        spec = self._spec
        heads = query_key_value.view(len(query_key_value), -1, spec.head_size)
        query, key, value = torch.split(heads, [spec.query_heads, spec.key_value_heads, spec.key_value_heads], dim=1)
        for part, weight in ((query, weights.query_norm), (key, weights.key_norm)):
            if weight is not None:
                part.copy_(functional.rms_norm(part, weight.shape, weight, spec.norm_epsilon))
        if isinstance(pages, QuantizedLayer):
            return self._attend_quantized(query, key, value, pages, window)
        rotate_(heads[:, : spec.query_heads + spec.key_value_heads], self._turns)
        pages.write(self._page_ids, self._offsets, key, value)
        result = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        for group in self._groups:
            attend_decoding(group, query, pages, window, result)
        for row in self._single:
            attend_span(self._step, row, query, pages, window, result)
        return result.flatten(1)

    def _attend_quantized(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: QuantizedLayer, window: int | None
    ) -> torch.Tensor:
        tails, floats = self._tails, layer.tails
        assert tails is not None, "a step without tails met a layer of 4 or 8 bits"
        rotate_(query, self._turns)
        rotate_(key, turns_of(tails.offsets, self._frequencies))
        places = tails.tail_of[layer.index]
        floats.write(places, tails.offsets, key.to(floats.keys.dtype), value.to(floats.values.dtype))
        quantized_pages.fill(
            layer.pages,
            tails.finished,
            floats.keys,
            floats.values,
            tails.finished_tails[layer.index],
            layer.page_format,
        )
        result = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        for row in range(len(self._step.spans)):
            attend_quantized_span(self._step, row, query, layer, places, self._frequencies, window, result)
        tails.move(floats, layer.index)
        return result.flatten(1)
