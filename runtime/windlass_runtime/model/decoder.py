"""The decoder: one forward pass over a ragged step, for every family, driven by the spec and the loaded weights."""

from __future__ import annotations

import torch

from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.kv.store import LayerPages, PageStore
from windlass_runtime.model.arithmetic import Arithmetic, Attention
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
            delta = decode_layer(arithmetic, attention, residual, normed, weights, pages, self.spec.windows[index])
        return self._logits(residual.index_select(0, logit_rows), delta.index_select(0, logit_rows))

    def _logits(self, residual: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        if not len(residual):
            return residual.new_empty((0, self.spec.vocabulary_size), dtype=torch.float32)
        normed = self._arithmetic.add_norm(residual, delta, self.weights.final_norm)
        return self._arithmetic.project(normed, self.weights.head).float()


def decode_layer(
    arithmetic: Arithmetic,
    attention: Attention,
    residual: torch.Tensor,
    normed: torch.Tensor,
    weights: LayerWeights,
    pages: LayerPages,
    window: int | None,
) -> torch.Tensor:
    """One layer, from its normed input to what it adds to the residual.

    residual  [T, E]  gains the attention's output in place
    normed    [T, E]  the residual under `weights.attention_norm`
    returns   [T, E]  the feed-forward block's output, newly allocated, not yet added
    """
    attended = attention.attend(arithmetic.project(normed, weights.query_key_value), weights, pages, window)
    delta = arithmetic.project(attended, weights.output)
    if weights.attention_output_norm is not None:
        delta = arithmetic.norm(delta, weights.attention_output_norm)
    normed = arithmetic.add_norm(residual, delta, weights.feed_forward_norm)
    delta = arithmetic.project(arithmetic.gate(arithmetic.project(normed, weights.gate_up)), weights.down)
    if weights.feed_forward_output_norm is not None:
        delta = arithmetic.norm(delta, weights.feed_forward_output_norm)
    return delta
