"""The key/value page pool: two tensors per layer on that layer's device, written by slot and read by page id.

Which sequence owns which page is decided elsewhere (`kv.pages`); this module knows only numbers of pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from windlass_contract import memory
from windlass_contract.memory import CACHE_SHARE
from windlass_contract.memory import PAGE_TOKENS as PAGE_TOKENS
from windlass_contract.memory import sequence_pages as sequence_pages
from windlass_runtime.checkpoint.spec import ModelSpec
from windlass_runtime.errors import CapacityError


def page_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Bytes of one page over all layers, keys and values."""
    return memory.page_bytes(spec.layer_count, spec.key_value_heads, spec.head_size, dtype.itemsize)


def choose_page_count(
    spec: ModelSpec,
    dtype: torch.dtype,
    *,
    cache_bytes: int,
    free_bytes: int,
    max_running_requests: int,
    max_sequence_tokens: int,
) -> int:
    """How many pages to hold. Raises CapacityError when one longest sequence would not fit.

    cache_bytes  size of the pool; 0 fits `max_running_requests` full sequences within a safe share of `free_bytes`
    free_bytes   memory free for it after the weights; of several devices, as much as the fullest lets all of them use
    """
    one_page, one_sequence = page_bytes(spec, dtype), sequence_pages(max_sequence_tokens)
    affordable = int(free_bytes * CACHE_SHARE) // one_page
    count = cache_bytes // one_page if cache_bytes else min(max_running_requests * one_sequence, affordable)
    if cache_bytes > free_bytes:
        raise CapacityError(f"key/value cache: need {cache_bytes} bytes as configured, {free_bytes} free for it")
    if count < one_sequence:
        had = (
            f"{cache_bytes} configured"
            if cache_bytes
            else f"{int(free_bytes * CACHE_SHARE)} usable of {free_bytes} free"
        )
        raise CapacityError(
            f"key/value cache: one sequence of {max_sequence_tokens} tokens needs {one_sequence} pages x {one_page} "
            f"bytes = {one_sequence * one_page} bytes, {had}; lower the sequence limit or give the cache more memory"
        )
    return count


@dataclass(frozen=True, slots=True)
class LayerPages:
    """One layer's share of the pool. P pages, H key/value heads, D head size."""

    keys: torch.Tensor
    """[P, H, PAGE_TOKENS, D]"""
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


class PageStore:
    """The pool. Pages hold whatever was written last; positions never written hold nothing of meaning."""

    def __init__(
        self, spec: ModelSpec, page_count: int, *, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> None:
        """Reserve everything at once; `devices` has one entry per layer. Raises CapacityError."""
        shape = (page_count, spec.key_value_heads, PAGE_TOKENS, spec.head_size)
        self.page_count = page_count
        self.size_bytes = page_count * page_bytes(spec, dtype)
        # Padded reads on a GPU meet positions never written, where anything but a number would spread through the mask.
        # On a CPU nothing is read before it is written, and memory never touched is never taken.

        def allocate(device: torch.device) -> torch.Tensor:
            return (torch.empty if device.type == "cpu" else torch.zeros)(shape, dtype=dtype, device=device)

        assert len(devices) == spec.layer_count
        try:
            self.layers = tuple(LayerPages(allocate(device), allocate(device)) for device in devices)
        except (torch.OutOfMemoryError, RuntimeError) as exc:
            where = " and ".join(str(device) for device in dict.fromkeys(devices))
            raise CapacityError(
                f"key/value cache: need {self.size_bytes} bytes on {where}, the allocation failed"
            ) from exc
