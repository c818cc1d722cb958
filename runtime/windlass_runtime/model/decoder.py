"""The decoder: one forward pass over a ragged step, for every family, driven by the spec and the loaded weights."""

from __future__ import annotations

import torch
from torch.nn import functional

from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.kv.store import LayerPages, PageStore
from windlass_runtime.model.attention import attend
from windlass_runtime.model.ragged import RaggedStep
from windlass_runtime.model.rope import inverse_frequencies, rotate_, rotations
from windlass_runtime.model.weights import LayerWeights, Projection, Weights


class Decoder:
    """A model on one device. Holds no state between steps besides its weights."""

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        self.spec = spec
        self.weights = weights
        self._frequencies = inverse_frequencies(spec.rope).to(weights.embedding.device)

    def forward(self, step: RaggedStep, store: PageStore, logit_rows: torch.Tensor) -> torch.Tensor:
        """Compute a step and write its keys and values into the store.

        logit_rows  [N] int64     indices into the step's T tokens whose logits are wanted
        returns     [N, V] float32, newly allocated
        """
        hidden = functional.embedding(step.token_ids, self.weights.embedding)
        turns = rotations(step.positions, self._frequencies)
        for weights, pages, window in zip(self.weights.layers, store.layers, self.spec.windows, strict=True):
            hidden = self._layer(hidden, weights, step, turns, pages, window)
        if not len(logit_rows):
            return hidden.new_empty((0, self.spec.vocabulary_size), dtype=torch.float32)
        wanted = self._norm(hidden.index_select(0, logit_rows), self.weights.final_norm)
        return functional.linear(wanted, self.weights.head).float()

    def _layer(
        self,
        hidden: torch.Tensor,
        weights: LayerWeights,
        step: RaggedStep,
        turns: torch.Tensor,
        pages: LayerPages,
        window: int | None,
    ) -> torch.Tensor:
        attended = self._attention(self._norm(hidden, weights.attention_norm), weights, step, turns, pages, window)
        if weights.attention_output_norm is not None:
            attended = self._norm(attended, weights.attention_output_norm)
        hidden = attended.add_(hidden)
        fed = _feed_forward(self._norm(hidden, weights.feed_forward_norm), weights)
        if weights.feed_forward_output_norm is not None:
            fed = self._norm(fed, weights.feed_forward_output_norm)
        return fed.add_(hidden)

    def _attention(
        self,
        hidden: torch.Tensor,
        weights: LayerWeights,
        step: RaggedStep,
        turns: torch.Tensor,
        pages: LayerPages,
        window: int | None,
    ) -> torch.Tensor:
        spec = self.spec
        heads = _project(hidden, weights.query_key_value).view(len(hidden), -1, spec.head_size)
        rotated = spec.query_heads + spec.key_value_heads
        if weights.query_norm is not None and weights.key_norm is not None:
            query, key = heads[:, : spec.query_heads], heads[:, spec.query_heads : rotated]
            query.copy_(self._norm(query, weights.query_norm))
            key.copy_(self._norm(key, weights.key_norm))
        rotate_(heads[:, :rotated], turns)
        query, key, value = torch.split(heads, [spec.query_heads, spec.key_value_heads, spec.key_value_heads], dim=1)
        pages.write(step.page_ids, step.offsets, key, value)
        return _project(attend(step, query, pages, window).flatten(1), weights.output)

    def _norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, weight.shape, weight, self.spec.norm_epsilon)


def _project(inputs: torch.Tensor, projection: Projection) -> torch.Tensor:
    return functional.linear(inputs, projection.weight, projection.bias)


def _feed_forward(hidden: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
    gate, up = _project(hidden, weights.gate_up).chunk(2, dim=-1)
    return _project(functional.silu(gate).mul_(up), weights.down)
