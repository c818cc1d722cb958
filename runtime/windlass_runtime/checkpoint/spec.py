"""What a decoder-only language model is, in numbers: the value that drives every later layer. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Frequency-dependent stretch of rotary positions, as Llama 3.1 and later were trained with."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_positions: int
    """Sequence length of the first training, in tokens."""


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """All rotary positions divided by one factor."""

    factor: float


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding of queries and keys."""

    theta: float
    rotary_size: int
    """Leading elements of each head that are rotated; even, at most head_size."""
    interleaved: bool
    """Whether rotated pairs are neighbours (2i, 2i + 1) in the checkpoint, or lie half of rotary_size apart."""
    scaling: Llama3Scaling | LinearScaling | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model's architecture. Sizes are in elements, positions in tokens."""

    architecture: str
    vocabulary_size: int
    hidden_size: int
    query_heads: int
    key_value_heads: int
    """Divides query_heads."""
    head_size: int
    feed_forward_size: int
    windows: tuple[int | None, ...]
    """Per layer: how many latest positions a query sees, itself included; None sees all. One entry a layer."""
    norm_epsilon: float
    max_positions: int
    """Longest sequence the checkpoint was trained for."""
    rope: RopeSpec
    query_key_value_bias: bool
    output_bias: bool
    """Whether the attention output projection has a bias."""
    feed_forward_bias: bool
    query_key_norm: bool
    """Whether each query and key head is normalised before rotation."""
    sandwich_norms: bool
    """Whether the outputs of attention and feed-forward are normalised before they join the residual."""
    fused_gate_up: bool
    """Whether the checkpoint stores gate and up projections as one tensor."""
    tied_head: bool
    """Whether the output head is the embedding."""
    stored_dtype: str
    """Number format the checkpoint declares: `float32`, `bfloat16` or `float16`."""
    eos_token_ids: tuple[int, ...]

    @property
    def layer_count(self) -> int:
        return len(self.windows)

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.query_heads // self.key_value_heads
