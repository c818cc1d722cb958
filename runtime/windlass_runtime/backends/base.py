"""The seam between deciding and computing: a scheduler hands a Batch to a Backend, one engine step at a time.

The scheduler side needs no tensor library; the backend side needs no notion of tenants, queues or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from windlass_runtime.backends.sampling_params import SampledToken, SamplingParams


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's share of a step: compute `token_ids`, which follow `start` tokens already in the cache."""

    request_id: str
    token_ids: tuple[int, ...]
    """Tokens to compute now: a prefill chunk, or the one token sampled last."""
    start: int
    """Absolute position of token_ids[0]; equals the tokens this sequence already has in its pages."""
    page_table: tuple[int, ...]
    """Page ids, oldest first; covers positions 0 .. start + len(token_ids) - 1."""
    wants_logits: bool
    """Whether the last token's logits are needed; False for all but the last chunk of a prompt."""
    lane: int = 0
    """Place among the sequences that compute at once, below the backend's number of them; no two rows share one, and a
    sequence keeps its own from its first row to its last or until it starts again on a page border."""
    prompt_tokens: int = 0
    """Leading positions of the sequence that were given; later ones were generated, and may be computed sparsely."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one engine step runs. Rows are independent; their order is the order of the result."""

    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What a scheduler must know of a backend."""

    vocabulary_size: int
    page_tokens: int
    """Positions per page."""
    page_count: int
    """Pages in the pool; ids run from 0 to page_count - 1."""
    max_sequence_tokens: int
    eos_token_ids: tuple[int, ...]
    weight_bytes: int
    cache_bytes: int
    is_sparse: bool = False
    """Whether generated tokens are computed sparsely, and so have other keys and values than in a prompt."""


class Backend(Protocol):
    """Executes steps on one device. Not thread-safe: one thread calls `step`."""

    @property
    def info(self) -> BackendInfo: ...

    def step(self, batch: Batch) -> Any:
        """Compute one step.

        returns [N, V] float32, one row for each Row with wants_logits, in batch order; V vocabulary size. A torch
                tensor on the backend's device, newly allocated, valid until the caller drops it. A backend that comes
                with its own Sampler returns what that one reads.
        Mutates the pages named by the batch, and only positions start .. start + len(token_ids) - 1 of each row.
        Raises RuntimeFault for faults of the device; the pages of the batch are then undefined.
        """
        ...

    def close(self) -> None:
        """Free device memory; idempotent."""
        ...


class Sampler(Protocol):
    """Chooses tokens from what `Backend.step` returned. Not thread-safe: one thread calls `sample`."""

    def begin(self, params: SamplingParams, prompt: tuple[int, ...], fresh_seed: int) -> Any:
        """State of one sequence, handed back to `sample`; `fresh_seed` counts when the parameters name no seed.

        Called on the submitting thread.
        """
        ...

    def sample(self, logits: Any, states: Sequence[Any]) -> list[SampledToken | None]:
        """One token per row of `logits`, row i with states[i]; None where nothing usable was computed."""
        ...
