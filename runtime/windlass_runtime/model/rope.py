"""Rotary position embedding as one complex multiplication: neighbouring elements are the real and imaginary part."""

from __future__ import annotations

import math

import torch

from windlass_runtime.checkpoint.spec import LinearScaling, Llama3Scaling, RopeSpec


def inverse_frequencies(rope: RopeSpec) -> torch.Tensor:
    """Radians per position of each rotated pair: [rotary_size / 2] float32, on the CPU."""
    exponents = torch.arange(0, rope.rotary_size, 2, dtype=torch.float32) / rope.rotary_size
    frequencies = 1.0 / (rope.theta**exponents)
    match rope.scaling:
        case LinearScaling(factor):
            return frequencies / factor
        case Llama3Scaling() as scaling:
            return _stretch_low_frequencies(frequencies, scaling)
        case _:
            return frequencies


def _stretch_low_frequencies(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Keep fast pairs, slow the slow ones by the factor; blend in between by the turns within the original length."""
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    span = scaling.high_frequency_factor - scaling.low_frequency_factor
    kept = ((turns - scaling.low_frequency_factor) / span).clamp(0.0, 1.0)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def turns_of(positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Unit complex numbers to multiply with.

    positions    [T] int32
    frequencies  [R] float32
    returns      [T, 1, R] complex64; the middle axis spans heads
    """
    angles = positions[:, None, None].float() * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def rotate_(heads: torch.Tensor, turns: torch.Tensor) -> None:
    """Rotate the leading elements of every head in place.

    heads  [T, H, D]     last axis dense
    turns  [T, 1, R]     complex64, 2 R <= D; arithmetic is FP32 whatever the format of `heads`
    """
    rotary = heads[..., : 2 * turns.shape[-1]].view(*heads.shape[:-1], -1, 2)
    if heads.dtype == torch.float32:
        torch.view_as_complex(rotary).mul_(turns)
    else:
        rotary.copy_(torch.view_as_real(torch.view_as_complex(rotary.float()) * turns))
