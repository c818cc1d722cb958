"""The native CPU kernels: activations and norms in FP32, weights and pages in any format, weights in integers too.

A token's result is bitwise the same alone and in every batch.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from windlass_kernels import ops, packed, quantized_pages
from windlass_kernels.feed_forward import Projection
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.kv.store import PAGE_TOKENS, Layer, LayerPages, QuantizedLayer
from windlass_runtime.model.ragged import RaggedStep
from windlass_runtime.model.rope import inverse_frequencies
from windlass_runtime.model.sparse_step import SparseStep
from windlass_runtime.model.tails import TailStep
from windlass_runtime.model.weights import LayerWeights, Matrix


class KernelArithmetic:
    """`Arithmetic` by `windlass_kernels`."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._frequencies = inverse_frequencies(spec.rope)

    def begin(self, step: RaggedStep, tails: TailStep | None) -> KernelAttention:
        return KernelAttention(self._spec, step, tails, self._frequencies)

    def embed(self, token_ids: torch.Tensor, table: Matrix) -> torch.Tensor:
        if isinstance(table, packed.PackedWeight):
            return packed.rows(token_ids, table)
        return functional.embedding(token_ids, table).float()

    def project(self, inputs: torch.Tensor, projection: Projection) -> torch.Tensor:
        return projection.multiply(inputs)

    def norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return ops.rms_norm(hidden, weight, self._spec.norm_epsilon)

    def add_norm(self, residual: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return ops.add_rms_norm_(residual, delta, weight, self._spec.norm_epsilon, out=delta)

    def feed_forward(
        self, inputs: torch.Tensor, weights: LayerWeights, hints: torch.Tensor, sparse: SparseStep | None
    ) -> torch.Tensor:
        chain = weights.feed_forward
        if sparse is None or chain.selection is None:
            return chain.run(inputs)
        found = chain.run_selected(inputs, hints, sparse.all_rows, with_mass=sparse.is_probed(chain))
        sparse.note(chain, found)
        return found.y


class KernelAttention:
    """`Attention` by `windlass_kernels`."""

    def __init__(self, spec: ModelSpec, step: RaggedStep, tails: TailStep | None, frequencies: torch.Tensor) -> None:
        self._spec = spec
        self._step = step
        self._tails = tails
        self._scale = spec.head_size**-0.5
        # The angles are those of this step's tokens only, so a token finds its own by its index; behind them those
        # of the places in a page.
        count = len(step.positions)
        self._angle_of = torch.arange(count, dtype=torch.int32)
        turned = step.positions if tails is None else torch.cat((step.positions, torch.arange(PAGE_TOKENS)))
        self._cos, self._sin = _angles(turned, frequencies)
        if tails is not None:
            self._key_angle_of = tails.offsets + count
            self._base = _angles(torch.arange(step.page_tables.shape[1]) * PAGE_TOKENS, frequencies)

    def attend(
        self, query_key_value: torch.Tensor, weights: LayerWeights, pages: Layer, window: int | None
    ) -> torch.Tensor:
        step = self._step
        if isinstance(pages, QuantizedLayer):
            return self._attend_quantized(query_key_value, weights, pages, window)
        query = self._store(query_key_value, weights, pages, step.slots, self._angle_of)
        attended = ops.paged_attention(
            query,
            pages.keys,
            pages.values,
            step.page_tables,
            step.row_of,
            step.positions,
            self._scale,
            window or 0,
        )
        return attended.flatten(1)

    def _attend_quantized(
        self, query_key_value: torch.Tensor, weights: LayerWeights, layer: QuantizedLayer, window: int | None
    ) -> torch.Tensor:
        step, tails = self._step, self._tails
        assert tails is not None, "a step without tails met a layer of 4 or 8 bits"
        floats, index = layer.tails, layer.index
        query = self._store(query_key_value, weights, floats, tails.slots[index], self._key_angle_of)
        quantized_pages.fill(
            layer.pages, tails.finished, floats.keys, floats.values, tails.finished_tails[index], layer.page_format
        )
        attended = quantized_pages.attention(
            query,
            layer.pages,
            floats.keys,
            floats.values,
            step.page_tables,
            tails.tail_of[index],
            step.row_of,
            step.positions,
            *self._base,
            self._scale,
            layer.page_format,
            window or 0,
        )
        tails.move(floats, index)
        return attended.flatten(1)

    def _store(
        self,
        query_key_value: torch.Tensor,
        weights: LayerWeights,
        floats: LayerPages,
        slots: torch.Tensor,
        key_angle_of: torch.Tensor,
    ) -> torch.Tensor:
        """Turn queries and keys, write keys and values; returns the queries [T, Hq, D]."""
        return ops.rope_and_store(
            query_key_value,
            self._cos,
            self._sin,
            self._angle_of,
            slots,
            floats.keys,
            floats.values,
            heads=self._spec.query_heads,
            interleaved=True,
            q_norm=weights.query_norm,
            k_norm=weights.key_norm,
            eps=self._spec.norm_epsilon,
            key_angles=key_angle_of,
        )


def _angles(positions: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of each position's turns: two [n, C] float32."""
    angles = positions[:, None].float() * frequencies
    return angles.cos(), angles.sin()
