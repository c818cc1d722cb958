"""The decoder: one forward pass over a ragged step, for every family, driven by the spec and the loaded weights."""

from __future__ import annotations

import torch

from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.kv.store import PageStore
from windlass_runtime.model.arithmetic import Arithmetic
from windlass_runtime.model.ragged import RaggedStep
from windlass_runtime.model.weights import LayerWeights, Weights


class Decoder:
    """A model on one device. Holds no state between steps besides its weights."""

    def __init__(self, spec: ModelSpec, weights: Weights, arithmetic: Arithmetic) -> None:
        self.spec = spec
        self.weights = weights
        self._arithmetic = arithmetic

    def forward(self, step: RaggedStep, store: PageStore, logit_rows: torch.Tensor) -> torch.Tensor:
        """Compute a step and write its keys and values into the store.

        logit_rows  [N] int64     indices into the step's T tokens whose logits are wanted
        returns     [N, V] float32, newly allocated
        """
        arithmetic, attention = self._arithmetic, self._arithmetic.begin(step)
        residual = arithmetic.embed(step.token_ids, self.weights.embedding)
        normed, delta = arithmetic.norm(residual, self.weights.layers[0].attention_norm), residual
        for index, (weights, pages) in enumerate(zip(self.weights.layers, store.layers, strict=True)):
            if index:
                normed = arithmetic.add_norm(residual, delta, weights.attention_norm)
            queried = arithmetic.project(normed, weights.query_key_value)
            attended = attention.attend(queried, weights, pages, self.spec.windows[index])
            delta = arithmetic.project(attended, weights.output)
            if weights.attention_output_norm is not None:
                delta = arithmetic.norm(delta, weights.attention_output_norm)
            delta = self._feed_forward(arithmetic.add_norm(residual, delta, weights.feed_forward_norm), weights)
        return self._logits(residual.index_select(0, logit_rows), delta.index_select(0, logit_rows))

    def _feed_forward(self, normed: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
        arithmetic = self._arithmetic
        gated = arithmetic.gate(arithmetic.project(normed, weights.gate_up))
        delta = arithmetic.project(gated, weights.down)
        if weights.feed_forward_output_norm is not None:
            delta = arithmetic.norm(delta, weights.feed_forward_output_norm)
        return delta

    def _logits(self, residual: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        if not len(residual):
            return residual.new_empty((0, self.spec.vocabulary_size), dtype=torch.float32)
        normed = self._arithmetic.add_norm(residual, delta, self.weights.final_norm)
        return self._arithmetic.project(normed, self.weights.head).float()
