"""Slow, readable definitions of every op: what the native kernels must compute, and what runs where they cannot.

`dtype` is the arithmetic's type: float32 when standing in for a kernel, float64 when a test wants the truth.
Results have that type. Names of dimensions are those of `ops`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """[M, K] times [N, K] transposed, plus bias [N]: [M, N]."""
    result = x.to(dtype) @ weight.to(dtype).T
    return result if bias is None else result + bias.to(dtype)


def dequantize(codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """codes [N, K] int8 times scales [N], or [N, G] for G groups of columns: [N, K]."""
    if scales.dim() == 1:
        return codes.to(dtype) * scales.to(dtype)[:, None]
    groups = codes.to(dtype).view(*scales.shape, -1)
    return (groups * scales.to(dtype)[:, :, None]).flatten(1)


def quantize_inputs(x: Tensor, group: int, input_scale: float = 0.0) -> tuple[Tensor, Tensor]:
    """The 8-bit inputs of a packed product: codes [M, K] int8, scales [M, K / group, rounded up] float32.

    Codes are nearest integers, ties to even, in float32 as the kernels compute them, cut off at 127. A group that holds
    an infinity or a NaN has the scale NaN.
    """
    padded = torch.nn.functional.pad(x.float(), (0, -x.shape[1] % group)).view(len(x), -1, group)
    largest = padded.abs().amax(-1)
    scales = torch.full_like(largest, input_scale) if input_scale > 0 else largest / 127.0
    inverse = torch.where(scales >= 2.0**-126, 1.0 / scales, 0.0)
    usable = largest.isfinite()
    codes = torch.where(usable[..., None], (padded * inverse[..., None]).clamp(-127, 127).round(), 0.0)
    return codes.flatten(1)[:, : x.shape[1]].to(torch.int8), torch.where(usable, scales, torch.nan)


def packed_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    group: int,
    bias: Tensor | None = None,
    input_scale: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """See `packed.linear`: the product of the dequantised inputs with the dequantised weight."""
    input_codes, input_scales = quantize_inputs(x, group, input_scale)
    wide = input_scales.to(dtype).repeat_interleave(group, dim=1)[:, : x.shape[1]]
    return linear(input_codes.to(dtype) * wide, dequantize(codes, scales, dtype), bias, dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """x [..., F] divided by the root of its mean square over F, times weight [F]."""
    wide = x.to(dtype)
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(dtype)


def silu_mul(gate_up: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[M, 2F], gate first: silu(gate) * up, [M, F]."""
    gate, up = gate_up.to(dtype).chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def predict_shares(hints: Tensor, narrow: Tensor, wide: Tensor, bias: Tensor) -> Tensor:
    """Share of a token's output that each block of neurons is expected to make: [M, blocks], by a thin network.

    hints   [M, E]       what is known before the layer
    narrow  [R, E]       R features, of which the positive part counts
    wide    [blocks, R]  their weights; bias [blocks] is added
    """
    return linear(linear(hints, narrow).clamp(min=0), wide, bias).softmax(-1)


def score_gates(gates: Tensor, norms: Tensor, blocks: int) -> Tensor:
    """How much each block can contribute by its gates: [M, blocks], the largest |silu(gate)| * norm of its neurons.

    gates  [M, F]
    norms  [F]     size of each neuron's column of the projection that follows
    """
    return (torch.nn.functional.silu(gates).abs() * norms).view(len(gates), blocks, -1).amax(-1)


def block_mass(gated: Tensor, norms: Tensor, blocks: int) -> Tensor:
    """What each block contributes: [M, blocks], sums of (gated * norm)^2. gated [M, F], norms [F]."""
    return (gated * norms).square().view(len(gated), blocks, -1).sum(-1)


def keep_blocks(gated: Tensor, active: Tensor) -> Tensor:
    """gated [M, F] with zeros in the blocks that active [M, blocks] leaves out."""
    return gated * active.to(gated.dtype).repeat_interleave(gated.shape[1] // active.shape[1], dim=1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn the first 2C of the D values of x [T, H, D] by the angles of cos and sin [T, C]; the rest pass through.

    Pairs are (i, i + C), or (2i, 2i + 1) if interleaved.
    """
    half = cos.shape[-1]
    turned, passed = x[..., : 2 * half], x[..., 2 * half :]
    c, s = cos[:, None, :], sin[:, None, :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * c - b * s, a * s + b * c), dim=-1).flatten(-2)
    else:
        a, b = turned[..., :half], turned[..., half:]
        turned = torch.cat((a * c - b * s, a * s + b * c), dim=-1)
    return torch.cat((turned, passed), dim=-1)


def rope_and_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    heads: int,
    interleaved: bool = False,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    key_angles: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """See `ops.rope_and_store`; returns q [T, H, D], writes the pages."""
    _, kv_heads, page_tokens, width = key_pages.shape
    tokens = qkv.shape[0]
    q, k, v = torch.split(qkv.to(dtype).view(tokens, -1, width), [heads, kv_heads, kv_heads], dim=1)
    q = q if q_norm is None else rms_norm(q, q_norm, eps, dtype)
    k = k if k_norm is None else rms_norm(k, k_norm, eps, dtype)
    at = positions.long()
    key_at = at if key_angles is None else key_angles.long()
    c, s = cos.to(dtype), sin.to(dtype)
    kept = slots >= 0
    page, offset = slots[kept].long() // page_tokens, slots[kept].long() % page_tokens
    key_pages[page, :, offset] = rotate(k, c[key_at], s[key_at], interleaved)[kept].to(key_pages.dtype)
    value_pages[page, :, offset] = v[kept].to(value_pages.dtype)
    return rotate(q, c[at], s[at], interleaved)


def paged_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    row_of: Tensor,
    positions: Tensor,
    scale: float,
    window: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """See `ops.paged_attention`. One token at a time, so that a token's result never depends on its neighbours."""
    page_tokens, group = key_pages.shape[2], query.shape[1] // key_pages.shape[1]
    result = torch.empty(query.shape, dtype=dtype, device=query.device)
    for token, (row, position) in enumerate(zip(row_of.tolist(), positions.tolist(), strict=True)):
        first = max(0, position + 1 - window) if window > 0 else 0
        seen = torch.arange(first, position + 1, device=query.device)
        page = page_table[row].long()[seen // page_tokens]
        keys = key_pages[page, :, seen % page_tokens].to(dtype).repeat_interleave(group, dim=1)
        values = value_pages[page, :, seen % page_tokens].to(dtype).repeat_interleave(group, dim=1)
        scores = torch.einsum("hd,shd->hs", query[token].to(dtype), keys) * scale
        result[token] = torch.einsum("hs,shd->hd", scores.softmax(-1), values)
    return result
