"""Which tokens of a step leave out blocks of neurons, and what came of it.

Tokens that were given use all blocks, tokens that were generated choose theirs. That is a property of the token, not of
the step: one that is computed again after a preemption, or checked as a draft, chooses as it did the first time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch

from windlass_kernels.feed_forward import FeedForward, Selected
from windlass_runtime.sparsity.figures import SparsityFigures

PROBE_STEPS: Final = 32
"""Steps between two looks at what was left out: each computes one layer densely, with the same result."""


class Tokens(Protocol):
    """What must be known of a sequence's share of a step."""

    @property
    def token_ids(self) -> tuple[int, ...]: ...
    @property
    def start(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...


class SparseLayers:
    """The sparse layers of one model. Steps begin on one thread; figures may be read on any."""

    def __init__(self, chains: Sequence[FeedForward], probe_steps: int = PROBE_STEPS) -> None:
        """chains  those with a selection"""
        self._chains = tuple(chains)
        self._probe_steps = probe_steps
        self._steps = 0
        self._looks = self._computed = self._skipped = 0
        self._density_sum = self._recall_sum = 0.0

    @property
    def figures(self) -> SparsityFigures:
        """What happened since the start."""
        return SparsityFigures(self._looks, self._density_sum, self._recall_sum, self._computed, self._skipped)

    def begin(self, rows: Sequence[Tokens], device: torch.device) -> SparseStep | None:
        """The step of these rows; None when all their tokens were given."""
        if all(row.start + len(row.token_ids) <= row.prompt_tokens for row in rows):
            return None
        given = [at < row.prompt_tokens for row in rows for at in range(row.start, row.start + len(row.token_ids))]
        probed = None
        if self._chains and self._steps % self._probe_steps == 0:
            probed = self._chains[self._steps // self._probe_steps % len(self._chains)]
        self._steps += 1
        return SparseStep(self, torch.tensor(given, device=device), not any(given), probed)

    def add(self, computed: int, blocks: int) -> None:
        """Count the blocks of one layer in one step."""
        self._computed += computed
        self._skipped += blocks - computed

    def look(self, active: torch.Tensor, mass: torch.Tensor) -> None:
        """Take some tokens of one layer into the figures; both [M, B]."""
        self._looks += len(active)
        self._density_sum += float(active.float().mean(-1).sum())
        self._recall_sum += float(measure_recall(mass, active).sum())


@dataclass(frozen=True, slots=True)
class SparseStep:
    """One step."""

    activation: SparseLayers
    all_rows: torch.Tensor
    """[T] bool: tokens that use all blocks."""
    generates_only: bool
    probed: FeedForward | None
    """The layer whose left-out blocks are looked at."""

    def is_probed(self, chain: FeedForward) -> bool:
        return chain is self.probed

    def note(self, chain: FeedForward, found: Selected) -> None:
        """Take the result of one layer into the figures."""
        if found.mass is not None:
            chosen = ~self.all_rows
            self.activation.look(found.active[chosen], found.mass[chosen])
        elif self.generates_only:
            self.activation.add(found.computed, chain.blocks)


def measure_recall(mass: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Share of each token's energy that lies in its active blocks: [M] from two [M, B]; 1 for a token without any."""
    total = mass.sum(-1)
    return torch.where(total > 0, (mass * active).sum(-1) / total.clamp(min=1e-38), 1.0)
