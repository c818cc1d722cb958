"""The feed-forward chain of one layer in one call: gate and up, SiLU, down; dense, or only the blocks a token wants.

Neurons are taken or left in blocks of NEURON_BLOCK. Which blocks a token uses depends on that token alone. Whether they
are computed one by one or with all others, which are then set to zero, is chosen by speed and changes no bit of a
result: products are batch invariant as those of `ops` are.

Dimensions: M tokens, E hidden size, F neurons, R features of a predictor, B = F / NEURON_BLOCK blocks.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from windlass_kernels import ops, packed, reference
from windlass_kernels.checks import FLOAT, STORED, WEIGHT_CODES, ShapeError, require
from windlass_kernels.native import FeedForwardFields, Library, MatrixFields

NEURON_BLOCK: Final = 64
"""Neurons that are computed or left out together."""
SPARSE_ROWS: Final = 8
"""Most tokens that are computed block by block."""
DENSE_ABOVE: Final = 0.85
"""Share of the blocks, in the union over all tokens, above which computing all is as fast."""
_DENSE, _PREDICTED, _BY_GATE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Projection:
    """A projection [N, K] in floats or packed, as `ops.linear` and `packed.linear` take it."""

    weight: Tensor | packed.PackedWeight
    bias: Tensor | None = None
    input_scale: float = 0.0

    def multiply(self, x: Tensor) -> Tensor:
        """[M, K] to [M, N]."""
        if isinstance(self.weight, packed.PackedWeight):
            return packed.linear(x, self.weight, self.bias, input_scale=self.input_scale)
        return ops.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class BlockSelection:
    """How a token chooses its blocks: by a predictor that sees the token before the layer, or else by its own gates."""

    cut: float
    """A block is wanted where its score lies above: predicted share of the output, or the block's largest gate."""
    norms: Tensor
    """[F] float32: size of each neuron's column of the down projection."""
    narrow: packed.PackedWeight | None = None
    """[R, E] 8 bits: the predictor's first product; the positive part counts. None: the gates decide."""
    wide: Tensor | None = None
    """[B, R] float32: the predictor's second product."""
    bias: Tensor | None = None
    """[B] float32: added to it; the softmax of the sum are shares."""

    def choose(self, hints: Tensor, gate_up: Tensor) -> Tensor:
        """The slow way to choose, on any device: [M, B] bool from hints [M, E] and gate_up [M, 2F]."""
        if self.narrow is None or self.wide is None or self.bias is None:
            gates = gate_up.chunk(2, dim=-1)[0].float()
            return reference.score_gates(gates, self.norms, len(self.norms) // NEURON_BLOCK) > self.cut
        features = packed.linear(hints.float(), self.narrow).clamp(min=0)
        return reference.linear(features, self.wide, self.bias).softmax(-1) > self.cut


@dataclass(frozen=True, slots=True)
class Selected:
    """What became of a call with a selection."""

    y: Tensor
    """[M, E] float32"""
    active: Tensor
    """[M, B] bool: blocks that count in each token's result."""
    computed: int
    """Blocks that were computed."""
    mass: Tensor | None
    """[M, B] float32: what each block contributes, or would; see `reference.block_mass`. Only on demand."""


class FeedForward:
    """The weights of one layer's chain, ready for use. Holds no state between calls."""

    def __init__(
        self,
        gate_up: Projection,
        down: Projection,
        selection: BlockSelection | None = None,
        *,
        sparse_rows: int = SPARSE_ROWS,
        dense_above: float = DENSE_ABOVE,
    ) -> None:
        """gate_up [2F, E] gates first, down [E, F].

        sparse_rows, dense_above   where computing all blocks becomes the faster way; they change speed only
        Raises ShapeError for shapes that do not fit together.
        """
        both, self._hidden = gate_up.weight.shape
        self._neurons = down.weight.shape[1]
        if both != 2 * self._neurons or down.weight.shape[0] != self._hidden:
            raise ShapeError(
                f"feed forward: down must be [{self._hidden}, {both // 2}] to follow gate_up [{both}, {self._hidden}], "
                f"found {list(down.weight.shape)}"
            )
        self._gate_up, self._down, self.selection = gate_up, down, selection
        self._blocks = self._neurons // NEURON_BLOCK
        device = gate_up.weight.device
        for name, dense in (("gate_up", gate_up), ("down", down)):
            if isinstance(dense.weight, Tensor):
                require("feed forward", name, dense.weight, tuple(dense.weight.shape), STORED, device)
            if dense.bias is not None:
                require("feed forward", f"bias of {name}", dense.bias, (dense.weight.shape[0],), STORED, device)
        if selection is not None:
            _check_selection(selection, self._hidden, self._neurons, device)
        self._library = ops.library_for(device) if self._hidden and self._neurons else None
        self._kept: list[Tensor] = []  # what the native fields point to
        self._dense, self._sparse = (
            self._build_fields(chosen, sparse_rows, dense_above) if self._library else None
            for chosen in (None, selection)
        )

    @property
    def blocks(self) -> int:
        """B; the neurons beyond the last whole block do not count, and there are none where a selection is."""
        return self._blocks

    def run(self, x: Tensor) -> Tensor:
        """All blocks: x [M, E] float32 to [M, E] float32, newly allocated."""
        require("feed forward", "x", x, (len(x), self._hidden), FLOAT, x.device)
        if self._library is None:
            return self._down.multiply(ops.silu_mul(self._gate_up.multiply(x)))
        y = torch.empty_like(x)
        self._call(self._library, self._dense, x, x, None, y, None, None)
        return y

    def run_selected(self, x: Tensor, hints: Tensor, all_rows: Tensor, *, with_mass: bool = False) -> Selected:
        """Each token's own blocks.

        x         [M, E] float32
        hints     [M, E] float32  what the predictor sees; not read where the gates decide
        all_rows  [M]    bool     tokens that use all blocks
        with_mass computes all blocks to say what the unwanted ones would have contributed; the result stays the same
        """
        selection = self.selection
        if selection is None:
            raise ValueError("feed forward: expected a selection of blocks, found none")
        require("feed forward", "x", x, (len(x), self._hidden), FLOAT, x.device)
        require("feed forward", "hints", hints, (len(x), self._hidden), FLOAT, x.device)
        require("feed forward", "all_rows", all_rows, (len(x),), (torch.bool,), x.device)
        if self._library is None:
            return self._run_slowly(selection, x, hints, all_rows, with_mass)
        y = torch.empty_like(x)
        active = torch.empty((len(x), self._blocks), dtype=torch.bool)
        mass = torch.empty((len(x), self._blocks)) if with_mass else None
        computed = self._call(self._library, self._sparse, x, hints, all_rows, y, active, mass)
        return Selected(y, active, self._blocks if computed < 0 else computed, mass)

    def _call(
        self,
        library: Library,
        fields: FeedForwardFields | None,
        x: Tensor,
        hints: Tensor,
        all_rows: Tensor | None,
        y: Tensor,
        active: Tensor | None,
        mass: Tensor | None,
    ) -> int:
        room = torch.empty(len(x) * 3 * self._neurons, dtype=torch.float32)
        computed: int = library.feed_forward(
            ctypes.addressof(fields) if fields is not None else None,
            x.data_ptr(),
            hints.data_ptr(),
            None if all_rows is None else all_rows.data_ptr(),
            room.data_ptr(),
            y.data_ptr(),
            None if active is None else active.data_ptr(),
            None if mass is None else mass.data_ptr(),
            len(x),
        )
        return computed

    def _run_slowly(
        self, selection: BlockSelection, x: Tensor, hints: Tensor, all_rows: Tensor, with_mass: bool
    ) -> Selected:
        gate_up = self._gate_up.multiply(x)
        active = selection.choose(hints, gate_up) | all_rows[:, None]
        gated = ops.silu_mul(gate_up)
        mass = reference.block_mass(gated, selection.norms, self._blocks) if with_mass else None
        return Selected(self._down.multiply(reference.keep_blocks(gated, active)), active, self._blocks, mass)

    def _build_fields(
        self, selection: BlockSelection | None, sparse_rows: int, dense_above: float
    ) -> FeedForwardFields:
        fields = FeedForwardFields(gate_up=self._matrix(self._gate_up), down=self._matrix(self._down), selection=_DENSE)
        if selection is None:
            return fields
        fields.selection = _BY_GATE if selection.narrow is None else _PREDICTED
        fields.sparse_rows, fields.dense_above = sparse_rows, dense_above
        fields.cut, fields.norms = selection.cut, self._keep(selection.norms)
        if selection.narrow is not None:
            fields.narrow = self._matrix(Projection(selection.narrow))
            fields.wide, fields.bias = self._keep(selection.wide), self._keep(selection.bias)
        return fields

    def _matrix(self, dense: Projection) -> MatrixFields:
        weight, bias = dense.weight, None if dense.bias is None else self._keep(dense.bias.float())
        n, k = weight.shape
        if isinstance(weight, packed.PackedWeight):
            data, scales = self._keep(weight.codes), self._keep(weight.scales)
            return MatrixFields(data, scales, bias, n, k, weight.group, dense.input_scale, weight.bits)
        return MatrixFields(self._keep(weight), None, bias, n, k, 0, 0.0, WEIGHT_CODES[weight.dtype])

    def _keep(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._kept.append(tensor)
        return tensor.data_ptr()


def _check_selection(selection: BlockSelection, hidden: int, neurons: int, device: torch.device) -> None:
    op, blocks = "feed forward", neurons // NEURON_BLOCK
    if neurons % NEURON_BLOCK:
        raise ShapeError(f"{op}: expected a multiple of {NEURON_BLOCK} neurons to select from, found {neurons}")
    require(op, "norms", selection.norms, (neurons,), FLOAT, device)
    parts = (selection.narrow, selection.wide, selection.bias)
    if selection.narrow is None or selection.wide is None or selection.bias is None:
        if any(part is not None for part in parts):
            raise ShapeError(f"{op}: expected narrow, wide and bias together, found only some of them")
        return
    features, columns = selection.narrow.shape
    if columns != hidden or selection.narrow.bits != 8:
        raise ShapeError(
            f"{op}: narrow must be [R, {hidden}] of 8 bits, found [{features}, {columns}] of {selection.narrow.bits}"
        )
    require(op, "wide", selection.wide, (blocks, features), FLOAT, device)
    require(op, "bias", selection.bias, (blocks,), FLOAT, device)
