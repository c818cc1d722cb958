"""The decoder: one forward pass over a ragged step, for every family, driven by the spec and the loaded weights.

Layers may lie on several devices. A step visits them one after the other: what layers share is copied where it crosses
to the next device, so every layer computes the same numbers as on one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.kv.store import Layer, PageStore
from windlass_runtime.model.arithmetic import Arithmetic, Attention
from windlass_runtime.model.ragged import RaggedStep
from windlass_runtime.model.sparse_step import SparseStep
from windlass_runtime.model.tails import TailStep
from windlass_runtime.model.weights import LayerWeights, Weights


@dataclass(frozen=True, slots=True)
class Stage:
    """Neighbouring layers on one device, and what computes them."""

    layers: range
    device: torch.device
    arithmetic: Arithmetic


class Decoder:
    """A model on one device or several. Holds no state between steps besides its weights."""

    def __init__(self, spec: ModelSpec, weights: Weights, stages: Sequence[Stage]) -> None:
        """`stages` cover all layers in order; the first also has the embedding, the last the head."""
        assert [layer for stage in stages for layer in stage.layers] == list(range(spec.layer_count))
        self.spec = spec
        self.weights = weights
        self.stages = tuple(stages)

    def forward(
        self,
        step: RaggedStep,
        store: PageStore,
        logit_rows: torch.Tensor,
        tails: TailStep | None = None,
        sparse: SparseStep | None = None,
    ) -> torch.Tensor:
        """Compute a step and write its keys and values into the store.

        step              on the first stage's device; `logit_rows` and the result are on the last one's
        tails             needed for a store with layers of 4 or 8 bits, which are all on one device
        logit_rows  [N] int64     indices into the step's T tokens whose logits are wanted
        sparse      which tokens may leave out blocks of neurons; None for none of them
        returns     [N, V] float32, newly allocated
        """
        first, *others = self.stages
        residual = first.arithmetic.embed(step.token_ids, self.weights.embedding)
        delta = self._run(first, step, store, residual, None, tails, sparse)
        for stage in others:
            step, residual, delta = step.on(stage.device), residual.to(stage.device), delta.to(stage.device)
            delta = self._run(stage, step, store, residual, delta, tails, sparse)
        return self._logits(residual.index_select(0, logit_rows), delta.index_select(0, logit_rows))

    def _run(
        self,
        stage: Stage,
        step: RaggedStep,
        store: PageStore,
        residual: torch.Tensor,
        delta: torch.Tensor | None,
        tails: TailStep | None,
        sparse: SparseStep | None,
    ) -> torch.Tensor:
        """Layers of one stage.

        residual  [T, E]  gains what all but the last layer add, in place
        delta     [T, E]  what the layer before adds, consumed; None before the first layer
        returns   [T, E]  what the last layer adds
        """
        arithmetic, attention = stage.arithmetic, stage.arithmetic.begin(step, tails)
        for index in stage.layers:
            weights = self.weights.layers[index]
            if delta is None:
                normed = arithmetic.norm(residual, weights.attention_norm)
            else:
                normed = arithmetic.add_norm(residual, delta, weights.attention_norm)
            window = self.spec.windows[index]
            delta = decode_layer(arithmetic, attention, residual, normed, weights, store.layers[index], window, sparse)
        assert delta is not None
        return delta

    def _logits(self, residual: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        if not len(residual):
            return residual.new_empty((0, self.spec.vocabulary_size), dtype=torch.float32)
        arithmetic = self.stages[-1].arithmetic
        normed = arithmetic.add_norm(residual, delta, self.weights.final_norm)
        return arithmetic.project(normed, self.weights.head).float()


def decode_layer(
    arithmetic: Arithmetic,
    attention: Attention,
    residual: torch.Tensor,
    normed: torch.Tensor,
    weights: LayerWeights,
    pages: Layer,
    window: int | None,
    sparse: SparseStep | None = None,
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
    inner = arithmetic.add_norm(residual, delta, weights.feed_forward_norm)
    delta = arithmetic.feed_forward(inner, weights, normed, sparse)
    if weights.feed_forward_output_norm is not None:
        delta = arithmetic.norm(delta, weights.feed_forward_output_norm)
    return delta
