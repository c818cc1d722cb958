"""The ops of one decoder layer on a CPU: shape contracts, checks, dispatch.

Every op is batch invariant: the result for a token is bitwise the same alone, in any batch, and for any thread
count, because each output is accumulated in one fixed order. CPU tensors run on the native kernels where a C++
compiler is at hand; anything else runs on `reference`, whose matrix product is correct but not batch invariant.

Activations are float32; weights and pages are float32, bfloat16 or float16. All tensors are contiguous. An `out` is
written and returned; without one the result is newly allocated. Wrong shapes, types or layouts raise ShapeError
before anything is written.
Indices (positions, slots, page ids, rows) are the caller's promise: they are not checked.

Dimensions: T tokens of all rows, M rows of a matrix product, H heads, G key/value heads, D head width, P pages,
S positions per page (64), R sequences, B pages per sequence, L positions of the rotary table, C rotated pairs.
"""

from __future__ import annotations

from torch import Tensor

from windlass_kernels import reference
from windlass_kernels.checks import PAGE_TOKENS, ShapeError

__all__ = [
    "PAGE_TOKENS",
    "ShapeError",
    "add_rms_norm_",
    "linear",
    "paged_attention",
    "rms_norm",
    "rope_and_store",
    "silu_mul",
]


def _deliver(result: Tensor, out: Tensor | None) -> Tensor:
    return result if out is None else out.copy_(result)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Matrix product with a checkpoint's weight.

    x       [M, K] float32
    weight  [N, K] float32, bfloat16 or float16, rows as in the checkpoint
    bias    [N]    any of the weight's types
    returns [M, N] float32
    """
    return _deliver(reference.linear(x, weight, bias), out)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """x [..., F] float32 over its root mean square along F, times weight [F] float32; `out` may be `x`."""
    return _deliver(reference.rms_norm(x, weight, eps), out)


def add_rms_norm_(
    residual: Tensor, delta: Tensor, weight: Tensor, eps: float, out: Tensor | None = None
) -> Tensor:
    """Add `delta` to `residual` in place, both [M, F] float32, and return rms_norm(residual); `out` may be `delta`."""
    residual.add_(delta)
    return _deliver(reference.rms_norm(residual, weight, eps), out)


def silu_mul(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """silu(gate) * up for gate_up [M, 2F] float32, gate in the first half: [M, F]."""
    return _deliver(reference.silu_mul(gate_up), out)


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
    returns      [T, H, D]         float32
    """
    result = reference.rope_and_store(
        qkv, cos, sin, positions, slots, key_pages, value_pages, heads, interleaved, q_norm, k_norm, eps
    )
    return _deliver(result, out)


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
    positions    [T]           int32    a token sees its own row up to this position; the last `window` only, if window > 0
    returns      [T, H, D]     float32
    """
    result = reference.paged_attention(
        query, key_pages, value_pages, page_table, row_of, positions, scale, window
    )
    return _deliver(result, out)
