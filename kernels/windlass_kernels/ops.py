"""The ops of one decoder layer on a CPU: shape contracts, checks, dispatch.

Every op is batch invariant: the result for a token is bitwise the same alone, in any batch, and for any thread
count, because each output is accumulated in one fixed order. CPU tensors run on the native kernels where a C++
compiler is at hand; anything else runs on `reference`, whose matrix product is correct but not batch invariant.

Activations are float32; weights and pages are float32, bfloat16 or float16. All tensors are contiguous. An `out` is
written and returned; without one the result is newly allocated. Wrong shapes, types or layouts raise ShapeError
before anything is written.
Indices (positions, slots, page ids, rows) are the caller's promise: they are not checked.

Threads: `set_threads` sets how many an op may use; until then it is torch's intra-op count at the first op. The pool
is the kernels' own; its threads spin 0.2 ms after an op and then sleep, so torch's ops find the cores free.

Dimensions: T tokens of all rows, M rows of a matrix product, H heads, G key/value heads, D head width, P pages,
S positions per page (64), R sequences, B pages per sequence, L positions of the rotary table, C rotated pairs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from windlass_kernels import native, reference
from windlass_kernels.checks import (
    FLOAT,
    INDEX,
    PAGE_TOKENS,
    STORED,
    WEIGHT_CODES,
    ShapeError,
    describe,
    require,
    require_dimensions,
)

__all__ = [
    "PAGE_TOKENS",
    "Availability",
    "ShapeError",
    "add_rms_norm_",
    "available",
    "linear",
    "paged_attention",
    "rms_norm",
    "rope_and_store",
    "set_threads",
    "silu_mul",
    "threads",
]


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether the native kernels run; `reason` names the instruction set, or what is missing. True if native."""

    native: bool
    reason: str

    def __bool__(self) -> bool:
        return self.native


def available() -> Availability:
    """Build and load the kernels if that has not happened, and say how it went; call it at start."""
    loaded = native.load()
    return Availability(loaded.library is not None, loaded.reason)


@functools.cache
def _library() -> native.Library | None:
    library = native.load().library
    if library is not None:
        library.set_threads(torch.get_num_threads())
    return library


def library_for(device: torch.device) -> native.Library | None:
    """The native kernels if tensors of this device run on them; the reference runs otherwise."""
    return _library() if device.type == "cpu" else None


def set_threads(count: int) -> None:
    """Let an op use `count` threads, the caller included. Without native kernels torch's own setting decides."""
    if count < 1:
        raise ValueError(f"set_threads: count must be 1 or more, found {count}")
    library = _library()
    if library is not None:
        library.set_threads(count)


def threads() -> int:
    """Threads an op may use."""
    library = _library()
    return torch.get_num_threads() if library is None else library.threads


def _target(op: str, out: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if out is None:
        return torch.empty(shape, dtype=torch.float32, device=device)
    require(op, "out", out, shape, FLOAT, device)
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Matrix product with a checkpoint's weight.

    x       [M, K] float32
    weight  [N, K] float32, bfloat16 or float16, rows as in the checkpoint
    bias    [N]    any of the weight's types
    returns [M, N] float32
    """
    m, k = require_dimensions("linear", "x", x, "M K")
    n, _ = require_dimensions("linear", "weight", weight, "N K")
    device = x.device
    require("linear", "x", x, (m, k), FLOAT, device)
    require("linear", "weight", weight, (n, k), STORED, device)
    if bias is not None:
        require("linear", "bias", bias, (n,), STORED, device)
    y = _target("linear", out, (m, n), device)
    library = library_for(device)
    if library is None or k == 0:
        return y.copy_(reference.linear(x, weight, bias))
    wide = None if bias is None else bias.float()
    library.linear(x.data_ptr(), weight.data_ptr(), _address(wide), y.data_ptr(), m, n, k, WEIGHT_CODES[weight.dtype])
    return y


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """x [..., F] float32 over its root mean square along F, times weight [F] float32; `out` may be `x`."""
    device, f = x.device, x.shape[-1]
    require("rms_norm", "x", x, x.shape, FLOAT, device)
    require("rms_norm", "weight", weight, (f,), FLOAT, device)
    y = _target("rms_norm", out, x.shape, device)
    library = library_for(device)
    if library is None or f == 0:
        return y.copy_(reference.rms_norm(x, weight, eps))
    library.norm(x.data_ptr(), None, weight.data_ptr(), y.data_ptr(), x.numel() // f, f, eps)
    return y


def add_rms_norm_(residual: Tensor, delta: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """Add `delta` to `residual` in place, both [M, F] float32, and return rms_norm(residual); `out` may be `delta`."""
    m, f = require_dimensions("add_rms_norm_", "residual", residual, "M F")
    device = residual.device
    require("add_rms_norm_", "residual", residual, (m, f), FLOAT, device)
    require("add_rms_norm_", "delta", delta, (m, f), FLOAT, device)
    require("add_rms_norm_", "weight", weight, (f,), FLOAT, device)
    y = _target("add_rms_norm_", out, (m, f), device)
    library = library_for(device)
    if library is None or f == 0:
        return y.copy_(reference.rms_norm(residual.add_(delta), weight, eps))
    library.norm(residual.data_ptr(), delta.data_ptr(), weight.data_ptr(), y.data_ptr(), m, f, eps)
    return y


def silu_mul(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """silu(gate) * up for gate_up [M, 2F] float32, gate in the first half: [M, F]."""
    m, both = require_dimensions("silu_mul", "gate_up", gate_up, "M 2F")
    if both % 2:
        raise ShapeError(f"silu_mul: gate_up must have an even second size, found {both}")
    device = gate_up.device
    require("silu_mul", "gate_up", gate_up, (m, both), FLOAT, device)
    y = _target("silu_mul", out, (m, both // 2), device)
    library = library_for(device)
    if library is None:
        return y.copy_(reference.silu_mul(gate_up))
    library.silu_mul(gate_up.data_ptr(), y.data_ptr(), m, both // 2)
    return y


def rope_and_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    *,
    heads: int,
    interleaved: bool = False,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    key_angles: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Normalise (optional) and rotate queries and keys, write keys and values into their pages, return the queries.

    qkv          [T, (H + 2G) * D] float32   queries, then keys, then values, head by head
    cos, sin     [L, C]            float32   angles by position; 2C <= D values turn, the rest pass through
    positions    [T]               int32     absolute position of each token, < L
    slots        [T]               int32     page * 64 + offset to write; negative: compute the query, store nothing
    key_pages, value_pages [P, G, 64, D] float32, bfloat16 or float16, written at `slots` (rounded to nearest even)
    interleaved  pairs are (2i, 2i + 1) (GLM) rather than (i, i + C) (Llama)
    q_norm, k_norm [D]             float32   RMS norm of each head before the rotation (Qwen3)
    key_angles   [T]               int32     rows of cos and sin that turn the keys, if not those of `positions`
    returns      [T, H, D]         float32
    """
    op, device = "rope_and_store", qkv.device
    kv_heads, width = _require_pages(op, key_pages, value_pages, device)
    tokens, _ = require_dimensions(op, "qkv", qkv, "T (H+2G)*D")
    length, half = require_dimensions(op, "cos", cos, "L C")
    if 2 * half > width:
        raise ShapeError(f"{op}: cos must have at most D / 2 = {width // 2} columns, found {half}")
    require(op, "qkv", qkv, (tokens, (heads + 2 * kv_heads) * width), FLOAT, device)
    require(op, "cos", cos, (length, half), FLOAT, device)
    require(op, "sin", sin, (length, half), FLOAT, device)
    require(op, "positions", positions, (tokens,), INDEX, device)
    require(op, "slots", slots, (tokens,), INDEX, device)
    if key_angles is not None:
        require(op, "key_angles", key_angles, (tokens,), INDEX, device)
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None:
            require(op, name, weight, (width,), FLOAT, device)
    q = _target(op, out, (tokens, heads, width), device)
    library = library_for(device)
    if library is None:
        return q.copy_(
            reference.rope_and_store(
                qkv,
                cos,
                sin,
                positions,
                slots,
                key_pages,
                value_pages,
                heads,
                interleaved,
                q_norm,
                k_norm,
                eps,
                key_angles,
            )
        )
    library.rope_and_store(
        qkv.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        positions.data_ptr(),
        (positions if key_angles is None else key_angles).data_ptr(),
        slots.data_ptr(),
        key_pages.data_ptr(),
        value_pages.data_ptr(),
        _address(q_norm),
        _address(k_norm),
        q.data_ptr(),
        tokens,
        heads,
        kv_heads,
        width,
        half,
        eps,
        interleaved,
        WEIGHT_CODES[key_pages.dtype],
    )
    return q


def paged_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    row_of: Tensor,
    positions: Tensor,
    scale: float,
    window: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """Causal attention of ragged tokens over paged keys and values.

    query        [T, H, D]     float32
    key_pages, value_pages [P, G, 64, D] float32, bfloat16 or float16; H is a multiple of G
    page_table   [R, B]        int32    page ids of each sequence, oldest first
    row_of       [T]           int32    sequence of each token
    positions    [T]           int32    a token sees its own row up to here; the last `window` only, if window > 0
    returns      [T, H, D]     float32
    """
    op, device = "paged_attention", query.device
    tokens, heads, width = require_dimensions(op, "query", query, "T H D")
    kv_heads, page_width = _require_pages(op, key_pages, value_pages, device)
    if page_width != width or heads % kv_heads:
        raise ShapeError(
            f"{op}: query must be [T, a multiple of {kv_heads}, {page_width}] for these pages, found {describe(query)}"
        )
    rows, table_width = require_dimensions(op, "page_table", page_table, "R B")
    require(op, "query", query, (tokens, heads, width), FLOAT, device)
    require(op, "page_table", page_table, (rows, table_width), INDEX, device)
    require(op, "row_of", row_of, (tokens,), INDEX, device)
    require(op, "positions", positions, (tokens,), INDEX, device)
    y = _target(op, out, (tokens, heads, width), device)
    library = library_for(device)
    if library is None:
        return y.copy_(
            reference.paged_attention(query, key_pages, value_pages, page_table, row_of, positions, scale, window)
        )
    library.paged_attention(
        query.data_ptr(),
        key_pages.data_ptr(),
        value_pages.data_ptr(),
        page_table.data_ptr(),
        row_of.data_ptr(),
        positions.data_ptr(),
        y.data_ptr(),
        tokens,
        heads,
        kv_heads,
        width,
        table_width,
        window,
        scale,
        WEIGHT_CODES[key_pages.dtype],
    )
    return y


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _require_pages(op: str, key_pages: Tensor, value_pages: Tensor, device: torch.device) -> tuple[int, int]:
    """G and D of a pair of page pools."""
    pages, kv_heads, _, width = require_dimensions(op, "key_pages", key_pages, "P G 64 D")
    shape = (pages, kv_heads, PAGE_TOKENS, width)
    require(op, "key_pages", key_pages, shape, STORED, device)
    require(op, "value_pages", value_pages, shape, (key_pages.dtype,), device)
    return kv_heads, width
