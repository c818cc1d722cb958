"""Bytes a model takes on a device: what the control plane checks before it places a replica, and the replica itself.

Weights, the key/value pages of the sequences, and the largest temporaries of one engine step. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from windlass_contract.launch_spec import INTEGERS, Precision
from windlass_contract.layer_split import ModelParts

PAGE_TOKENS: Final = 64
"""Positions of one key/value page."""
CACHE_SHARE: Final = 0.8
"""Share of the free memory that a cache of unstated size may take; the rest is for activations and the allocator."""
STEP_TOKENS: Final = 512
"""Token budget of one engine step unless a launch spec says otherwise."""
ELEMENT_BYTES: Final[Mapping[Precision, int]] = {
    Precision.FP32: 4,
    Precision.BF16: 2,
    Precision.FP16: 2,
    Precision.INT8: 2,
    Precision.INT4: 2,
}
"""Bytes of one number of arithmetic and cache on a GPU, by precision, from many to few bytes of weights."""
_SCALE_CHANNELS: Final = 64
"""Channels of a token's value that share a scale in a page of 4 or 8 bits."""
GROUP: Final = 32
"""Columns per scale of weights in 4 bits, unless a recipe has larger groups, which take less."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only model in numbers, as its config.json has them. Sizes are in elements."""

    layers: int
    hidden_size: int
    feed_forward_size: int
    query_heads: int
    key_value_heads: int
    head_size: int
    vocabulary_size: int
    max_positions: int
    """Longest sequence it was trained for, in tokens."""
    tied_head: bool = False
    """Whether the output head is the embedding."""

    @property
    def attention_size(self) -> int:
        """Elements of one layer's projections of attention."""
        return self.hidden_size * self.head_size * 2 * (self.query_heads + self.key_value_heads)

    @property
    def feed_forward_elements(self) -> int:
        """Elements of one layer's projections of the feed-forward part."""
        return 3 * self.hidden_size * self.feed_forward_size

    @property
    def table_size(self) -> int:
        """Elements of the embedding; the head has as many."""
        return self.vocabulary_size * self.hidden_size

    @property
    def norms(self) -> int:
        """Elements of all norms."""
        return (2 * self.layers + 1) * self.hidden_size

    @property
    def parameters(self) -> int:
        """Elements of all weight matrices and norms; biases, a tiny part, are left out."""
        tables = self.table_size * (1 if self.tied_head else 2)
        return tables + self.layers * (self.attention_size + self.feed_forward_elements) + self.norms


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that must be there at once."""

    weights: int
    cache: int
    """Of the page pool, with the memory that must stay free beside a pool of unstated size."""
    workspace: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.cache + self.workspace


def page_bytes(layers: int, key_value_heads: int, head_size: int, element_bytes: int, bits: int = 0) -> int:
    """Bytes of one page over all layers, keys and values: in floats, or in `bits` 4 or 8 with their scales."""
    if bits == 0:
        return 2 * layers * key_value_heads * PAGE_TOKENS * head_size * element_bytes
    codes = PAGE_TOKENS * head_size * bits // 8
    key_scales, value_scales = 4 * head_size, 4 * PAGE_TOKENS * -(-head_size // _SCALE_CHANNELS)
    return layers * key_value_heads * (2 * codes + key_scales + value_scales)


def tail_pages(layers: int, running_requests: int, step_tokens: int = STEP_TOKENS) -> int:
    """Pages in floats, each of one layer, beside a pool of 4 or 8 bits in `layers` layers.

    Every running sequence has its unfinished page there, and one step's whole pages pass through.
    """
    return layers * running_requests + sequence_pages(step_tokens) + running_requests if layers else 0


def sequence_pages(tokens: int) -> int:
    """Pages that hold `tokens` positions."""
    return -(-tokens // PAGE_TOKENS)


def step_bytes(
    *,
    hidden_size: int,
    feed_forward_size: int,
    query_heads: int,
    head_size: int,
    vocabulary_size: int,
    step_tokens: int = STEP_TOKENS,
) -> int:
    """Room for one step's largest temporaries in FP32: what a layer keeps per token, and a few rows of logits."""
    widest = 3 * feed_forward_size + 4 * hidden_size + 3 * query_heads * head_size
    return 4 * (step_tokens * widest + 64 * vocabulary_size)


def weight_bytes(shape: ModelShape, precision: Precision) -> int:
    """Bytes of all weights on one device."""
    return weight_parts(shape, precision).total


def weight_parts(shape: ModelShape, precision: Precision) -> ModelParts:
    """The same by part. Integers come with their scales; a head of its own format is kept beside the embedding."""
    element = ELEMENT_BYTES[precision]
    norm = shape.hidden_size * element
    if precision not in INTEGERS:
        layer, table = (shape.attention_size + shape.feed_forward_elements) * element, shape.table_size * element
        return ModelParts((layer + 2 * norm,) * shape.layers, table, table + norm, table if shape.tied_head else 0)
    attention_rows = (shape.query_heads + 2 * shape.key_value_heads) * shape.head_size + shape.hidden_size
    feed_forward_rows = 2 * shape.feed_forward_size + shape.hidden_size
    attention = _eight_bits(shape.attention_size, attention_rows)
    if precision is Precision.INT8:
        feed_forward = _eight_bits(shape.feed_forward_elements, feed_forward_rows)
    else:
        feed_forward = _four_bits(shape.feed_forward_elements)
    head = _eight_bits(shape.table_size, shape.vocabulary_size)
    layer = attention + feed_forward + 2 * norm
    return ModelParts((layer,) * shape.layers, _four_bits(shape.table_size), head + norm)


def _eight_bits(elements: int, rows: int) -> int:
    return elements + 4 * rows


def _four_bits(elements: int) -> int:
    return elements // 2 + elements // GROUP * 2


def least_memory(
    shape: ModelShape,
    precision: Precision,
    *,
    cache_bytes: int = 0,
    cache_bits: int = 0,
    max_sequence_tokens: int = 0,
    running_requests: int = 64,
) -> MemoryNeed:
    """The least with which a replica starts: its weights, one step, and the pages of one longest sequence.

    cache_bytes          size of the page pool where it is stated; 0 where it follows the free memory
    cache_bits           4 or 8 per element of the pages; 0 for the format of the arithmetic
    max_sequence_tokens  longest sequence to serve; 0 for what the model was trained for
    running_requests     most sequences at once; counts with pages of 4 or 8 bits, whose unfinished ones are floats
    precision            one of ELEMENT_BYTES
    """
    element = ELEMENT_BYTES[precision]
    tokens = min(max_sequence_tokens or shape.max_positions, shape.max_positions)
    one_page = page_bytes(shape.layers, shape.key_value_heads, shape.head_size, element, cache_bits)
    tails = tail_pages(shape.layers if cache_bits else 0, running_requests)
    tail_bytes = tails * page_bytes(1, shape.key_value_heads, shape.head_size, element)
    one_sequence = sequence_pages(tokens) * one_page + tail_bytes
    return MemoryNeed(
        weights=weight_bytes(shape, precision),
        cache=max(cache_bytes, one_sequence) if cache_bytes else -int(-one_sequence // CACHE_SHARE),
        workspace=step_bytes(
            hidden_size=shape.hidden_size,
            feed_forward_size=shape.feed_forward_size,
            query_heads=shape.query_heads,
            head_size=shape.head_size,
            vocabulary_size=shape.vocabulary_size,
        ),
    )
