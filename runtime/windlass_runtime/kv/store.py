"""The key/value page pool: per layer two float tensors on that layer's device, or pages of 4 or 8 bits beside floats.

Which sequence owns which page or tail is decided elsewhere (`kv.pages`, the scheduler); this module knows only numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from windlass_contract import memory
from windlass_contract.memory import CACHE_SHARE
from windlass_contract.memory import PAGE_TOKENS as PAGE_TOKENS
from windlass_contract.memory import sequence_pages as sequence_pages
from windlass_kernels import ops
from windlass_kernels.page_format import CODE_BITS, PageFormat
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.errors import CapacityError, UnsupportedModel

FLOAT_BITS = 0
"""Stands for a layer that keeps keys and values as the backend's floats, of 16 or 32 bits."""


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """How the pages of a model are kept, in numbers."""

    spec: ModelSpec
    bits: tuple[int, ...]
    """Per layer: 4, 8, or FLOAT_BITS."""
    dtype: torch.dtype
    """Of float layers."""
    tail_dtype: torch.dtype
    """Of tails."""
    lanes: int = 1
    """Sequences that compute at once; each has a tail in every layer of 4 or 8 bits."""
    step_tokens: int = 512
    """Most tokens of one step, which decide how many pages can pass through floats in it."""

    @property
    def quantized_layers(self) -> int:
        return sum(bits in CODE_BITS for bits in self.bits)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers, keys and values."""
        heads, width = self.spec.key_value_heads, self.spec.head_size
        return sum(memory.page_bytes(1, heads, width, self.dtype.itemsize, bits) for bits in self.bits)

    @property
    def tail_pages(self) -> int:
        """Float pages in all: a tail per layer and lane, and the staging."""
        return memory.tail_pages(self.quantized_layers, self.lanes, self.step_tokens)

    @property
    def staging(self) -> int:
        """Float pages of one step besides the tails, shared by all layers: whole pages, and the ends of some chunks."""
        return self.tail_pages - self.quantized_layers * self.lanes

    @property
    def tail_bytes(self) -> int:
        """Bytes of them, keys and values."""
        spec = self.spec
        return self.tail_pages * memory.page_bytes(1, spec.key_value_heads, spec.head_size, self.tail_dtype.itemsize)


def float_layout(spec: ModelSpec, dtype: torch.dtype, *, lanes: int = 1) -> CacheLayout:
    """Every layer in floats."""
    return CacheLayout(spec, (FLOAT_BITS,) * spec.layer_count, dtype, dtype, lanes)


def plan_layout(
    spec: ModelSpec, bits: int, *, dtype: torch.dtype, tail_dtype: torch.dtype, lanes: int, step_tokens: int
) -> CacheLayout:
    """The same bits in every layer. Raises UnsupportedModel for heads that have no page of 4 or 8 bits."""
    if bits in CODE_BITS and spec.head_size % 16:
        raise UnsupportedModel(
            f"key/value cache of {bits} bits: expected a head size that is a multiple of 16, found {spec.head_size}"
        )
    return CacheLayout(spec, (bits,) * spec.layer_count, dtype, tail_dtype, lanes, step_tokens)


def choose_page_count(layout: CacheLayout, *, cache_bytes: int, free_bytes: int, max_sequence_tokens: int) -> int:
    """How many pages to hold. Raises CapacityError when one longest sequence would not fit.

    cache_bytes  size of pool and tails; 0 fits full sequences in all lanes within a safe share of `free_bytes`
    free_bytes   memory free for it after the weights; of several devices, as much as the fullest lets all of them use
    """
    one_page, one_sequence = layout.page_bytes, sequence_pages(max_sequence_tokens)
    affordable = (int(free_bytes * CACHE_SHARE) - layout.tail_bytes) // one_page
    stated = (cache_bytes - layout.tail_bytes) // one_page
    count = stated if cache_bytes else min(layout.lanes * one_sequence, affordable)
    if cache_bytes > free_bytes:
        raise CapacityError(f"key/value cache: need {cache_bytes} bytes as configured, {free_bytes} free for it")
    if count < one_sequence:
        had = (
            f"{cache_bytes} configured"
            if cache_bytes
            else f"{int(free_bytes * CACHE_SHARE)} usable of {free_bytes} free"
        )
        tails = f" + {layout.tail_pages} unfinished pages in floats = {layout.tail_bytes} bytes" * bool(
            layout.tail_pages
        )
        raise CapacityError(
            f"key/value cache: one sequence of {max_sequence_tokens} tokens needs {one_sequence} pages x {one_page} "
            f"bytes = {one_sequence * one_page} bytes{tails}, {had}; lower the sequence limit or the number of running "
            "requests, or give the cache more memory"
        )
    return count


@dataclass(frozen=True, slots=True)
class LayerPages:
    """One layer's share of the pool in floats. P pages, H key/value heads, D head size."""

    keys: torch.Tensor
    """[P, H, PAGE_TOKENS, D], turned by their positions"""
    values: torch.Tensor
    """[P, H, PAGE_TOKENS, D]"""

    def write(self, page_ids: torch.Tensor, offsets: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store T tokens.

        page_ids  [T] int32    page of each token
        offsets   [T] int32    position within the page, 0 .. PAGE_TOKENS - 1
        keys      [T, H, D]    copied; values alike
        """
        self.keys[page_ids, :, offsets] = keys
        self.values[page_ids, :, offsets] = values

    def gather(self, page_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of n pages in order.

        page_ids  [n] int32
        returns   two [H, n * PAGE_TOKENS, D], newly allocated
        """
        keys, values = self.keys.transpose(0, 1), self.values.transpose(0, 1)
        return keys.index_select(1, page_ids).flatten(1, 2), values.index_select(1, page_ids).flatten(1, 2)


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """One layer's share of the pool in 4 or 8 bits, and the float pages that all such layers share."""

    pages: torch.Tensor
    """[P, H, S] uint8; see `windlass_kernels.page_format`"""
    page_format: PageFormat
    index: int
    """Of this layer among those of 4 or 8 bits."""
    tails: LayerPages
    """[F, H, PAGE_TOKENS, D]; keys turned by their place in the page. Lane l of this layer is `index * lanes + l`; the
    staging follows the lanes of the last layer."""


Layer = LayerPages | QuantizedLayer


class PageStore:
    """The pool. Pages hold whatever was written last; positions never written hold nothing of meaning."""

    def __init__(self, layout: CacheLayout, page_count: int, *, devices: Sequence[torch.device]) -> None:
        """Reserve everything at once; `devices` has one entry per layer, all the same with layers of 4 or 8 bits.

        Raises CapacityError.
        """
        assert len(devices) == layout.spec.layer_count
        assert not layout.quantized_layers or len(set(devices)) == 1
        self.layout = layout
        self.page_count = page_count
        self.size_bytes = page_count * layout.page_bytes + layout.tail_bytes
        try:
            self.layers = tuple(self._build_layers(devices))
        except (torch.OutOfMemoryError, RuntimeError) as exc:
            where = " and ".join(str(device) for device in dict.fromkeys(devices))
            raise CapacityError(
                f"key/value cache: need {self.size_bytes} bytes on {where}, the allocation failed"
            ) from exc

    def _build_layers(self, devices: Sequence[torch.device]) -> list[Layer]:
        layout, layers, index = self.layout, list[Layer](), 0
        tails = self._floats(layout.tail_pages, layout.tail_dtype, devices[0]) if layout.tail_pages else None
        for bits, device in zip(layout.bits, devices, strict=True):
            if tails is None or bits not in CODE_BITS:
                layers.append(self._floats(self.page_count, layout.dtype, device))
                continue
            page_format = PageFormat(bits, layout.spec.head_size)
            shape = (self.page_count, layout.spec.key_value_heads, page_format.size)
            layers.append(QuantizedLayer(_allocate(shape, torch.uint8, device), page_format, index, tails))
            index += 1
        return layers

    def _floats(self, pages: int, dtype: torch.dtype, device: torch.device) -> LayerPages:
        shape = (pages, self.layout.spec.key_value_heads, PAGE_TOKENS, self.layout.spec.head_size)
        return LayerPages(_allocate(shape, dtype, device), _allocate(shape, dtype, device))


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    # torch's padded reads meet positions never written, where anything but a number would spread through the mask.
    # Our kernels read nothing before it is written, and memory never touched is never taken.
    allocate = torch.empty if device.type == "cpu" and ops.available() else torch.zeros
    return allocate(shape, dtype=dtype, device=device)
