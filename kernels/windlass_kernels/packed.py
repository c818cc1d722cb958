"""Weights of 8 or 4 bits: how they are kept, and the products with them.

A weight is kept once, in the kernels' own order (include/windlass/packed.h), and serves a head, a projection and an
embedding alike. On a CPU the activations of a product become 8-bit integers too, so its sum runs in integers: by
default with one scale per token and group of columns, chosen as the token arrives, or with one scale chosen beforehand.
Products are batch invariant as those of `ops` are. Other devices, and machines without a compiler, run `reference`.

Dimensions: M rows of a product, N rows and K columns of a weight, G groups of columns, P panels of 32 rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from windlass_kernels import ops, reference
from windlass_kernels.checks import FLOAT, INDEX, STORED, ShapeError, describe, require, require_dimensions

PANEL_ROWS = 32
WEIGHT_GROUPS = (32, 64, 128)
"""Columns that may share a scale in a 4-bit weight."""
INPUT_GROUP = 64
"""Columns of a token's input that share a scale in a product with an 8-bit weight; with 4 bits, the weight's group."""
LARGEST_CODE = {8: 127, 4: 7}
"""Codes run from minus this to this: symmetric, so that no value needs a zero point."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A [N, K] matrix of 8 or 4 bits. `pack` makes it; the order of `codes` is the kernels' affair."""

    bits: int
    rows: int
    columns: int
    group: int
    """Columns that share a scale of the input; in a 4-bit weight also of the weight."""
    codes: Tensor
    """uint8, one dimension"""
    scales: Tensor
    """8 bits: [P, 32] float32, one a row. 4 bits: [P, G, 32] float16."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def to(self, device: torch.device) -> PackedWeight:
        """The same weight on another device."""
        return replace(self, codes=self.codes.to(device), scales=self.scales.to(device))


def pack(codes: Tensor, scales: Tensor) -> PackedWeight:
    """Bring a quantised matrix into the kernels' order.

    codes   [N, K] int8               value = code * scale
    scales  [N]    float32            8 bits: codes in -127 .. 127
            [N, G] float16            4 bits: codes in -7 .. 7, K a multiple of G, K / G in WEIGHT_GROUPS
    """
    rows, columns = require_dimensions("pack", "codes", codes, "N K")
    require("pack", "codes", codes, (rows, columns), (torch.int8,), codes.device)
    if scales.dim() == 1:
        require("pack", "scales", scales, (rows,), FLOAT, codes.device)
        bits, group = 8, INPUT_GROUP
    else:
        _, groups = require_dimensions("pack", "scales", scales, "N G")
        require("pack", "scales", scales, (rows, groups), (torch.float16,), codes.device)
        bits, group = 4, columns // max(1, groups)
        if group not in WEIGHT_GROUPS or group * groups != columns:
            allowed = ", ".join(map(str, WEIGHT_GROUPS))
            raise ShapeError(f"pack: scales must split {columns} columns into groups of {allowed}, found {groups}")
    largest = int(codes.abs().max()) if codes.numel() else 0
    if largest > LARGEST_CODE[bits] or bool((codes == -128).any()):
        raise ShapeError(f"pack: codes of {bits} bits must lie within {LARGEST_CODE[bits]}, found {largest}")
    return PackedWeight(bits, rows, columns, group, _order_codes(codes, bits, group), _order_scales(scales))


def unpack(weight: PackedWeight) -> tuple[Tensor, Tensor]:
    """`codes` and `scales` as given to `pack`."""
    panels = weight.scales.shape[0]
    offset, step = (128, 4) if weight.bits == 8 else (8, 8)
    ordered = weight.codes.view(panels, -1, PANEL_ROWS, 4)
    if weight.bits == 4:
        ordered = torch.stack((ordered & 15, ordered >> 4), dim=3)
    codes = ordered.reshape(panels, -1, PANEL_ROWS, step).transpose(1, 2).reshape(panels * PANEL_ROWS, -1)
    codes = (codes[: weight.rows, : weight.columns].to(torch.int16) - offset).to(torch.int8)
    scales = weight.scales if weight.bits == 8 else weight.scales.transpose(1, 2)
    return codes, scales.reshape(panels * PANEL_ROWS, *scales.shape[2:])[: weight.rows].contiguous()


def dequantize(weight: PackedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix the codes stand for: [N, K] of `dtype`, newly allocated."""
    return reference.dequantize(*unpack(weight), dtype=dtype)


def linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, input_scale: float = 0.0, out: Tensor | None = None
) -> Tensor:
    """Product with a packed weight, through 8-bit inputs.

    x            [M, K] float32
    bias         [N]    float32, bfloat16 or float16
    input_scale  float value of one step of the inputs' codes, beyond 127 of which they are cut off; 0 chooses for each
                 token and group of columns, and cuts nothing
    returns      [M, N] float32
    """
    m, k = require_dimensions("packed linear", "x", x, "M K")
    if k != weight.columns:
        raise ShapeError(f"packed linear: x must be [M, {weight.columns}] for this weight, found {describe(x)}")
    require("packed linear", "x", x, (m, k), FLOAT, x.device)
    if bias is not None:
        require("packed linear", "bias", bias, (weight.rows,), STORED, x.device)
    if out is None:
        out = torch.empty((m, weight.rows), dtype=torch.float32, device=x.device)
    else:
        require("packed linear", "out", out, (m, weight.rows), FLOAT, x.device)
    library = ops.library_for(x.device)
    if library is None or k == 0:
        return out.copy_(reference.packed_linear(x, *unpack(weight), weight.group, bias, input_scale))
    wide = None if bias is None else bias.float()
    library.packed_linear(
        x.data_ptr(),
        weight.codes.data_ptr(),
        weight.scales.data_ptr(),
        None if wide is None else wide.data_ptr(),
        out.data_ptr(),
        m,
        weight.rows,
        k,
        weight.group,
        input_scale,
        weight.bits,
    )
    return out


def rows(indices: Tensor, weight: PackedWeight) -> Tensor:
    """Rows of the matrix, an embedding: indices [T] int32, each below N (unchecked), to [T, K] float32."""
    (count,) = require_dimensions("packed rows", "indices", indices, "T")
    require("packed rows", "indices", indices, (count,), INDEX, indices.device)
    library = ops.library_for(indices.device)
    if library is None:
        return _gather(indices, weight)
    y = torch.empty((count, weight.columns), dtype=torch.float32)
    library.packed_rows(
        indices.data_ptr(),
        weight.codes.data_ptr(),
        weight.scales.data_ptr(),
        y.data_ptr(),
        count,
        weight.columns,
        weight.group,
        weight.bits,
    )
    return y


def _gather(indices: Tensor, weight: PackedWeight) -> Tensor:
    """Unpack only the panels that hold a wanted row."""
    wanted, places = torch.unique(indices // PANEL_ROWS, return_inverse=True)
    panels = weight.scales.shape[0]
    codes = weight.codes.view(panels, -1)[wanted].reshape(-1)
    part = replace(weight, rows=len(wanted) * PANEL_ROWS, codes=codes, scales=weight.scales[wanted])
    return dequantize(part)[places * PANEL_ROWS + indices % PANEL_ROWS]


def _order_codes(codes: Tensor, bits: int, group: int) -> Tensor:
    offset, step = (128, 4) if bits == 8 else (8, 8)
    n, k = codes.shape
    padding = (0, -k % group, 0, -n % PANEL_ROWS)
    padded = torch.nn.functional.pad(codes.to(torch.int16) + offset, padding, value=offset).to(torch.uint8)
    panels = padded.view(-1, PANEL_ROWS, padded.shape[1] // step, step).transpose(1, 2).contiguous()
    if bits == 4:
        low, high = panels[..., :4], panels[..., 4:]
        panels = low | high << 4
    return panels.contiguous().view(-1)


def _order_scales(scales: Tensor) -> Tensor:
    rows = scales.shape[0]
    padding = (0, -rows % PANEL_ROWS) if scales.dim() == 1 else (0, 0, 0, -rows % PANEL_ROWS)
    padded = torch.nn.functional.pad(scales, padding)
    panels = padded.view(-1, PANEL_ROWS, *scales.shape[1:])
    return panels.contiguous() if scales.dim() == 1 else panels.transpose(1, 2).contiguous()
