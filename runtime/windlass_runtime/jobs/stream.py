"""Run a model layer by layer over many windows, with hidden states in a file: one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
import torch

from windlass_kernels import ops
from windlass_kernels.feed_forward import Projection
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.jobs.texts import Tokens
from windlass_runtime.kv.store import PageStore, float_layout, sequence_pages
from windlass_runtime.model.arithmetic import Arithmetic, Attention
from windlass_runtime.model.decoder import decode_layer
from windlass_runtime.model.kernel_arithmetic import KernelArithmetic
from windlass_runtime.model.ragged import RaggedStep, lay_out
from windlass_runtime.model.sparse_step import SparseLayers, SparseStep
from windlass_runtime.model.tails import TailStep
from windlass_runtime.model.torch_arithmetic import TorchArithmetic
from windlass_runtime.model.weights import LayerWeights, Matrix
from windlass_runtime.quant.equalize import InputStatistics

CPU: Final = torch.device("cpu")
_STEP_TOKENS: Final = 2048
_SAMPLED_INPUTS: Final = 512


def choose_arithmetic(spec: ModelSpec) -> Arithmetic:
    """What a replica on this machine's CPU would compute with, in FP32."""
    return KernelArithmetic(spec) if ops.available() else TorchArithmetic(spec, CPU, torch.float32)


@dataclass(frozen=True, slots=True)
class _Window:
    """A whole window as one sequence of a step."""

    token_ids: tuple[int, ...]
    page_table: tuple[int, ...]
    start: int = 0
    prompt_tokens: int = 0


class LayerStream:
    """Hidden states of windows through one layer after the other."""

    def __init__(self, spec: ModelSpec, arithmetic: Arithmetic, length: int) -> None:
        self._spec = spec
        self._arithmetic = arithmetic
        self._length = length
        self._together = max(1, _STEP_TOKENS // length)
        pages = self._together * sequence_pages(length)
        self._store = PageStore(float_layout(replace(spec, windows=(None,)), torch.float32), pages, devices=(CPU,))

    def embed(self, tokens: Tokens, table: Matrix, hidden: np.ndarray) -> None:
        """Fill hidden [S, L, E]."""
        for first, last in self._batches(len(tokens)):
            ids = torch.from_numpy(tokens[first:last].reshape(-1))
            hidden[first:last] = self._arithmetic.embed(ids, table).reshape(hidden[first:last].shape).numpy()

    def run(
        self,
        layer: int,
        weights: LayerWeights,
        before: np.ndarray,
        after: np.ndarray | None,
        watch: Watch | None = None,
        activation: SparseLayers | None = None,
    ) -> None:
        """From `before` to `after`, both [S, L, E]; without `after` only to watch.

        activation  lets every token leave out blocks of neurons, as one that was generated would
        """
        arithmetic = self._arithmetic if watch is None else _Watching(self._arithmetic, watch)
        for first, last in self._batches(len(before)):
            residual = torch.from_numpy(np.array(before[first:last], np.float32).reshape(-1, before.shape[-1]))
            normed = arithmetic.norm(residual, weights.attention_norm)
            windows = self._windows(last - first)
            delta = decode_layer(
                arithmetic,
                arithmetic.begin(lay_out(windows, CPU), None),
                residual,
                normed,
                weights,
                self._store.layers[0],
                self._spec.windows[layer],
                None if activation is None else activation.begin(windows, CPU),
            )
            if after is not None:
                after[first:last] = residual.add_(delta).reshape(after[first:last].shape).numpy()

    def _batches(self, count: int) -> Iterator[tuple[int, int]]:
        for first in range(0, count, self._together):
            yield first, min(first + self._together, count)

    def _windows(self, count: int) -> list[_Window]:
        pages = sequence_pages(self._length)
        tables = (tuple(range(index * pages, (index + 1) * pages)) for index in range(count))
        return [_Window((0,) * self._length, table) for table in tables]


class Watch(Protocol):
    """Sees what goes into each product of a layer."""

    def see(self, projection: Projection, inputs: torch.Tensor) -> None:
        """inputs  [T, K] valid during the call only."""
        ...


class InputWatch:
    """Gathers statistics of the inputs of chosen projections."""

    def __init__(self, projections: list[Projection], with_moments: list[bool], tokens: int) -> None:
        """tokens  how many will be seen in all; a part of them, evenly spread, is kept as a sample."""
        self._gatherings = {
            id(projection): _Gathering(projection.weight.shape[1], moments, max(1, tokens // _SAMPLED_INPUTS))
            for projection, moments in zip(projections, with_moments, strict=True)
        }

    def see(self, projection: Projection, inputs: torch.Tensor) -> None:
        gathering = self._gatherings.get(id(projection))
        if gathering is not None:
            gathering.add(inputs)

    def statistics(self, projection: Projection) -> InputStatistics:
        return self._gatherings[id(projection)].result()


class _Gathering:
    def __init__(self, columns: int, with_moments: bool, stride: int) -> None:
        self._squares = torch.zeros(columns, dtype=torch.float64)
        self._magnitudes = torch.zeros(columns, dtype=torch.float64)
        self._largest = torch.zeros(columns)
        self._moments = torch.zeros(columns, columns) if with_moments else None
        self._sample: list[torch.Tensor] = []
        self._stride = stride
        self._seen = 0

    def add(self, inputs: torch.Tensor) -> None:
        magnitudes = inputs.abs()
        self._squares += inputs.square().sum(0)
        self._magnitudes += magnitudes.sum(0)
        self._largest = torch.maximum(self._largest, magnitudes.amax(0))
        self._sample.append(inputs[-self._seen % self._stride :: self._stride].clone())
        if self._moments is not None:
            turned = inputs.T.contiguous()
            self._moments += ops.linear(turned, turned)
        self._seen += len(inputs)

    def result(self) -> InputStatistics:
        return InputStatistics(
            mean_square=(self._squares / self._seen).float().numpy(),
            mean_magnitude=(self._magnitudes / self._seen).float().numpy(),
            largest=self._largest.numpy(),
            sample=torch.cat(self._sample).numpy(),
            moments=None if self._moments is None else (self._moments / self._seen).numpy(),
        )


@dataclass(frozen=True, slots=True)
class _Watching:
    """An Arithmetic that shows what goes into each product."""

    inner: Arithmetic
    watch: Watch

    def project(self, inputs: torch.Tensor, projection: Projection) -> torch.Tensor:
        self.watch.see(projection, inputs)
        return self.inner.project(inputs, projection)

    def begin(self, step: RaggedStep, tails: TailStep | None) -> Attention:
        return self.inner.begin(step, tails)

    def embed(self, token_ids: torch.Tensor, table: Matrix) -> torch.Tensor:
        return self.inner.embed(token_ids, table)

    def norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.inner.norm(hidden, weight)

    def add_norm(self, residual: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.inner.add_norm(residual, delta, weight)

    def feed_forward(
        self, inputs: torch.Tensor, weights: LayerWeights, _hints: torch.Tensor, _sparse: SparseStep | None
    ) -> torch.Tensor:
        gated = ops.silu_mul(self.project(inputs, weights.gate_up).float())
        return self.project(gated, weights.down)
