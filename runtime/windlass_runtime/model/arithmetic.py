"""What a decoder computes with: `torch_arithmetic` on any device, `kernel_arithmetic` on a CPU with native kernels."""

from __future__ import annotations

from typing import Protocol

import torch

from windlass_kernels.feed_forward import Projection
from windlass_runtime.kv.store import Layer
from windlass_runtime.model.ragged import RaggedStep
from windlass_runtime.model.sparse_step import SparseStep
from windlass_runtime.model.tails import TailStep
from windlass_runtime.model.weights import LayerWeights, Matrix


class Attention(Protocol):
    """Attention of one step; holds what all layers of the step share."""

    def attend(
        self, query_key_value: torch.Tensor, weights: LayerWeights, pages: Layer, window: int | None
    ) -> torch.Tensor:
        """Norm and rotate queries and keys, store keys and values, and attend each token to its sequence up to itself.

        query_key_value  [T, (Hq + 2 H) * D]  consumed: its content is undefined afterwards
        window           latest positions a token sees, itself included; None for all
        returns          [T, Hq * D]          newly allocated; writes the step's slots of `pages`
        """
        ...


class Arithmetic(Protocol):
    """The ops between embedding and logits. T tokens, E hidden size, F feed-forward size; results are new tensors."""

    def begin(self, step: RaggedStep, tails: TailStep | None) -> Attention:
        """Prepare the attention of one step; the result is valid for that step only.

        tails  where tokens pass through floats; None without layers of 4 or 8 bits
        """
        ...

    def embed(self, token_ids: torch.Tensor, table: Matrix) -> torch.Tensor:
        """[T] int32 of [V, E] to [T, E] activations."""
        ...

    def project(self, inputs: torch.Tensor, projection: Projection) -> torch.Tensor:
        """[T, inputs] to [T, outputs]."""
        ...

    def norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Root mean square norm of [T, E]."""
        ...

    def add_norm(self, residual: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Add `delta` to `residual` in place, and return the norm of the sum; all [T, E]. Consumes `delta`."""
        ...

    def feed_forward(
        self, inputs: torch.Tensor, weights: LayerWeights, hints: torch.Tensor, sparse: SparseStep | None
    ) -> torch.Tensor:
        """Gate, SiLU, up and down: [T, E] to [T, E].

        hints   [T, E]  the layer's own normed input, from which the blocks that a token wants are predicted
        sparse  None where all tokens use all blocks; else `weights.feed_forward` may hold a selection
        """
        ...
