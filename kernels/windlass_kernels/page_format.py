"""Quantised key/value pages: the bytes, and what they mean. NumPy only; every kernel on every device follows this file.

A head page holds 64 tokens of one layer and one key/value head, in 4 or 8 bits. Keys and values are two matrices of
codes, each laid out along what attention sums over: scores sum over the D channels of a key, results over the 64 tokens
of the values. Call that axis k and the other one n. Then both matrices are

    codes    uint8    8 bits [K, N]; 4 bits [K / 2, N]: two neighbours along k in a byte, the even one in the low half
    scale    float16  [K]
    minimum  float16  [K]               value[k, n] = minimum[k] + code[k, n] * scale[k]

so a scale is part of the other factor (query or weight), a minimum adds one number per page, and a byte feeds both
halves of a two-element multiply along k.

    keys     K = D channels, N = 64 tokens                              a scale per channel and page
    values   K = 64 tokens, N = D channels in G groups of 64 channels   a scale per token and group: [G, 64]

A head page is [key codes | key scale | key minimum | value codes | value scale | value minimum], without gaps: 4.5
bits per element (8.5 in 8 bits) where D is a multiple of 64. With D a multiple of 16 its size is a multiple of 64
bytes. A layer's pool is uint8 [P, H, size]: P pages, H key/value heads.

Keys are stored with page-local rotary angles: token o of a page is turned by o, not by its position b + o (b the
position of the page's first token). Since a turn by b + o is one by b after one by o, the reader turns its query back
by b once per page and finds the scores unchanged; a page means the same wherever it lies.

Who sees what: a token sees the pages before its own as they are stored here, and its own page, up to itself, in the
float format of the tail that collects a page until it is full. That depends on positions alone, so a token's result is
the same whether its sequence arrives in one chunk, in many, or finds its first pages stored already.

Rounding is exact across devices: every step below is one IEEE float32 operation, to nearest even, never fused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE_TOKENS = 64
GROUP_CHANNELS = 64
"""Channels of a token's value that share a scale."""
CODE_BITS = (4, 8)
_HALF_BYTES = 2

Floats = NDArray[np.floating[Any]]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PageFormat:
    """Where the parts of a head page lie. Offsets and sizes are in bytes."""

    bits: int
    width: int
    """D, elements of a head; a multiple of 16."""

    def __post_init__(self) -> None:
        if self.bits not in CODE_BITS:
            raise ValueError(f"page format: expected 4 or 8 bits, found {self.bits}")
        if self.width < 16 or self.width % 16:
            raise ValueError(f"page format: expected a head size that is a multiple of 16, found {self.width}")

    @property
    def groups(self) -> int:
        """Groups of value channels; the last may be narrower."""
        return -(-self.width // GROUP_CHANNELS)

    @property
    def codes_size(self) -> int:
        """Of keys; values take as much."""
        return PAGE_TOKENS * self.width * self.bits // 8

    @property
    def key_scale(self) -> int:
        return self.codes_size

    @property
    def key_minimum(self) -> int:
        return self.key_scale + _HALF_BYTES * self.width

    @property
    def value_codes(self) -> int:
        return self.key_minimum + _HALF_BYTES * self.width

    @property
    def value_scale(self) -> int:
        return self.value_codes + self.codes_size

    @property
    def value_minimum(self) -> int:
        return self.value_scale + _HALF_BYTES * self.groups * PAGE_TOKENS

    @property
    def size(self) -> int:
        """Of one head page."""
        return self.value_minimum + _HALF_BYTES * self.groups * PAGE_TOKENS


def quantize_page(keys: Floats, values: Floats, page_format: PageFormat) -> Bytes:
    """One head page.

    keys     [64, D]  turned by their place in the page; values alike, not turned
    returns  [size]   newly allocated
    """
    key_codes, key_scale, key_minimum = quantize(keys.T, page_format.bits)
    parts = [quantize(group, page_format.bits) for group in _split(values, page_format)]
    value_codes = np.concatenate([codes for codes, _, _ in parts], axis=1)
    return np.concatenate(
        [
            _pack(key_codes, page_format.bits).reshape(-1),
            key_scale.view(np.uint8),
            key_minimum.view(np.uint8),
            _pack(value_codes, page_format.bits).reshape(-1),
            *(scale.view(np.uint8) for _, scale, _ in parts),
            *(minimum.view(np.uint8) for _, _, minimum in parts),
        ]
    )


def dequantize_page(page: Bytes, page_format: PageFormat) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Keys and values of a head page [size], both [64, D]; keys are turned by their place in the page."""
    f, width = page_format, page_format.width
    key_codes = _unpack(page[: f.key_scale].reshape(-1, PAGE_TOKENS), f.bits)
    keys = _expand(key_codes, page[f.key_scale : f.key_minimum], page[f.key_minimum : f.value_codes])
    value_codes = _unpack(page[f.value_codes : f.value_scale].reshape(-1, width), f.bits)
    scales = page[f.value_scale : f.value_minimum].reshape(f.groups, -1)
    minima = page[f.value_minimum :].reshape(f.groups, -1)
    groups = [_expand(*parts) for parts in zip(_split(value_codes, f), scales, minima, strict=True)]
    return keys.T, np.concatenate(groups, axis=1)


def quantize(rows: Floats, bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    """Codes, scale and minimum of each row.

    rows     [K, N]          widened to float32
    returns  [K, N] uint8 in 0 .. 2 ** bits - 1, [K] float16, [K] float16

    A row that holds an infinity or a NaN has the minimum and scale NaN and codes 0, so that damage stays visible; one
    whose range float16 cannot hold has the scale infinity and thus values NaN.
    """
    wide = np.ascontiguousarray(rows, dtype=np.float32)
    largest = np.float32(2**bits - 1)
    sound = np.isfinite(wide).all(axis=1)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        # Adding zero makes a negative zero positive, so that equal pages have equal bytes.
        minimum = np.where(sound, wide.min(axis=1) + np.float32(0), np.nan).astype(np.float16)
        low = minimum.astype(np.float32)
        scale = ((wide.max(axis=1) - low) / largest).astype(np.float16)
        inverse = np.where(scale > 0, np.float32(1) / scale.astype(np.float32), np.float32(0))
        steps = np.rint((wide - low[:, None]) * inverse[:, None])
    # fmax reads NaN as 0, and float-to-integer conversion is only defined within range.
    codes = np.fmin(np.fmax(steps, np.float32(0)), largest)
    return codes.astype(np.uint8), scale, minimum


def _expand(codes: NDArray[np.uint8], scale: Bytes, minimum: Bytes) -> NDArray[np.float32]:
    wide_scale, low = (np.ascontiguousarray(part).view(np.float16).astype(np.float32) for part in (scale, minimum))
    with np.errstate(invalid="ignore", over="ignore"):
        expanded: NDArray[np.float32] = low[:, None] + codes.astype(np.float32) * wide_scale[:, None]
    return expanded


def _split(values: NDArray[Any], page_format: PageFormat) -> list[NDArray[Any]]:
    return np.split(values, range(GROUP_CHANNELS, page_format.width, GROUP_CHANNELS), axis=1)


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    return codes if bits == 8 else np.bitwise_or(codes[0::2], codes[1::2] << 4, dtype=np.uint8)


def _unpack(packed: Bytes, bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return packed
    return np.stack((packed & 15, packed >> 4), axis=1).reshape(-1, packed.shape[1])
