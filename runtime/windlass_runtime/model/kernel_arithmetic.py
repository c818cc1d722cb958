"""The native CPU kernels: activations and norms in FP32, weights and pages in any format, weights in integers too.

A token's result is bitwise the same alone and in every batch.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from windlass_kernels import ops, packed
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.kv.store import LayerPages
from windlass_runtime.model.ragged import RaggedStep
from windlass_runtime.model.rope import inverse_frequencies
from windlass_runtime.model.weights import LayerWeights, Matrix, Projection


class KernelArithmetic:
    """`Arithmetic` by `windlass_kernels`."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._frequencies = inverse_frequencies(spec.rope)

    def begin(self, step: RaggedStep) -> KernelAttention:
        angles = step.positions[:, None].float() * self._frequencies
        return KernelAttention(self._spec, step, angles.cos(), angles.sin())

    def embed(self, token_ids: torch.Tensor, table: Matrix) -> torch.Tensor:
        if isinstance(table, packed.PackedWeight):
            return packed.rows(token_ids, table)
        return functional.embedding(token_ids, table).float()

    def project(self, inputs: torch.Tensor, projection: Projection) -> torch.Tensor:
        if isinstance(projection.weight, packed.PackedWeight):
            return packed.linear(inputs, projection.weight, projection.bias, input_scale=projection.input_scale)
        return ops.linear(inputs, projection.weight, projection.bias)

    def norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return ops.rms_norm(hidden, weight, self._spec.norm_epsilon)

    def add_norm(self, residual: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return ops.add_rms_norm_(residual, delta, weight, self._spec.norm_epsilon, out=delta)

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        return ops.silu_mul(gate_up)


class KernelAttention:
    """`Attention` by `windlass_kernels`."""

    def __init__(self, spec: ModelSpec, step: RaggedStep, cos: torch.Tensor, sin: torch.Tensor) -> None:
        self._spec = spec
        self._step = step
        self._cos = cos
        self._sin = sin
        # The angles are those of this step's tokens only, so a token finds its own by its index.
        self._angle_of = torch.arange(len(cos), dtype=torch.int32)
        self._scale = spec.head_size**-0.5

    def attend(
        self, query_key_value: torch.Tensor, weights: LayerWeights, pages: LayerPages, window: int | None
    ) -> torch.Tensor:
        step = self._step
        query = ops.rope_and_store(
            query_key_value,
            self._cos,
            self._sin,
            self._angle_of,
            step.slots,
            pages.keys,
            pages.values,
            heads=self._spec.query_heads,
            interleaved=True,
            q_norm=weights.query_norm,
            k_norm=weights.key_norm,
            eps=self._spec.norm_epsilon,
        )
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
